"""Mean teacher: a student with few labels whose teacher is its own moving average, on images without labels.

    python experiments/methods/mean_teacher.py --source npz:mnist_{split}.npz
    python experiments/methods/mean_teacher.py --source folder:PHOTOS --student resnet8 --flip --labels 20

A few images of each class have a label; of all others the labels are not read. Student and teacher see two
augmentations of each image, and the student is pulled towards the teacher's probabilities, with a weight that rises
over the first third of the training. Compared on the test split, on which each network is evaluated once, after its
training: logistic regression on the few labels; a large teacher on them; students alone on them, and their moving
average; students taught by that teacher on all images; mean teachers, the student and the average; and, as far as it
could go, students with the labels of all images. Students have the same number of updates.
"""

import dataclasses
from typing import Literal

import jax

from jaxkd import augment, data, losses, models, objectives
from jaxkd.experiment import NETWORKS, TRAINING, check_choice, flag, launch, train_phase, variables_of
from jaxkd.experiment.comparison import SMOKE, FewDigitsConfig, compare
from jaxkd.experiment.domains import COUNT, DECAY, POSITIVE
from jaxkd.experiment.flags import DATA
from jaxkd.experiment.transfer import draw_labels
from jaxkd.experiment.trials import QUIET
from jaxkd.train import students

KINDS = ("alone", "distilled", "mean-teacher", "all-labels")


@dataclasses.dataclass(frozen=True)
class Config(FewDigitsConfig):
    train_split: str = "train[:3000]"
    validation_split: str = "train[3000:4500]"
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    labels: int = flag(5, "labelled images of each class", DATA, COUNT)
    share: float = flag(0.25, "share of labelled images in a batch, which are repeated for it", TRAINING, POSITIVE)
    decay: float = flag(0.99, "decay of the moving average that teaches", TRAINING, DECAY)
    consistency: float = flag(1.0, "weight of the pull towards the teacher, once it has risen", TRAINING, POSITIVE)
    kinds: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "kinds", "kind of student", KINDS)
        if self.share >= 1:
            raise ValueError(f"--share is {self.share}: give less than 1, for images without labels have the rest.")
        if self.ema_decay is not None:
            raise ValueError("--ema-decay has no use here, where the moving average has --decay: leave it out.")


SMALL = {**SMOKE, "name": "mean-teacher-smoke", "student": "mlp", "labels": 2, "kinds": ("mean-teacher",)}


def open_rows(config, train):
    """The few labelled images, and all images with copies of the labelled ones, of which `is_labelled` tells."""
    few = draw_labels(train, config.labels, config.seed, "--labels")
    times = max(1, round(config.share / (1 - config.share) * train.size / few.size))
    return few, data.join_tasks(labelled=data.repeated(few, times), unlabelled=train)


def add_students(comparison, name, source, term, steps):
    """Rows of students and of their moving averages, which are the teachers of `term`."""
    config, student = comparison.config, comparison.student
    optimizer = comparison.optimizer(steps)
    state = train_phase(
        comparison.context,
        name,
        source,
        student=student,
        objective=lambda: (term, optimizer),
        points=students.grid(seed=range(config.seeds)),
        steps=steps,
        every=steps,
        key=jax.random.key(config.seed),
        teacher=models.reading(student, image="teacher_image"),
        mean_teacher=objectives.warm_decay(config.decay),
        **QUIET,
    )
    kept = sorted(set(range(config.seeds)) - set(comparison.context.run.lost[name]))
    for what, variables in (("student", variables_of(state)), ("average", state.ema)):
        each = [students.pick_student(variables, seed) for seed in kept]
        size = sum(map(models.count_parameters, each[:1]))
        comparison.trials.add(f"{name}, {what}", list(map(comparison.scorer(student), each)), parameters=size)


def procedure(config, run, logger, plan) -> None:
    comparison = compare(config, run, logger, plan)
    two_views = augment.two_views(comparison.context.train_prepare, teacher_image="image")
    context = comparison.context._replace(train_prepare=two_views)
    few, rows = open_rows(config, comparison.train)
    size = comparison.train.size
    comparison = dataclasses.replace(
        comparison, context=context, train=few, trials=comparison.trials._replace(context=context)
    )
    steps = comparison.updates(config.epochs, rows)
    label = objectives.from_labels(losses.cross_entropy, where="is_labelled")

    # 1. The few labels alone: the floor, a large teacher, students.
    comparison.add_floor()
    long = comparison.updates(config.teacher_epochs, rows)
    known = comparison.trials.fit(
        "teacher", few, comparison.teacher, comparison.label, comparison.optimizer(long), long
    )
    score = comparison.scorer(comparison.teacher)(known)
    comparison.trials.add("teacher", score, parameters=models.count_parameters(known))
    if "alone" in config.kinds:
        add_students(comparison, "alone", few, comparison.label, steps)

    # 2. All images, which the large teacher or the moving average teaches.
    if "distilled" in config.kinds:
        kd = objectives.from_logits(losses.kd, temperature=config.temperature)
        term = objectives.weighted(label=(config.alpha, label), kd=(1 - config.alpha, kd))
        given = {"teacher": comparison.teacher, "teacher_variables": known}
        comparison.teach("distilled", term, source=rows, **given)
    if "mean-teacher" in config.kinds:
        rise = objectives.sigmoid_ramp(max(1, steps // 3), end=config.consistency)
        pull = objectives.from_logits(losses.kd, temperature=1.0)
        add_students(comparison, "mean-teacher", rows, objectives.weighted(label=label, pull=(rise, pull)), steps)

    # 3. The labels of all images.
    if "all-labels" in config.kinds:
        add_students(comparison, "all-labels", rows, comparison.label, steps)
    labels = f"{few.size} of {size} images have a label, {steps} updates"
    comparison.conclude(title=f"{comparison.test.name}: {labels}, {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
