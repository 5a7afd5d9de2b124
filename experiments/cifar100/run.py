"""The CIFAR-100 distillation benchmark: any of its pairs, any method, beside the published figures.

    python experiments/cifar100.py --teacher resnet56 --student resnet20 --methods kd at crd --seeds 3
    python experiments/cifar100.py --table --seeds 3 --resident --at-once 71       (the methods that others measured)
    python experiments/cifar100.py --source npz:cifar100_{split}.npz --teacher-file resnet56.pth --epochs 30

The recipe is in `_benchmark.py`, what others measured in `_published.py`, losses in `_methods.py`. As others do,
students are measured on the test images after each epoch; nothing is chosen by them but the best epoch, which stands
beside the last one because later work reports it. Seeds differ in the initial weights. Methods with two stages (ab,
fsp, ft) have 30 epochs before, which the seconds leave out. A method that diverges is marked; the others go on.
"""

import dataclasses
import functools
import time
from typing import Annotated

import _benchmark
import _methods
import jax
import tyro
from _pair import describe
from _terms import begin

from jaxkd import data, metrics, models, parallel, pytorch
from jaxkd.experiment.cli import check_positive
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.flags import StepOptions
from jaxkd.experiment.launch import launch
from jaxkd.experiment.teachers import Keep, cached_teacher
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.parallel import processes
from jaxkd.runs.divergence import DivergenceError, NonFiniteError
from jaxkd.train import students


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "cifar100"  # the run's folder
    root: str = "runs"  # where the folders of all runs are
    source: str = "cifar100"  # a TFDS name, a prepared TFDS folder, or npz:PATH (with {split} in it, if need be)
    data_dir: str | None = None  # where TFDS keeps its data; its own default if None
    train_split: str = "train"  # what is learnt from
    test_split: str = "test"  # what is measured after each epoch
    teacher: str = "resnet56"  # by the benchmark's names: resnet56, wrn_40_2, vgg13, ResNet50, ...
    student: str = "resnet20"  # likewise: MobileNetV2, ShuffleV1, ...
    teacher_file: str | None = None  # PyTorch weights of the teacher (.pth, .safetensors, .npz); trained here if None
    methods: tuple[str, ...] = ("kd",)  # what students are trained by, besides one alone
    table: bool = False  # all methods that others measured for the pair, instead
    epochs: int = 240  # of the students, and of the teacher
    batch_size: int = 64  # examples a step
    learning_rate: float | None = None  # of SGD at the start; the benchmark's for the student if None
    weight_decay: float = 5e-4  # added to the gradient
    seeds: int = 1  # students of each kind, trained at once beside one teacher
    cache: Keep = (
        "none"  # compute the teacher's logits once, for methods that read nothing else: "full" or the top so many
    )
    views: int | None = None  # views of an image that those students see; a new one every epoch if None
    training: Annotated[StepOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=StepOptions)
    seed: int = 0  # of everything
    wandb: bool = False  # log to Weights & Biases as well


SMALL = dict(
    name="cifar100-smoke",
    teacher="resnet8",
    student="resnet8",
    epochs=1,
    batch_size=16,
    methods=("at",),
    train_split="train[:32]",
    test_split="test[:32]",
)


def procedure(config, run, logger, plan) -> None:
    check_positive(config, "epochs", "batch_size", "seeds")
    methods = _methods.chosen((config.teacher, config.student), config.methods, table=config.table)
    seconds, lost = {}, {}
    full, test = (
        data.in_memory(data.open_source(config.source, split, data_dir=config.data_dir))
        for split in (config.train_split, config.test_split)
    )
    noisy, clean = _benchmark.views(config.seed)
    setting = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config.training)
    big, small = (
        models.with_head(pytorch.CIFAR100_BENCHMARK[name].make(full.num_classes, axis_name=parallel.DATA))
        for name in (config.teacher, config.student)
    )
    epoch = data.steps_per_epoch(full, setting.batch_of(full))
    points = students.grid(seed=range(config.seeds)) if config.seeds > 1 else None

    def train(name, source, model, network, term, measure=None, points=None, before="", **more):
        began = time.perf_counter()
        epochs = _benchmark.share(config.epochs, _benchmark.BEFORE) if before else config.epochs
        rates = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay, "before": before}
        update = _benchmark.optimizer(network, epochs=epochs, steps_per_epoch=epoch, **rates)
        objective = (term, update) if points is None else lambda: (term, update)
        state = train_phase(
            setting,
            name,
            source,
            student=model,
            objective=objective,
            points=points,
            every=epoch,
            steps=epochs * epoch,
            key=jax.random.key(config.seed),
            validation=measure and (measure, test),
            **more,
        )
        seconds[name] = time.perf_counter() - began
        return state

    example = clean(data.eval_batches(full, 128)[0])
    if config.teacher_file is None:
        measure = Evaluator(setting, big, metrics.CLASSIFICATION)
        known = variables_of(train("teacher", full, big, config.teacher, _methods.objective("alone", None), measure))
    else:
        tensors, rules = pytorch.read_tensors(config.teacher_file), pytorch.CIFAR100_BENCHMARK[config.teacher].rules
        known = pytorch.import_weights(big, rules, tensors, example)
    pair = describe(
        (config.teacher, config.student),
        (big, small),
        known,
        example,
        steps=config.epochs * epoch,
        examples=len(full),
        labels=lambda: data.labels_of(full),
    )
    views = config.views or config.epochs
    live = (dataclasses.replace(full, views=views), big, known)
    cached = cached_teacher(setting, *live, views=views, keep=config.cache)
    beside = functools.cache(
        lambda student: Evaluator(
            setting, student, metrics.DISTILLATION, teacher=big, teacher_variables=known, stacked=points is not None
        )
    )
    for name in ("alone", *methods):
        source, teacher, variables = cached if name in _methods.LOGITS else live
        method = _methods.METHODS.get(name, _methods.ALONE)
        student = method.around(pair, small)
        follow = functools.partial(
            train, source=source, model=student, network=config.student, teacher=teacher, teacher_variables=variables
        )
        try:
            own, start = begin(method, name, pair, follow, points)
            follow(name, term=_methods.objective(name, own), measure=beside(student), points=points, start=start)
        except (NonFiniteError, DivergenceError) as error:  # the table says so, and the other methods go on
            lost[name] = str(error)
    if processes.is_first():
        _benchmark.tell(run, config, pair.names, len(full), seconds, lost)


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
