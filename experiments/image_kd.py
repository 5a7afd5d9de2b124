"""Teacher and student by name, on any image source: train the teacher, distil, compare with the student alone.

    python experiments/image_kd.py --source fashion_mnist --teacher resnet32 --student resnet8
    python experiments/image_kd.py --source npz:cifar100_{split}.npz --epochs 60 --crop 4 --flip

Interrupt it with Ctrl-C and run the same command to go on. The last slice of the training split is the validation
split; the test split is read once, at the end.
"""

import dataclasses
import functools

import jax
import optax

from jaxkd import augment, data, losses, metrics, models, objectives, parallel, processes, report
from jaxkd.cli import check_positive
from jaxkd.log import read_metrics
from jaxkd.stage import Measure, Setting, launch, train_stage, variables_of

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
    crop: int = 0  # padding of the random crop, in pixels
    flip: bool = False  # flip images left to right at random
    skip_nonfinite: bool = False  # leave updates with a NaN or an infinity out and count them, instead of stopping
    seed: int = 0  # of everything
    wandb: bool = False  # log to Weights & Biases as well


SMALL = dict(name="image-kd-smoke", teacher="convnet", student="mlp", epochs=1, batch_size=32, learning_rate=0.01,
             train_split="train[:96]", validation_split="train[96:128]", test_split="test[:64]")  # fmt: skip
COLUMNS = {key: header for key, header in report.RESULTS.items() if key != "labels"}


def procedure(config, run, logger, plan) -> None:
    check_positive(config, "epochs", "batch_size")
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
    setting = Setting(run, logger, plan, config.seed, config.batch_size, noisy, clean,
                      {"skip_nonfinite": config.skip_nonfinite})  # fmt: skip
    big, small = NETWORKS[config.teacher](full.num_classes), NETWORKS[config.student](full.num_classes)
    epoch = data.steps_per_epoch(full, min(config.batch_size, len(full)))

    def train(name, model, measure, term, **options):
        steps = config.epochs * epoch
        optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(optax.cosine_decay_schedule(config.learning_rate, steps), momentum=0.9),
        )
        state = train_stage(setting, name, full, student=model, objective=(term, optimizer), steps=steps,
                            key=jax.random.key(config.seed), validation=(measure, validation), every=epoch,
                            **options)  # fmt: skip
        variables = variables_of(state)
        found = metrics.values(measure(state, test))
        rows.append(report.result(f"{name}: {names[model]}", found, parameters=models.count_parameters(variables)))
        return variables

    rows, names = [], {big: config.teacher, small: config.student}
    on_labels = objectives.from_labels(losses.cross_entropy)
    on_both = objectives.weighted(
        label=(config.alpha, on_labels),
        kd=(1 - config.alpha, objectives.from_logits(losses.kd, temperature=config.temperature)),
    )
    teacher = train("teacher", big, Measure(setting, big, metrics.CLASSIFICATION), on_labels)
    measure = Measure(setting, small, metrics.DISTILLATION, teacher=big, teacher_variables=teacher)
    train("alone", small, measure, on_labels)
    train("distilled", small, measure, on_both, teacher=big, teacher_variables=teacher)
    if processes.is_first():
        report.show(report.table(rows, COLUMNS, title=f"{test.name}: {len(test):,} images, one seed"))
        run.finish({"table": rows, "validation": report.last_and_best(read_metrics(run.path))})
        print(f"metrics and checkpoints are in {run.path}")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
