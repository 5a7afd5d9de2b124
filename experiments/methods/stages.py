"""Stages: a student learns stage by stage from the teacher's features, takes over its stages, or reads its features.

    python experiments/methods/stages.py --source npz:mnist_{split}.npz
    python experiments/methods/stages.py --source folder:PICTURES --classes 5 --image-size 32 --crop 4
    python experiments/methods/stages.py --teacher resnet20 --student resnet8 --stages stage1 stage2 stage3

Compared on the test split, over seeds: logistic regression on pixels, the teacher, the student alone, plain
distillation; stages that were each trained on the teacher's own features, joined, and fine-tuned by distillation;
stages that replace the teacher's one after the other by chance (BERT-of-Theseus, for images); and two networks of the
form y = sum_l F_l(teacher's feature l), which need the teacher at inference, with a student distilled from them. Every
way of two phases has as many updates as plain distillation has in one.
"""

import dataclasses

import jax
import optax

from jaxkd import losses, models, objectives
from jaxkd.experiment import NETWORKS, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, SmallDigitsConfig, compare
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.flags import TRAINING
from jaxkd.methods import blockwise, side_network, theseus
from jaxkd.train import students

KINDS = ("alone", "kd", "blockwise", "theseus", "side")


@dataclasses.dataclass(frozen=True)
class Config(SmallDigitsConfig):
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)
    stages: tuple[str, ...] = flag(("stage1", "stage2"), "features that all stages but the last end in", NETWORKS)
    side_widths: tuple[int, ...] = flag(
        (8, 16), "channels of the networks that read the teacher's features", NETWORKS, COUNT
    )
    first_epochs: int = flag(
        20, "epochs of the first phase, where there are two; the rest is the second", TRAINING, COUNT
    )

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)
        if not 1 <= self.first_epochs < self.epochs:
            raise ValueError(
                f"--first-epochs is {self.first_epochs} but --epochs is {self.epochs}: give 1 to {self.epochs - 1}, so "
                "that there is a second phase."
            )
        if min(self.side_widths, default=0) < 1:
            raise ValueError("--side-widths needs numbers of channels, at least one of 1 or more.")


SMALL = dict(SMOKE, name="stages-smoke", epochs=2, first_epochs=1, students=("theseus",))


def procedure(config, run, logger, plan) -> None:
    board = compare(config, run, logger, plan)
    T, S, stages, second = board.teacher, board.student, config.stages, config.epochs - config.first_epochs
    try:  # stages that do not fit end the run here
        apart = blockwise.apart(T, S, stages)
        for model in (T, S, apart):
            shapes = jax.eval_shape(model.init, jax.random.key(0), board.example)
            models.Stages(model, stages, shapes, board.example)
    except ValueError as error:
        raise ValueError(
            f"--stages {' '.join(stages)} do not suit {config.teacher}, {config.student}: {error}"
        ) from error
    board.add_floor()
    known = board.fit_teacher()
    taught = {"teacher": T, "teacher_variables": known}

    if "alone" in config.students:
        board.teach("student alone", board.label)
    if "kd" in config.students:
        board.teach("distilled", board.kd, **taught)

    # 1. Every stage on the teacher's features, then all of them as one network.
    if "blockwise" in config.students:
        whole, kd = models.joined(T, S, stages), objectives.from_logits(losses.kd, temperature=config.temperature)
        term = objectives.weighted(**blockwise.terms(stages), kd=kd)
        trained = board.teach("stages apart, joined", term, model=apart, epochs=config.first_epochs, **taught)
        start = jax.vmap(blockwise.finish)(trained)
        board.teach("stages apart, fine-tuned", board.kd, model=whole, epochs=second, start=start, **taught)

    # 2. Stages that replace the teacher's, more and more of them.
    if "theseus" in config.students:
        steps = board.updates(config.first_epochs)
        mixed = theseus.replacing_stages(T, S, stages, optax.linear_schedule(0.5, 1.0, steps))
        trained = board.teach(
            "stages replaced by chance", board.label, model=mixed, epochs=config.first_epochs, **taught
        )
        start, whole = jax.vmap(theseus.finish)(trained), models.joined(T, S, stages)
        board.teach("stages replaced, fine-tuned", board.label, model=whole, epochs=second, start=start)

    # 3. Networks that read the teacher's features, then the student alone with the best on validation as its teacher.
    if "side" in config.students:
        classes = board.train.num_classes
        modules = {name: models.convnet(classes, widths=config.side_widths) for name in stages}
        reader, whole = side_network.reading(T, modules), side_network.whole(T, modules)
        score = lambda own: board.scorer(whole)(side_network.finish(own, known))  # noqa: E731
        readers = board.teach("side network (needs the teacher)", board.label, model=reader, score=score, **taught)
        each = [side_network.finish(students.pick_student(readers, i), known) for i in range(config.seeds)]
        right = [board.score(board.answers(whole, one, board.validation), board.validation)["accuracy"] for one in each]
        best = each[right.index(max(right))]
        board.teach("distilled from a side network", board.kd, teacher=whole, teacher_variables=best)
    board.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
