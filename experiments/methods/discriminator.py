"""Adversarial distillation: a student learns until a discriminator cannot tell its outputs from the teacher's.

    python experiments/methods/discriminator.py --source npz:mnist_{split}.npz
    python experiments/methods/discriminator.py --source folder:PICTURES --classes 5 --image-size 32 --crop 4
    python experiments/methods/discriminator.py --weight 0.5 --penalty 1 --feature pooled

Compared on the test split, over seeds: logistic regression on pixels, the teacher, the student alone, plain
distillation; students with a discriminator of their logits, of their logits given the class, and of a feature, in the
place of the soft labels; and plain distillation with a discriminator of the logits. The discriminator has an optimizer
of its own, in the same step; `metrics.jsonl` has its loss, which is 2 log 2 = 1.386 where it cannot tell.
"""

import dataclasses

import jax
import optax

from jaxkd import objectives, train
from jaxkd.experiment import NETWORKS, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, SmallDigitsConfig, compare
from jaxkd.experiment.domains import COUNT, NON_NEGATIVE, POSITIVE
from jaxkd.experiment.flags import TRAINING
from jaxkd.methods import discriminator

KINDS = ("alone", "kd", "logits", "logits-given-class", "features", "kd-logits")


@dataclasses.dataclass(frozen=True)
class Config(SmallDigitsConfig):
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)
    feature: str = flag("stage2", "feature of both networks that a discriminator sees, of one resolution", NETWORKS)
    hidden: tuple[int, ...] = flag((32, 32), "widths of the discriminator's layers", NETWORKS, COUNT)
    weight: float = flag(0.3, "weight of the student's part of the game", TRAINING, NON_NEGATIVE)
    penalty: float = flag(0.1, "weight of the penalty on the discriminator's gradient", TRAINING, NON_NEGATIVE)
    discriminator_rate: float = flag(1e-3, "learning rate of the discriminator's Adam", TRAINING, POSITIVE)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)
        if min(self.hidden, default=0) < 1:
            raise ValueError("--hidden needs widths of layers, at least one of 1 or more.")


SMALL = dict(SMOKE, name="discriminator-smoke", students=("logits-given-class",), hidden=(4,))


def make_terms(config, board):
    """Kind of student -> its objective."""
    game = {"hidden": config.hidden, "weight": config.weight, "penalty": config.penalty}
    logits = discriminator.adversarial(**game)
    given = discriminator.adversarial(num_classes=board.train.num_classes, **game)
    project = objectives.linear()
    maps = discriminator.adversarial(student=config.feature, teacher=config.feature, project=project, **game)
    return {
        "alone": board.label,
        "kd": board.kd,
        "logits": objectives.weighted(label=board.label, adversary=logits),
        "logits-given-class": objectives.weighted(label=board.label, adversary=given),
        "features": objectives.weighted(label=board.label, adversary=maps),
        "kd-logits": objectives.weighted(kd=board.kd, adversary=logits),
    }


NAMES = {
    "alone": "student alone",
    "kd": "distilled",
    "logits": "discriminator of logits",
    "logits-given-class": "discriminator of logits given the class",
    "features": "discriminator of features",
    "kd-logits": "distilled, discriminator of logits",
}


def procedure(config, run, logger, plan) -> None:
    board = compare(config, run, logger, plan)
    terms = make_terms(config, board)
    if "features" in config.students:  # a feature that does not fit ends the run here
        shapes = jax.eval_shape(board.teacher.init, jax.random.key(0), board.example)
        parts = board.student, board.teacher, terms["features"]
        try:
            train.check_parts(*parts, batch=board.example, teacher_variables=shapes)
        except ValueError as error:
            raise ValueError(f"--feature {config.feature} does not suit the networks: {error}") from error
    board.add_floor()
    taught = {"teacher": board.teacher, "teacher_variables": board.fit_teacher()}
    for kind in config.students:
        optimizer = own = board.optimizer(board.updates(config.epochs))
        if kind not in ("alone", "kd"):
            optimizer = discriminator.two_optimizers(own, optax.adam(config.discriminator_rate, b1=0.5))
        board.teach(NAMES[kind], terms[kind], optimizer=optimizer, **({} if kind == "alone" else taught))
    board.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
