"""ImageNet: ResNet-34 -> ResNet-18 and ResNet-50 -> MobileNetV1, by the usual recipe or by the patient one.

    python experiments/imagenet.py --source imagenet2012 --teacher-file resnet34.pth --method dkd --resident
    python experiments/imagenet.py --source folder:imagenet --validation-split val --teacher resnet50 \
        --student mobilenetv1_100 --teacher-file resnet50.safetensors --recipe patient --epochs 1200

"standard": 100 epochs of 256 images a step, SGD from 0.1 with a tenth of it after 30, 60 and 90, labels and a method of
`_methods.py`. "patient" (function matching): the teacher's probabilities alone, T = 1, on blends of pictures that both
see alike, as long as you can wait; Adam with warm-up, cosine, clipping and decoupled weight decay. Pictures become
squares, from which windows are cut undistorted on the device; what is measured is the middle of the pictures.
"""

import dataclasses
from typing import Annotated, Literal

import _methods
import jax
import numpy as np
import optax
import tyro
from _pair import describe

from jaxkd import augment, data, losses, metrics, models, objectives, parallel, pytorch, reports
from jaxkd.experiment.cli import check_positive
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import Evaluator
from jaxkd.experiment.flags import StepOptions
from jaxkd.experiment.launch import launch
from jaxkd.experiment.trainer import train_phase
from jaxkd.parallel import processes
from jaxkd.runs.logger import read_metrics
from jaxkd.train import optimizers

NETWORKS = {**pytorch.CIFAR100_BENCHMARK, **pytorch.TIMM, **pytorch.TORCHVISION}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "imagenet"  # the run's folder
    root: str = "runs"  # where the folders of all runs are
    source: str = "imagenet2012"  # a TFDS name, a prepared folder, folder:PATH of pictures; "fake" for random ones
    data_dir: str | None = None  # where TFDS keeps its data; its own default if None
    train_split: str = "train"  # what is learnt from
    validation_split: str = "validation"  # what is measured after each epoch
    teacher: str = "resnet34"  # by torchvision's names, or else by timm's
    student: str = "resnet18"  # likewise: mobilenetv1_100, ...
    teacher_file: str | None = None  # its PyTorch weights (.pth, .safetensors, .npz)
    recipe: Literal["standard", "patient"] = "standard"  # see above
    method: str = "kd"  # of the standard recipe, by the names of `_methods.py`
    epochs: int = 100  # of the student
    batch_size: int = 256  # examples a step
    learning_rate: float | None = None  # 0.1 for the standard recipe and 0.03 for the patient one if None
    weight_decay: float | None = None  # 1e-4 and 3e-4 if None
    image_size: int = 224  # of the crops
    resize: int = 256  # of the pictures before they are cropped
    training: Annotated[StepOptions, tyro.conf.arg(name="")] = dataclasses.field(default_factory=StepOptions)
    seed: int = 0  # of everything
    wandb: bool = False  # log to Weights & Biases as well


SMALL = dict(
    name="imagenet-smoke",
    source="fake",
    epochs=1,
    batch_size=8,
    image_size=32,
    resize=40,
    teacher="resnet8",
    student="resnet8",
    validation_split="train",
)


def fake(config):
    """Random pictures of ten classes."""
    random = np.random.default_rng(0)
    size = (2 * config.batch_size, config.resize, config.resize, 3)
    return {"image": random.integers(0, 256, size).astype(np.uint8), "label": np.arange(size[0]) % 10}


def trained_for(config, pair, steps):
    """Term and optimizer of the recipe."""
    patient = config.recipe == "patient"
    rate = config.learning_rate or (0.03 if patient else 0.1)
    decay = config.weight_decay if config.weight_decay is not None else (3e-4 if patient else 1e-4)
    if not patient:
        drops = {round(steps * share): 0.1 for share in (0.3, 0.6, 0.9)}
        sgd = optax.sgd(optax.piecewise_constant_schedule(rate, drops), momentum=0.9)
        return _methods.objective(config.method, pair), optax.chain(optax.add_decayed_weights(decay), sgd)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(5000, steps // 10), steps)
    adam = optax.scale_by_adam(mu_dtype="bfloat16")
    decayed = optax.add_decayed_weights(decay / rate, mask=optimizers.kernels_only)
    moves = (adam, decayed, optax.scale_by_learning_rate(lambda step: rate * shape(step)))
    return objectives.from_logits(losses.kd, temperature=1.0), optax.chain(optax.clip_by_global_norm(1.0), *moves)


def procedure(config, run, logger, plan) -> None:
    check_positive(config, "epochs", "batch_size", "image_size", "resize")
    _methods.chosen((config.teacher, config.student), (config.method,), networks=NETWORKS)
    if config.teacher_file is None and config.source != "fake":
        raise ValueError("there is no --teacher-file: give the PyTorch weights of the teacher.")
    spec = fake(config) if config.source == "fake" else config.source
    wanted = ((config.train_split, "stretch"), (config.validation_split, "crop"))
    full, validation = (
        data.open_source(spec, split, data_dir=config.data_dir, image_size=config.resize, fit=fit)
        for split, fit in wanted
    )
    scaled = (augment.to_float(), augment.normalize(MEAN, STD))
    crop = augment.compose(scaled[0], augment.random_resized_crop(config.image_size), augment.flip(), scaled[1])
    mix = augment.mixup(full.num_classes, alpha=1.0) if config.recipe == "patient" else None
    noisy = augment.augment_batch(crop, seed=config.seed, mix=mix)
    clean = augment.augment_batch(augment.compose(augment.center_crop(config.image_size), *scaled), seed=config.seed)
    setting = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config.training)
    big, small = (
        models.with_head(NETWORKS[name].make(full.num_classes, axis_name=parallel.DATA))
        for name in (config.teacher, config.student)
    )
    example = clean(data.eval_batches(full, 8)[0])
    rules, key = NETWORKS[config.teacher].rules, jax.random.key(config.seed)
    known = (
        pytorch.import_weights(big, rules, pytorch.read_tensors(config.teacher_file), example)
        if config.teacher_file
        else jax.jit(big.init)(key, example)
    )
    epoch = data.steps_per_epoch(full, setting.batch_of(full))
    pair = describe(
        (config.teacher, config.student), (big, small), known, example, examples=len(full), steps=config.epochs * epoch
    )
    small = small if config.recipe == "patient" else _methods.METHODS[config.method].around(pair, small)
    measure = Evaluator(setting, small, metrics.DISTILLATION, teacher=big, teacher_variables=known)
    train_phase(
        setting,
        "student",
        full,
        student=small,
        objective=trained_for(config, pair, pair.steps),
        steps=pair.steps,
        key=key,
        teacher=big,
        teacher_variables=known,
        validation=(measure, validation),
        every=epoch,
    )
    if processes.is_first():
        found = reports.last_and_best(read_metrics(run.path))["student"]
        row = {"network": config.student, **{k: reports.mean_std(found[k], scale=100) for k in ("last", "best")}}
        reports.show(reports.table([row], list(row), title=f"{config.teacher} -> {config.student}, {config.recipe}"))
        run.finish({"table": [row]})


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
