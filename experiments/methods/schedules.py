"""Schedules of knowledge: how much the teacher counts, and when, in the course of one training.

    python experiments/methods/schedules.py --source "npz:mnist_{split}.npz"
    python experiments/methods/schedules.py --source folder:PHOTOS --teacher resnet20 --student resnet8 --classes 10

Compared on the test split, on which each network is evaluated once: logistic regression on pixels, the teacher, the
same teacher stopped early, and students: alone, distilled with constant weights, with a weight of the teacher that
falls or rises, with a temperature that falls, by Annealing-KD, by the teacher's features first and its logits after,
by the teacher that was stopped early, and with weights that follow the losses on held-out training images.
"""

import dataclasses

import numpy as np
import optax

from jaxkd import data, losses, models, objectives
from jaxkd.experiment import NETWORKS, TRAINING, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, FewDigitsConfig, compare
from jaxkd.experiment.domains import COUNT, DECAY, FRACTION, TEMPERATURE
from jaxkd.methods.annealing import annealing
from jaxkd.methods.dynamic_weights import dynamic_weights

EARLY = "early-teacher"
KINDS = ("alone", "kd", "falling", "rising", "temperature", "annealing", "features-first", EARLY, "dynamic")


@dataclasses.dataclass(frozen=True)
class Config(FewDigitsConfig):
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)
    early: float = flag(0.3, "part of the teacher's training after which the early one is stopped", TRAINING, FRACTION)
    first: float = flag(0.3, "part of the training for features first; Annealing-KD has the rest", TRAINING, FRACTION)
    hottest: float = flag(8.0, "temperature from which the falling one comes down to 1", TRAINING, TEMPERATURE)
    annealing_temperature: int = flag(10, "T_max of Annealing-KD, in as many parts", TRAINING, COUNT)
    held_out: float = flag(0.1, "part of the training images that only steer the dynamic weights", TRAINING, DECAY)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)


def make_terms(config, comparison):
    """Kind of student -> its objective."""
    steps, label = comparison.updates(config.epochs), comparison.label
    soft, switch = 1 - config.alpha, max(1, round(config.first * steps))

    def kd(temperature=config.temperature):
        return objectives.from_logits(losses.kd, temperature=temperature)

    def summed(weight, temperature=config.temperature):
        """The weight of the labels is what the teacher leaves."""
        return objectives.weighted(label=(lambda step: 1 - weight(step), label), kd=(weight, kd(temperature)))

    hint = objectives.from_features(losses.hint, student="pooled", teacher="pooled", project=objectives.linear())
    return {
        "alone": lambda: label,
        "kd": lambda: comparison.kd,
        "falling": lambda: summed(objectives.cosine_ramp(steps, start=soft, end=0.0)),
        "rising": lambda: summed(objectives.cosine_ramp(steps, start=0.0, end=soft)),
        "temperature": lambda: objectives.weighted(
            label=(config.alpha, label), kd=(soft, kd(optax.linear_schedule(config.hottest, 1.0, steps)))
        ),
        "annealing": lambda: annealing(max(1, steps - switch), max_temperature=config.annealing_temperature),
        "features-first": lambda: objectives.weighted(
            hint=(objectives.switched(switch, before=1.0, after=0.0), hint),
            label=(objectives.switched(switch, after=config.alpha), label),
            kd=(objectives.switched(switch, after=soft), kd()),
        ),
        EARLY: lambda: comparison.kd,
        "dynamic": lambda: dynamic_weights({"label": (config.alpha, label), "kd": (soft, kd())}),
    }


def fit_early(config, comparison):
    """The teacher as it was after the first part of its training; adds its row."""
    steps = comparison.updates(config.teacher_epochs)
    given = comparison.train, comparison.teacher, comparison.label, comparison.optimizer(steps)
    variables = comparison.trials.fit("teacher stopped early", *given, max(1, round(config.early * steps)))
    figures = comparison.scorer(comparison.teacher)(variables)
    comparison.trials.add("teacher stopped early", figures, parameters=models.count_parameters(variables))
    return variables


def procedure(config, run, logger, plan) -> None:
    comparison = compare(config, run, logger, plan)
    terms = {kind: make() for kind, make in make_terms(config, comparison).items() if kind in config.students}
    comparison.add_floor()
    known = {"teacher": comparison.fit_teacher()}
    if EARLY in config.students:
        known[EARLY] = fit_early(config, comparison)
    held_out = np.random.default_rng(config.seed).uniform(size=comparison.train.size) < config.held_out
    steered = data.with_fields(comparison.train, held_out=held_out)

    for kind in config.students:
        variables = known[EARLY] if kind == EARLY else known["teacher"]
        teacher = {} if kind == "alone" else {"teacher": comparison.teacher, "teacher_variables": variables}
        source = steered if kind == "dynamic" else comparison.train
        comparison.teach(f"student, {kind}", terms[kind], source=source, **teacher)
    comparison.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMOKE | {"students": ("dynamic",)})
