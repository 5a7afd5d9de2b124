"""No fixed teacher: networks that learn from their peers, from their predecessors, or from a teacher made by hand.

    python experiments/methods/no_teacher.py --source npz:mnist_{split}.npz
    python experiments/methods/no_teacher.py --source folder:PHOTOS --student resnet8 --kinds mutual born-again

Compared on the test split, on which each network is evaluated once, after its training: logistic regression, a large
teacher, students alone and taught by it, and, without that teacher: label smoothing, as the control; Tf-KD, whose
teacher is made by hand; cohorts that learn from each other (deep mutual learning), a member of them by itself and all
together, beside ensembles of as many students that were trained alone; born-again generations, and their ensemble.
"""

import dataclasses
from typing import Literal

import jax

from jaxkd import losses, models, objectives
from jaxkd.experiment import NETWORKS, TRAINING, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, FewDigitsConfig, compare
from jaxkd.experiment.domains import COUNT
from jaxkd.methods import born_again, mutual_learning
from jaxkd.train import students

KINDS = ("label-smoothing", "tf-kd", "mutual", "born-again")


@dataclasses.dataclass(frozen=True)
class Config(FewDigitsConfig):
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    kinds: tuple[str, ...] = flag(KINDS, "kinds of students without the large teacher", NETWORKS)
    members: tuple[int, ...] = flag((2, 4), "numbers of members of the cohorts", NETWORKS, COUNT)
    generations: int = flag(3, "born-again generations after the students alone", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "kinds", "kind of student", KINDS)
        if min(self.members) < 2 or len(set(self.members)) < len(self.members):
            raise ValueError(f"--members is {self.members}: give numbers of 2 or more, each once.")


SMALL = {**SMOKE, "name": "no-teacher-smoke", "teacher": "mlp", "student": "mlp", "members": (2,), "generations": 1}
SMALL |= {"kinds": ("mutual", "born-again")}


def not_lost(comparison, *phases):
    """Seeds of the students that no phase has lost."""
    return sorted(set(range(comparison.config.seeds)).difference(*(comparison.context.run.lost[p] for p in phases)))


def add_ensemble(comparison, name, model, each):
    """A row of several networks together, once for each of `each`, the variables of the ensembles."""
    size = sum(models.count_parameters(variables) for variables in each[:1])
    comparison.trials.add(name, [comparison.scorer(model)(variables) for variables in each], parameters=size)


def add_cohort(comparison, members, alone):
    """Rows of a cohort: its members, all of them together, and as many students that were trained alone."""
    config, student, name = comparison.config, comparison.student, f"mutual-{members}"
    term = mutual_learning.mutual(
        comparison.label, objectives.from_logits(losses.kd, temperature=1.0), members, weight=1.0
    )
    cohort, steps = (
        models.stacked(student, members, combine=models.mean_probabilities),
        comparison.updates(config.epochs),
    )
    given = comparison.train, cohort, term, comparison.optimizer(steps), steps
    variables = comparison.trials.fit(name, *given, seeds=config.seeds)
    each = [students.pick_student(variables, seed) for seed in not_lost(comparison, name)]
    found = [mutual_learning.member(own, i) for own in each for i in range(members)]
    scores = [comparison.scorer(student)(own) for own in found]
    comparison.trials.add(f"{name}, a member", scores, parameters=sum(map(models.count_parameters, found[:1])))
    add_ensemble(comparison, f"{name}, ensemble", cohort, each)
    if len(alone) >= members:
        starts = range(0, len(alone) - members + 1, members)
        groups = [models.stack(*alone[start : start + members]) for start in starts]
        add_ensemble(comparison, f"alone, ensemble of {members}", cohort, groups)


def add_generations(comparison, first):
    """Rows of born-again generations, and of the ensemble of all of them."""
    config, student, steps = comparison.config, comparison.student, comparison.updates(comparison.config.epochs)
    kd = objectives.from_logits(losses.kd, temperature=1.0)
    term = objectives.weighted(label=(0.5, comparison.label), kd=(0.5, kd))
    given = comparison.train, student, first, term, comparison.optimizer(steps), steps
    found = born_again.generations(comparison.context, "born-again", *given, count=config.generations)
    names = [f"born-again-{number}" for number in range(1, config.generations + 1)]
    for name, variables in zip(names, found[1:], strict=True):
        each = [students.pick_student(variables, seed) for seed in not_lost(comparison, name)]
        add_ensemble(comparison, name, student, each)
    each = [born_again.ensemble(student, found, seed) for seed in not_lost(comparison, "alone", *names)]
    add_ensemble(comparison, "born-again, ensemble of all", each[0][0], [variables for _, variables in each])


def procedure(config, run, logger, plan) -> None:
    comparison = compare(config, run, logger, plan)

    # 1. The floor, a large teacher, students alone and taught by it.
    comparison.add_floor()
    known = comparison.fit_teacher()
    steps, number = comparison.updates(config.epochs), max(config.seeds, *config.members)
    given = comparison.train, comparison.student, comparison.label, comparison.optimizer(steps), steps
    variables = comparison.trials.fit("alone", *given, seeds=number)
    found = [students.pick_student(variables, i) for i in range(number) if i not in run.lost["alone"]]
    scores = [comparison.scorer(comparison.student)(own) for own in found]
    comparison.trials.add("alone", scores, parameters=models.count_parameters(found[0]))
    comparison.teach("distilled", comparison.kd, teacher=comparison.teacher, teacher_variables=known)

    # 2. Students without that teacher.
    if "label-smoothing" in config.kinds:
        comparison.teach("label-smoothing", objectives.from_labels(losses.cross_entropy, label_smoothing=0.1))
    if "tf-kd" in config.kinds:
        comparison.teach("tf-kd", objectives.from_labels(losses.tfkd_reg))
    if "mutual" in config.kinds:
        for members in config.members:
            add_cohort(comparison, members, found)
    if "born-again" in config.kinds:
        add_generations(comparison, jax.tree.map(lambda x: x[: config.seeds], variables))
    comparison.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
