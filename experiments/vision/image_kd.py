"""Teacher and student by name, on any image source: train the teacher, distil, compare with the student alone.

    python experiments/image_kd.py --source fashion_mnist --teacher resnet32 --student resnet8
    python experiments/image_kd.py --source npz:cifar100_{split}.npz --epochs 60 --crop 4 --flip
    python experiments/image_kd.py --seeds 4 --grid temperature=1,2,4,8 --form fastest --at-once 20 --resident

Interrupt it with Ctrl-C and run the same command to go on. The last slice of the training split is the validation
split; the test split is read once, at the end.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import optax
import tyro

from jaxkd import augment, data, losses, metrics, models, objectives, parallel, reports
from jaxkd.experiment.cli import check_positive, parse_grid
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.flags import StepOptions
from jaxkd.experiment.launch import launch
from jaxkd.experiment.teachers import Keep, cached_teacher
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.parallel import processes
from jaxkd.runs.logger import read_metrics
from jaxkd.train import students

NETWORKS = {
    "mlp": lambda classes: models.mlp(classes, hidden=(128,)),
    "convnet": functools.partial(models.convnet, axis_name=parallel.DATA),
    **{
        f"resnet{d}": functools.partial(models.resnet, depth=d, axis_name=parallel.DATA)
        for d in (8, 14, 20, 32, 44, 56, 110)
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "image-kd"  # the run's folder
    root: str = "runs"  # where the folders of all runs are
    source: str = "fashion_mnist"  # a TFDS name, a prepared TFDS folder, or npz:PATH (with {split} in it, if need be)
    data_dir: str | None = None  # where TFDS keeps its data; its own default if None
    train_split: str = "train[:90%]"  # what is learnt from
    validation_split: str = "train[90%:]"  # what is looked at meanwhile
    test_split: str = "test"  # what is read once, at the end
    image_size: int | None = None  # resize images to this height and width
    teacher: str = "resnet20"  # one of: mlp, convnet, resnet8, 14, 20, 32, 44, 56, 110
    student: str = "resnet8"  # likewise
    epochs: int = 30  # of the teacher and of the students
    batch_size: int = 128  # examples a step
    learning_rate: float = 0.1  # of SGD with momentum 0.9, decayed along a cosine
    weight_decay: float = 5e-4  # added to the gradient
    temperature: float = 4.0  # T
    alpha: float = 0.1  # weight of the labels; the soft labels have the rest
    seeds: int = 1  # students of each kind, trained at once
    grid: tuple[str, ...] = ()  # distilled students to compare, such as temperature=1,2,4 learning_rate=0.05,0.1
    crop: int = 0  # padding of the random crop, in pixels
    flip: bool = False  # flip images left to right at random
    cache: Keep = "none"  # compute the teacher's logits once: the "full" ones, or the top so many classes
    views: int | None = None  # views of an image that distilled students see; a new one every epoch if None
    training: Annotated[StepOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=StepOptions)
    seed: int = 0  # of everything
    wandb: bool = False  # log to Weights & Biases as well


SMALL = dict(
    name="image-kd-smoke",
    teacher="convnet",
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


def procedure(config, run, logger, plan) -> None:
    check_positive(config, "epochs", "batch_size", "seeds")
    for name in (config.teacher, config.student):
        if name not in NETWORKS:
            raise ValueError(f"there is no network {name!r}: choose one of {', '.join(NETWORKS)}.")
    splits = (config.train_split, config.validation_split, config.test_split)
    options = {"data_dir": config.data_dir, "image_size": config.image_size}
    full, validation, test = (data.in_memory(data.open_source(config.source, s, **options)) for s in splits)
    clean = augment.compose(augment.to_float(), augment.normalize(*data.statistics(full)))
    moves = [augment.random_crop(config.crop)] * bool(config.crop) + [augment.flip()] * config.flip
    noisy = augment.augment_batch(augment.compose(*moves, clean), seed=config.seed)
    clean = augment.augment_batch(clean, seed=config.seed)
    setting = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config.training)
    big, small = NETWORKS[config.teacher](full.num_classes), NETWORKS[config.student](full.num_classes)
    epoch, rows = data.steps_per_epoch(full, setting.batch_of(full)), []

    def objective(make_term, **point):
        given = dataclasses.replace(config, **point)
        schedule = optax.cosine_decay_schedule(given.learning_rate, config.epochs * epoch)
        sgd = optax.sgd(schedule, momentum=0.9)
        return make_term(given), optax.chain(optax.add_decayed_weights(given.weight_decay), sgd)

    def train(name, model, measure, make_term, points=None, source=full, **options):
        make = functools.partial(objective, make_term)
        state = train_phase(
            setting,
            name,
            source,
            student=model,
            objective=make() if points is None else make,
            points=points,
            steps=config.epochs * epoch,
            key=jax.random.key(config.seed),
            validation=(measure, validation),
            every=epoch,
            **options,
        )
        found, variables = metrics.values(measure(state, test)), variables_of(state)
        parameters = models.count_parameters(variables) // (1 if points is None else len(points["seed"]))
        for label, part in reports.by_point(found, points):
            rows.append(reports.result(f"{name}{label}: {names[model]}", part, parameters=parameters))
        return variables

    def both(given):
        kd = objectives.from_logits(losses.kd, temperature=given.temperature)
        return objectives.weighted(label=(given.alpha, on_labels), kd=(1 - given.alpha, kd))

    on_labels, names = objectives.from_labels(losses.cross_entropy), {big: config.teacher, small: config.student}
    teacher = train("teacher", big, Evaluator(setting, big, metrics.CLASSIFICATION), lambda given: on_labels)
    measure = Evaluator(setting, small, metrics.DISTILLATION, stacked=True, teacher=big, teacher_variables=teacher)
    train("alone", small, measure, lambda given: on_labels, students.grid(seed=range(config.seeds)))
    points = students.grid(**parse_grid(config.grid, SWEPT), seed=range(config.seeds))
    views, keep = config.views or config.epochs, config.cache
    seen, read, known = cached_teacher(setting, full, big, teacher, views=views, keep=keep)
    train("distilled", small, measure, both, points, source=seen, teacher=read, teacher_variables=known)
    if processes.is_first():
        reports.show(reports.table(rows, COLUMNS, title=f"{test.name}: {len(test):,} images, {config.seeds} seed(s)"))
        run.finish({"table": rows, "validation": reports.last_and_best(read_metrics(run.path))})
        print(f"metrics and checkpoints are in {run.path}")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
