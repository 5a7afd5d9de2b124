"""Conflicts: the labels' and the teacher's gradient, treated apart by the optimizer or weighed for each example.

    python experiments/methods/conflicts.py --source "npz:mnist_{split}.npz"
    python experiments/methods/conflicts.py --source folder:PHOTOS --teacher resnet20 --student resnet8 --classes 10

Compared on the test split, on which each network is evaluated once: logistic regression on pixels, the teacher, the
student alone, and distilled by AdamW; by PCGrad and CAGrad in front of AdamW; with soft labels that count less where
the teacher is unsure, or where the student knows the label already; and by SGD with one momentum and with two (DOT).
The last column is the cosine between the labels' and the teacher's gradient in the trained student.
"""

import dataclasses

import jax
import optax

from jaxkd import losses, objectives, train
from jaxkd.experiment import NETWORKS, TRAINING, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, FewDigitsConfig, compare
from jaxkd.experiment.domains import FRACTION, NON_NEGATIVE, POSITIVE
from jaxkd.experiment.images import first_rows
from jaxkd.experiment.trials import Column
from jaxkd.methods.conflicts import cagrad, pcgrad
from jaxkd.methods.dot import dot
from jaxkd.types import Variables

KINDS = ("alone", "kd", "pcgrad", "cagrad", "sure-teacher", "unsure-student", "kd-sgd", "dot")


@dataclasses.dataclass(frozen=True)
class Config(FewDigitsConfig):
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)
    delta: float = flag(
        0.075, "difference of DOT's momenta from 0.9, for the teacher above and below", TRAINING, FRACTION
    )
    radius: float = flag(0.5, "radius c of CAGrad, in norms of the mean gradient", TRAINING, NON_NEGATIVE)
    sgd_rate: float = flag(0.05, "highest rate of SGD with momentum", TRAINING, POSITIVE)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)
        dot(self.sgd_rate, delta=self.delta)


def make_kinds(config, comparison):
    """Kind of student -> (objective, optimizer)."""
    steps = comparison.updates(config.epochs)
    adamw, rate = comparison.optimizer(steps), optax.cosine_decay_schedule(config.sgd_rate, steps)
    clip, decay = optax.clip_by_global_norm(1.0), optax.add_decayed_weights(5e-4)

    def distilled(weigh=None):
        kd = objectives.from_logits(losses.kd, temperature=config.temperature, weigh=weigh)
        return objectives.weighted(label=(config.alpha, comparison.label), kd=(1 - config.alpha, kd))

    return {
        "alone": (comparison.label, adamw),
        "kd": (comparison.kd, adamw),
        "pcgrad": (comparison.kd, optax.chain(pcgrad(), adamw)),
        "cagrad": (comparison.kd, optax.chain(cagrad(config.radius), adamw)),
        "sure-teacher": (distilled(objectives.teacher_certainty(temperature=config.temperature)), adamw),
        "unsure-student": (distilled(objectives.student_doubt()), adamw),
        "kd-sgd": (comparison.kd, optax.chain(clip, decay, optax.sgd(rate, momentum=0.9))),
        "dot": (comparison.kd, optax.chain(clip, dot(rate, delta=config.delta, weight_decay=5e-4))),
    }


def make_cosine(comparison, known):
    """Variables of a student -> cosine of the two gradients on a few training images."""
    parts = comparison.student, comparison.teacher, comparison.kd
    batch = comparison.context.eval_prepare(first_rows(comparison.train, 512))
    report = train.gradients.make_gradient_report(*parts)

    @jax.jit
    def cosine(variables, known):
        state = train.begin_state(
            *parts, optax.identity(), jax.random.key(0), batch, known, student_variables=variables
        )
        return report(state, known, batch)["gradient_cosine/kd"]

    return lambda variables: float(cosine(Variables(*variables), known))


def procedure(config, run, logger, plan) -> None:
    comparison = compare(config, run, logger, plan, columns={"cosine": Column("cosine of the gradients")})
    comparison.add_floor()
    known = comparison.fit_teacher()
    teacher = {"teacher": comparison.teacher, "teacher_variables": known}
    cosine, score = make_cosine(comparison, known), comparison.scorer(comparison.student)

    def measured(variables):
        return {**score(variables), "cosine": cosine(variables)}

    kinds = make_kinds(config, comparison)
    for kind in config.students:
        term, optimizer = kinds[kind]
        more = {} if kind == "alone" else teacher
        comparison.teach(kind, term, optimizer=optimizer, score=measured, **more)
    comparison.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMOKE | {"students": ("dot",)})
