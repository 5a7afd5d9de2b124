"""Transfer: a teacher pre-trained on one data set helps students on another, with other classes and few labels.

    python experiments/transfer.py --target cifar10 --per-class 50 --seeds 3
    python experiments/transfer.py --source npz:cifar100_{split}.npz --source-classes 80 --target-classes 20

Compared on the target's test split, which is read once: the teacher with a new last layer, all else frozen, or thawed
gradually; a student alone, one that follows the pre-trained teacher's maps (label sets may differ), one distilled from
the thawed teacher's logits, one from both. One data set can serve as both, by its first and its last classes.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import optax
import tyro
from _transfer import COLUMNS, STAGES, last_layer, opened, sgd, thawing

from jaxkd import augment, data, losses, metrics, models, objectives, parallel, reports
from jaxkd.experiment.cli import check_positive
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.flags import StepOptions
from jaxkd.experiment.launch import launch
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.parallel import processes
from jaxkd.pytorch import CIFAR100_BENCHMARK
from jaxkd.runs.logger import read_metrics
from jaxkd.train import students


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "transfer"  # the run's folder
    root: str = "runs"  # where the folders of all runs are
    source: str = "cifar100"  # what the teacher is pre-trained on: a TFDS name, a prepared folder, or npz:PATH
    target: str | None = None  # what the students are for; the source if None
    data_dir: str | None = None  # where TFDS keeps its data; its own default if None
    image_size: int | None = None  # resize images to this height and width
    source_classes: int | None = None  # use the first so many classes of the source
    target_classes: int | None = None  # use the last so many classes of the target
    source_split: str = "train"  # of the source
    target_split: str = "train[:90%]"  # of the target, from which the labels are drawn
    validation_split: str = "train[90%:]"  # of the target, looked at meanwhile
    test_split: str = "test"  # of the target, read once at the end
    per_class: int = 50  # labels of each class of the target
    teacher: str = "resnet20"  # by the names of the CIFAR-100 benchmark
    student: str = "resnet8"  # likewise
    pretrain_epochs: int = 60  # on the source
    epochs: int = 100  # on the few labels
    batch_size: int = 64  # examples a step
    learning_rate: float = 0.05  # of SGD with momentum, along a cosine
    temperature: float = 4.0  # T of the soft labels
    maps: float = 100.0  # weight of attention transfer between the stages
    flip: bool = True  # flip images left to right at random
    students: tuple[str, ...] = ("alone", "by-maps", "by-logits", "by-both")  # which kinds
    seeds: int = 1  # students of each kind, trained at once
    training: Annotated[StepOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=StepOptions)
    seed: int = 0  # of everything
    wandb: bool = False  # log to Weights & Biases as well


SMALL = dict(
    name="transfer-smoke",
    students=("by-both",),
    teacher="resnet8",
    student="resnet8",
    pretrain_epochs=1,
    epochs=1,
    per_class=4,
    batch_size=8,
    source_split="train[:32]",
    test_split="test[:32]",
)


def procedure(config, run, logger, plan) -> None:
    check_positive(config, "per_class", "pretrain_epochs", "epochs", "batch_size", "seeds")
    if unknown := set(config.students) - set(Config.students):
        raise ValueError(f"there are no students {sorted(unknown)}: choose from {', '.join(Config.students)}.")
    pretrain, few, validation, test = opened(config)
    clean = augment.compose(augment.to_float(), augment.normalize(*data.statistics(pretrain)))
    moves = [augment.random_crop(4), *[augment.flip()] * config.flip, clean]
    noisy = augment.augment_batch(augment.compose(*moves), seed=config.seed)
    clean, key, rows = augment.augment_batch(clean, seed=config.seed), jax.random.key(config.seed), []
    setting = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config.training)
    big, tuned, small = (
        models.with_head(CIFAR100_BENCHMARK[name].make(source.num_classes, axis_name=parallel.DATA))
        for name, source in ((config.teacher, pretrain), (config.teacher, few), (config.student, few))
    )

    measures = functools.cache(lambda model, many: Evaluator(setting, model, metrics.CLASSIFICATION, stacked=many))

    def fit(name, model, term, make=sgd, source=few, seeds=None, **options):
        """Variables after a stage; its row of the table, if it is about the target."""
        epochs = config.epochs if source is few else config.pretrain_epochs
        steps = epochs * data.steps_per_epoch(source, setting.batch_of(source))
        rate, points = optax.cosine_decay_schedule(config.learning_rate, steps), seeds and students.grid(seed=seeds)
        measure = measures(model, points is not None)
        update = make(rate, steps) if make is thawing else make(rate)
        objective = (term, update) if points is None else lambda: (term, update)
        state = train_phase(
            setting,
            name,
            source,
            student=model,
            objective=objective,
            steps=steps,
            points=points,
            every=max(1, steps // 5),
            key=key,
            validation=(measure, validation) if source is few else None,
            **options,
        )
        if source is few:
            parameters = models.count_parameters(variables_of(state)) // (1 if points is None else len(seeds))
            rows.append(
                reports.result(name, metrics.values(measure(state, test)), parameters=parameters, labels=len(few))
            )
        return variables_of(state)

    label, many = objectives.from_labels(losses.cross_entropy), range(config.seeds) if config.seeds > 1 else None
    stages = [objectives.features_of(side, STAGES) for side in ("student", "teacher")]
    maps = (config.maps, objectives.from_outputs(losses.attention_transfer, *stages, as_released=True))
    soft = (0.9, objectives.from_logits(losses.kd, temperature=config.temperature))
    known = fit("pre-trained", big, label, source=pretrain)
    start = models.inherit(models.init(tuned, key, clean(data.eval_batches(few, 8)[0])), known)
    fit("teacher-last-layer", tuned, label, last_layer, start=start)
    taught = fit("teacher-thawed", tuned, label, thawing, start=start)
    before, after = ({"teacher": model, "teacher_variables": v} for model, v in ((big, known), (tuned, taught)))
    kinds = {
        "alone": (label, {}),
        "by-maps": (objectives.weighted(label=label, maps=maps), before),
        "by-logits": (objectives.weighted(label=(0.1, label), kd=soft), after),
        "by-both": (objectives.weighted(label=(0.1, label), kd=soft, maps=maps), after),
    }
    for kind in config.students:
        fit(kind, small, kinds[kind][0], seeds=many, **kinds[kind][1])
    if processes.is_first():
        reports.show(reports.table(rows, COLUMNS, title=f"{test.name}: {len(test):,} images, {config.seeds} seed(s)"))
        run.finish({"table": rows, "validation": reports.last_and_best(read_metrics(run.path))})
        print(f"metrics and checkpoints are in {run.path}")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
