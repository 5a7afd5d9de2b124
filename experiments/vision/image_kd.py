"""Distillation between two networks by name, on any image source, compared with the student alone.

    python experiments/vision/image_kd.py --source fashion_mnist --teacher resnet32 --student resnet8
    python experiments/vision/image_kd.py --source npz:cifar100_{split}.npz --epochs 60 --crop 4 --flip
    python experiments/vision/image_kd.py --seeds 4 --grid temperature=1,2,4,8 --form fastest --at-once 20 --resident

Interrupt it with Ctrl-C and run the same command to go on. The last slice of the training split is the validation
split; each network is evaluated on the test split once, after its training.
"""

import dataclasses
import functools

import jax
import optax

from jaxkd import augment, data, experiment, losses, metrics, models, objectives, parallel, reports
from jaxkd.experiment import (
    DATA,
    TRAINING,
    Context,
    Evaluator,
    cached_teacher,
    conclude,
    flag,
    launch,
    parse_grid,
    train_phase,
    variables_of,
)
from jaxkd.experiment.domains import FRACTION, POSITIVE, TEMPERATURE, WHOLE
from jaxkd.experiment.images import check_networks, first_rows, open_images, prepared
from jaxkd.experiment.networks import SMALL_IMAGES as NETWORKS
from jaxkd.train import students


@dataclasses.dataclass(frozen=True)
class Config(experiment.SweepConfig):
    name: str = "image-kd"
    source: str = "fashion_mnist"
    train_split: str = "train[:90%]"
    validation_split: str = flag("train[90%:]", "split that is evaluated during training", DATA)
    test_split: str = flag("test", "split on which each network is evaluated once, after its training", DATA)
    crop: int = flag(0, "padding of the random crop, in pixels; no crop if 0", DATA, WHOLE)
    flip: bool = flag(False, "flip images left to right at random", DATA)
    teacher: str = "resnet20"
    student: str = "resnet8"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = flag(0.1, "first rate of SGD with momentum 0.9; it falls along a cosine", TRAINING, POSITIVE)
    temperature: float = flag(4.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.1, "weight of the labels; the soft labels have the rest", TRAINING, FRACTION)
    grid: tuple[str, ...] = flag(
        (), "values to compare, such as temperature=1,2,4 alpha=0.1,0.5; also learning_rate, weight_decay", TRAINING
    )

    def check(self) -> None:
        """Checks values, names and the grid before the run's folder is made."""
        super().check()
        parse_grid(self, "grid", SWEPT)


SMALL = dict(
    name="image-kd-smoke",
    teacher="tiny",
    student="mlp",
    epochs=1,
    batch_size=32,
    learning_rate=0.01,
    train_split="train[:96]",
    validation_split="train[96:128]",
    test_split="test[:64]",
)
SWEPT = ("temperature", "alpha", "learning_rate", "weight_decay")
COLUMNS = {key: header for key, header in reports.RESULTS.items() if key != "labels"}


def load(config):
    """Training, validation and test images; how training batches are prepared, and how others are."""
    sources = open_images(config, config.train_split, config.validation_split, config.test_split)
    moves = [augment.random_crop(config.crop)] * bool(config.crop) + [augment.flip()] * config.flip
    return sources, *prepared(sources[0], moves, seed=config.seed)


def procedure(config, run, logger, plan) -> None:
    (full, validation, test), noisy, clean = load(config)
    context = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config)
    big, small = (
        NETWORKS[name].make(full.num_classes, axis_name=parallel.DATA) for name in (config.teacher, config.student)
    )
    check_networks(config, big, small, clean(first_rows(full, 1)))
    epoch, rows = data.steps_per_epoch(full, context.batch_of(full)), []

    def objective(make_term, **point):
        given = dataclasses.replace(config, **point)
        schedule = optax.cosine_decay_schedule(given.learning_rate, config.epochs * epoch)
        sgd = optax.sgd(schedule, momentum=0.9)
        return make_term(given), optax.chain(optax.add_decayed_weights(given.weight_decay), sgd)

    def train(name, model, evaluator, make_term, points=None, source=full, **options):
        """Trains a phase and adds its rows to the table."""
        make = functools.partial(objective, make_term)
        options |= dict(steps=config.epochs * epoch, every=epoch, key=jax.random.key(config.seed))
        options |= dict(validation=(evaluator, validation), objective=make() if points is None else make)
        state = train_phase(context, name, source, student=model, points=points, **options)
        found, variables = metrics.values(evaluator(state, test)), variables_of(state)
        found = reports.without_lost(found, run.lost[name])
        parameters = models.count_parameters(variables) // (1 if points is None else len(points["seed"]))
        for label, part in reports.by_point(found, points):
            rows.append(reports.result(f"{name}{label}: {names[model]}", part, parameters=parameters))
        return variables

    def labels_and_soft_labels(given):
        kd = objectives.from_logits(losses.kd, temperature=given.temperature)
        return objectives.weighted(label=(given.alpha, on_labels), kd=(1 - given.alpha, kd))

    on_labels, names = objectives.from_labels(losses.cross_entropy), {big: config.teacher, small: config.student}
    teacher_variables = train("teacher", big, Evaluator(context, big, metrics.CLASSIFICATION), lambda given: on_labels)
    evaluator = Evaluator(
        context, small, metrics.DISTILLATION, stacked=True, teacher=big, teacher_variables=teacher_variables
    )
    train("alone", small, evaluator, lambda given: on_labels, students.grid(seed=range(config.seeds)))
    points = students.grid(**parse_grid(config, "grid", SWEPT), seed=range(config.seeds))
    source, teacher, teacher_variables = cached_teacher(
        context,
        full,
        big,
        teacher_variables,
        views=config.number_of_views,
        keep=config.cache,
    )
    given = dict(source=source, teacher=teacher, teacher_variables=teacher_variables)
    train("distilled", small, evaluator, labels_and_soft_labels, points, **given)
    title = f"{test.name}: {len(test):,} images, {config.seeds} seed(s)"
    conclude(run, rows, COLUMNS, title=title)


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
