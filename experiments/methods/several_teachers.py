"""Several teachers of one student: their mean, weights of each example, trained weights, and a chain of assistants.

    python experiments/methods/several_teachers.py --source npz:cifar100_{split}.npz
    python experiments/methods/several_teachers.py --source folder:PICTURES --teachers resnet20 resnet20 vgg8

Compared on the test split, on which each network is evaluated once, after its training: logistic regression on pixels;
each teacher; all of them as an ensemble; students alone, distilled from the teacher that is best on the validation
split, and in each of the ways of `--kinds`. The best teacher and the student distilled from it are what all else has to
be compared with.

Reference:
  You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", KDD 2017; Zhang, Chen, Wang, "Confidence-Aware
  Multi-Teacher Knowledge Distillation", ICASSP 2022, https://arxiv.org/abs/2201.00007; Mirzadeh et al., "Improved
  Knowledge Distillation via Teacher Assistant", AAAI 2020, https://arxiv.org/abs/1902.03393
"""

import dataclasses

import jax
import numpy as np

from jaxkd import data, losses, models, objectives
from jaxkd.experiment import NETWORKS, NO_VARIABLES, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, ComparisonConfig, compare
from jaxkd.experiment.images import check_network
from jaxkd.experiment.networks import make_network
from jaxkd.experiment.trials import CACHED
from jaxkd.methods import several_teachers
from jaxkd.train.students import pick_student

KINDS = ("logits", "probabilities", "confidence", "entropy", "agreement", "learned", "gate", "assistants", "two")
WEIGHTS = {
    "confidence": several_teachers.by_confidence(),
    "entropy": several_teachers.by_entropy(),
    "agreement": several_teachers.by_agreement(),
}


@dataclasses.dataclass(frozen=True)
class Config(ComparisonConfig):
    name: str = "several-teachers"
    classes: int | None = 10
    student: str = "mlp"
    teacher_epochs: int = 12
    epochs: int = 15
    teachers: tuple[str, ...] = flag(("convnet", "convnet_8_16", "mlp"), "the teachers' networks", NETWORKS)
    assistants: tuple[str, ...] = flag(("convnet_8_16",), "networks of the chain from the best teacher down", NETWORKS)
    other_student: str = flag("lenet", "network that is trained beside the student, in the same steps", NETWORKS)
    kinds: tuple[str, ...] = flag(KINDS, "ways to use the teachers, of " + ", ".join(KINDS), NETWORKS)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "kinds", "way to use the teachers", KINDS)
        for names in ("teachers", "assistants", "other_student"):
            once = tuple(dict.fromkeys(np.atleast_1d(getattr(self, names)).tolist()))  # the same one may stand twice
            check_choice(dataclasses.replace(self, **{names: once}), names, "network", self.networks)


SMALL = {
    **SMOKE,
    "name": "several-teachers-smoke",
    "student": "mlp",
    "teachers": ("mlp", "mlp"),
    "other_student": "mlp",
}
SMALL |= {"assistants": ("mlp",), "kinds": ("learned",)}


def check_all(these):
    """Refuses networks that cannot take the images, before any is trained."""
    config = these.config
    used = {"--teachers": config.teachers}
    used["--assistants"] = config.assistants if "assistants" in config.kinds else ()
    used["--other-student"] = (config.other_student,) if "two" in config.kinds else ()
    for flag_name, names in used.items():
        for name in names:
            network = make_network(name, these.train.num_classes, config.networks)
            check_network(flag_name, name, network, these.example)


def make_term(kind, these):
    """Objective of a way to use all teachers, and options of the ensemble."""
    config, members = these.config, len(these.config.teachers)
    if kind in ("logits", "probabilities"):
        return these.kd, {"combine": models.mean_logits if kind == "logits" else models.mean_probabilities}
    if kind in WEIGHTS:

        def one(m, weigh):
            paths = "student.logits", f"teacher.{m}/logits"
            return objectives.from_outputs(losses.kd, *paths, weigh=weigh, temperature=config.temperature)

        kd = several_teachers.each(one, members, WEIGHTS[kind])
    else:
        gate = "student.pooled" if kind == "gate" else None
        kd = objectives.learned_teachers(losses.kd, members=members, gate=gate, temperature=config.temperature)
    return objectives.weighted(label=(config.alpha, these.label), kd=(1 - config.alpha, kd)), {}


def teach_through_assistants(these, answers):
    """A chain: each assistant learns from the one before it, the student from the last one."""
    steps = these.updates(these.config.teacher_epochs)
    for number, name in enumerate(these.config.assistants):
        assistant = make_network(name, these.train.num_classes, these.config.networks)
        source, row = data.with_fields(these.train, teacher_logits=answers), f"assistant {number}: {name}"
        variables = these.trials.fit(row, source, assistant, these.kd, these.optimizer(steps), steps, **CACHED)
        these.trials.add(row, these.scorer(assistant)(variables), parameters=models.count_parameters(variables))
        answers = these.answers(assistant, variables, these.train)
    these.teach("assistants", these.kd, source=data.with_fields(these.train, teacher_logits=answers), **CACHED)


def teach_two(these, taught):
    """Two different students of the best teacher in one step: the student, and another network beside it."""
    name = these.config.other_student
    other = make_network(name, these.train.num_classes, these.config.networks)
    pair = these.student, other
    term = objectives.weighted(**{f"student{i}": objectives.of_member(these.kd, student=i) for i in range(2)})
    scores = [lambda v, i=i: these.scorer(pair[i])(models.pick_member(v, i)) for i in range(2)]
    stack = these.teach(f"beside {name}", term, model=models.ensemble(*pair), score=scores[0], **taught)
    beside = [scores[1](pick_student(stack, seed)) for seed in range(these.config.seeds)]
    these.trials.add(f"{name} beside it", beside)


def procedure(config, run, logger, plan) -> None:
    these = compare(config, run, logger, plan)
    check_all(these)
    these.add_floor()
    # 1. The teachers, all of them together, and their answers to the training images without augmentation.
    networks = [make_network(name, these.train.num_classes, config.networks) for name in config.teachers]
    logits, skill = [], []
    for m, (name, network) in enumerate(zip(config.teachers, networks, strict=True)):
        key = jax.random.fold_in(jax.random.key(config.seed), m)
        variables = these.fit_teacher(f"teacher {m}: {name}", network, key=key)
        splits = these.train, these.validation, these.test
        logits.append([these.answers(network, variables, source) for source in splits])
        skill.append(these.score(logits[m][1], these.validation)["accuracy"])
    best = int(np.argmax(skill))
    tests = [answers[2] for answers in logits]
    these.trials.add("ensemble, mean of probabilities", these.score(models.mean_probabilities(tests)))
    train = data.with_fields(these.train, **{f"teacher{m}": answers[0] for m, answers in enumerate(logits)})
    # 2. The students.
    these.teach("student alone", these.label)
    taught = {"source": train, "teacher": models.cached(logits=f"teacher{best}")}
    these.teach(f"best teacher ({config.teachers[best]})", these.kd, **taught)
    for kind in config.kinds:
        if kind == "assistants":
            teach_through_assistants(these, logits[best][0])
        elif kind == "two":
            teach_two(these, taught)
        else:
            term, combine = make_term(kind, these)
            members = models.ensemble(*[models.cached(logits=f"teacher{m}") for m in range(len(networks))], **combine)
            nothing = models.join(*[NO_VARIABLES] * len(networks))
            these.teach(kind, term, source=train, teacher=members, teacher_variables=nothing)
    these.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
