"""ImageNet: ResNet-34 -> ResNet-18 and ResNet-50 -> MobileNetV1, by the standard recipe or by function matching.

    python experiments/vision/imagenet.py --teacher-file resnet34.pth --method dkd --resident
    python experiments/vision/imagenet.py --source folder:imagenet --validation-split val --teacher resnet50 \\
        --student mobilenetv1_100 --teacher-file resnet50.safetensors --recipe patient --epochs 1200

"standard": 100 epochs of 256 images per step, SGD from 0.1 with a tenth of it after 30, 60 and 90, labels and a method
of `jaxkd/experiment/methods/table.py`. "patient": function matching, which trains on the teacher's probabilities alone
(T = 1), on blends of images that both networks see, for as long as possible; Adam with warm-up, cosine, clipping and
decoupled weight decay. Training images become squares of --resize pixels, of which random windows are cut on the
device; evaluation reads the middle of each image.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np
import optax

from jaxkd import augment, data, experiment, losses, metrics, objectives, reports
from jaxkd.experiment import (
    DATA,
    NETWORKS,
    TRAINING,
    Context,
    Evaluator,
    check_choice,
    check_file,
    conclude,
    flag,
    launch,
    methods,
    train_phase,
)
from jaxkd.experiment.domains import NON_NEGATIVE, POSITIVE, SIDE
from jaxkd.experiment.images import check_held_out, check_images, check_networks, first_rows, to_unit
from jaxkd.experiment.networks import LARGE_IMAGES, make_network, read_teacher
from jaxkd.train import optimizers

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLUMNS = {"network": "network", "last": "last epoch %", "best": "best epoch %"}


@dataclasses.dataclass(frozen=True)
class Config(experiment.ImageConfig):
    networks = LARGE_IMAGES
    name: str = "imagenet"
    source: str = flag("imagenet2012", "data set: a TFDS name, folder:PATH of images, or fake for random ones", DATA)
    validation_split: str = flag("validation", "split that is evaluated after each epoch", DATA)
    image_size: int = flag(224, "height and width of the networks' input, in pixels", DATA, SIDE)
    resize: int = flag(256, "height and width of an image before a window is cut, in pixels", DATA, SIDE)
    teacher: str = flag("resnet34", "teacher, by torchvision's name or else timm's", NETWORKS)
    student: str = flag("resnet18", "student, by torchvision's name or else timm's, such as mobilenetv1_100", NETWORKS)
    teacher_file: str | None = flag(None, "PyTorch weights of the teacher: .pth, .safetensors or .npz", NETWORKS)
    recipe: Literal["standard", "patient"] = flag("standard", "recipe of the training, see above", TRAINING)
    method: str = flag("kd", "distillation method of the standard recipe", TRAINING)
    batch_size: int = 256
    learning_rate: float | None = flag(None, "first rate; 0.1 (standard) or 0.03 if absent", TRAINING, POSITIVE)
    weight_decay: float | None = flag(None, "weight decay; 1e-4 or 3e-4 if absent", TRAINING, NON_NEGATIVE)

    def check(self) -> None:
        """Checks names and the teacher's file before the run's folder is made."""
        super().check()
        check_choice(self, "method", "method", methods.METHODS)
        check_file(self, "teacher_file")
        if self.teacher_file is None and self.source != "fake":
            raise ValueError("there is no --teacher-file: give the PyTorch weights of the teacher.")
        if self.resize < self.image_size:
            raise ValueError(f"--resize is {self.resize} but --image-size {self.image_size}: give at least as much.")


SMALL = dict(
    name="imagenet-smoke",
    source="fake",
    epochs=1,
    batch_size=8,
    image_size=16,
    resize=20,
    teacher="tiny",
    student="tiny",
)


def fake(config):
    """Random images of ten classes, the same ones to train and to evaluate on."""
    size = (2 * config.batch_size, config.resize, config.resize, 3)
    fields = {"image": np.random.default_rng(0).integers(0, 256, size, np.uint8), "label": np.arange(size[0]) % 10}
    return {f"{split}_{name}": x for split in ("train", "validation") for name, x in fields.items()}


def objective_of(config, pair):
    """Term and optimizer of the recipe."""
    patient, steps = config.recipe == "patient", pair.steps
    rate = (0.03 if patient else 0.1) if config.learning_rate is None else config.learning_rate
    decay = (3e-4 if patient else 1e-4) if config.weight_decay is None else config.weight_decay
    if not patient:
        drops = {round(steps * part): 0.1 for part in (0.3, 0.6, 0.9)}
        sgd = optax.sgd(optax.piecewise_constant_schedule(rate, drops), momentum=0.9)
        return methods.objective(config.method, pair), optax.chain(optax.add_decayed_weights(decay), sgd)
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, min(5000, steps // 10), steps)
    adam = optax.scale_by_adam(mu_dtype="bfloat16")
    decayed = optax.add_decayed_weights(decay / rate, mask=optimizers.kernels_only)
    moves = (adam, decayed, optax.scale_by_learning_rate(lambda step: rate * shape(step)))
    return objectives.from_logits(losses.kd, temperature=1.0), optax.chain(optax.clip_by_global_norm(1.0), *moves)


def procedure(config, run, logger, plan) -> None:
    spec = fake(config) if config.source == "fake" else config.source
    full, validation = (
        data.open_source(spec, split, data_dir=config.data_dir, image_size=config.resize, fit=fit)
        for split, fit in ((config.train_split, "stretch"), (config.validation_split, "crop"))
    )
    check_images(config, full, validation)
    check_held_out(full, validation)
    scale, normalize = to_unit(full), augment.normalize(MEAN, STD)
    crop = augment.compose(scale, augment.random_resized_crop(config.image_size), augment.flip(), normalize)
    mix = augment.mixup(full.num_classes, alpha=1.0) if config.recipe == "patient" else None
    noisy = augment.augment_batch(crop, seed=config.seed, mix=mix)
    middle = augment.compose(augment.center_crop(config.image_size), scale, normalize)
    clean = augment.augment_batch(middle, seed=config.seed)
    context = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config)
    teacher, student = (make_network(name, full.num_classes, LARGE_IMAGES) for name in (config.teacher, config.student))
    example, key = clean(first_rows(full, 8)), jax.random.key(config.seed)
    check_networks(config, teacher, student, example)
    epoch, names = data.steps_per_epoch(full, context.batch_of(full)), (config.teacher, config.student)
    counts = dict(examples=len(full), steps=config.epochs * epoch)
    if config.recipe == "standard":
        methods.check_methods("--method", [config.method], names, teacher, student, example, **counts)
    if config.teacher_file is None:
        teacher_variables = jax.jit(teacher.init)(key, example)
    else:
        teacher_variables = read_teacher(config, teacher, example)
    pair = methods.describe(names, teacher, student, teacher_variables, example, **counts)
    if config.recipe == "standard":
        student = methods.METHODS[config.method].wrap(pair, student)
    with_teacher = dict(teacher=teacher, teacher_variables=teacher_variables)
    evaluator = Evaluator(context, student, metrics.DISTILLATION, **with_teacher)
    train_phase(
        context,
        "student",
        full,
        student=student,
        objective=objective_of(config, pair),
        steps=pair.steps,
        key=key,
        validation=(evaluator, validation),
        every=epoch,
        **with_teacher,
    )

    def rows(found):
        own = {kind: reports.mean_std(found["student"][kind], scale=100) for kind in ("last", "best")}
        return [{"network": config.student} | own]

    conclude(run, rows, COLUMNS, title=f"{' -> '.join(names)}, {config.recipe}")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
