"""Segmentation: pictures with a class for each pixel that the flags opened, and kinds of students."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from jaxkd import augment, data, losses, objectives
from jaxkd.data.boxes import open_boxes
from jaxkd.data.masks import IGNORED
from jaxkd.data.readers.boxes import COLUMNS
from jaxkd.data.splits import SPLITS
from jaxkd.experiment.config import Config, check_choice
from jaxkd.experiment.domains import COUNT, NON_NEGATIVE, POSITIVE, SIDE, TEMPERATURE, WHOLE
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.trials import PERCENT, Column
from jaxkd.types import Prepare, Term

KINDS = ("alone", "kd", "cwd", "cirkd", "skd", "ifvd")
"""Ways to teach a network for segmentation; alone, it has the labels only."""
USUAL = ("alone", "kd", "cwd", "cirkd")
"""That of the default table."""
OF_BLACK_BOX = ("hard", "soft")
"""Ways to learn from a black box's masks: classes of pixels, or probabilities."""
SYNTHETIC = "synthetic"
"""Value of `--pictures` that stands for `synthetic`."""


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(Config):
    """Configuration of an experiment on pictures with a class for each pixel."""

    pictures: str = flag("images.zip", "folder of the pictures; with --boxes also a ZIP archive of them", DATA)
    masks: str | None = flag(
        None, "folder of masks, PNG files with the pictures' names, whose values are classes; else --boxes count", DATA
    )
    boxes: str = flag("csv:boxes.csv", "boxes whose ellipses are weak masks: csv:PATH, coco:PATH or voc:FOLDER", DATA)
    columns: tuple[str, ...] = flag(
        COLUMNS,
        "columns of a CSV file of --boxes: picture, split, class and the edges, in this order; - for none",
        DATA,
    )
    mask_values: tuple[int, ...] = flag((), "values of the masks that stand for the classes 0, 1, ...", DATA, WHOLE)
    class_names: tuple[str, ...] = flag((), "names of the masks' classes", DATA)
    ignored_value: int = flag(IGNORED, "value of the masks of pixels that count nowhere", DATA, WHOLE)
    resize_masks: bool = flag(False, "stretch masks of another size than their picture, instead of refusing them", DATA)
    black_box: str | None = flag(
        None, "network whose masks of --pictures (npz:PATH, folder:PATH, ...) are learnt: litert:PATH, onnx:PATH", DATA
    )
    black_box_size: int = flag(256, "height and width at which the black box sees the pictures, in pixels", DATA, SIDE)
    height: int = flag(72, "height to resize pictures to, in pixels", DATA, SIDE)
    width: int = flag(96, "width to resize pictures to, in pixels", DATA, SIDE)
    teacher_width: int = flag(16, "channels of the teacher's first stage", NETWORKS, COUNT)
    student_width: int = flag(4, "channels of the students' first stage", NETWORKS, COUNT)
    depth: int = flag(3, "stages of the networks, each of half the resolution, at least 2", NETWORKS, COUNT)
    students: tuple[str, ...] = flag(
        (), f"ways to teach: some of {', '.join(KINDS)}, or all; {', '.join(USUAL)} if absent", TRAINING
    )
    teacher_epochs: int = flag(15, "passes of the teacher over the training pictures", TRAINING, COUNT)
    epochs: int = flag(15, "passes of each student over the training pictures", TRAINING, COUNT)
    batch_size: int = 8
    learning_rate: float = flag(4e-3, "highest rate of AdamW in the teacher", TRAINING, POSITIVE)
    student_rate: float = flag(1e-2, "highest rate of AdamW in the students", TRAINING, POSITIVE)
    temperature: float = flag(1.0, "softmax temperature T of the soft labels of pixels", TRAINING, TEMPERATURE)
    kd_weight: float = flag(1.0, "weight of the soft labels of pixels", TRAINING, NON_NEGATIVE)
    cwd_weight: float = flag(3.0, "weight of channel-wise distillation of the logits", TRAINING, NON_NEGATIVE)
    cirkd_weight: float = flag(1.0, "weight of CIRKD's pairs of pixels within a batch", TRAINING, NON_NEGATIVE)
    memory_weight: float = flag(0.1, "weight of each of CIRKD's memories", TRAINING, NON_NEGATIVE)
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def chosen(self) -> tuple[str, ...]:
        """Ways to teach."""
        if self.black_box is not None:
            return self.students or OF_BLACK_BOX
        return KINDS if self.students == ("all",) else self.students or USUAL

    def check(self) -> None:
        """Checks values and names before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain, there is no such way to teach, or masks have two sources.
        """
        super().check()
        if self.students != ("all",) or self.black_box is not None:
            check_choice(self, "students", "way to teach", KINDS if self.black_box is None else OF_BLACK_BOX)
        if self.masks is not None and self.black_box is not None:
            raise ValueError("--masks and --black-box are both given: choose one place that masks come from.")
        if self.depth < 2:
            raise ValueError(f"--depth is {self.depth}: give at least 2 stages.")


def open_pictures(config: SegmentationConfig) -> dict[str, data.Source]:
    """Opens the three splits and keeps them in memory.

    Args:
      config: The configuration.

    Returns:
      "train", "val" and "test" -> source of `image` and `label` [B, H, W].

    Raises:
      ValueError: As `open_masks` and `open_boxes` say, or if a split is missing.
    """
    if config.pictures == SYNTHETIC:
        return synthetic(config.image_size)
    if config.masks is not None:
        return data.open_masks(
            config.pictures,
            config.masks,
            image_size=config.image_size,
            values=config.mask_values,
            names=config.class_names,
            ignore=config.ignored_value,
            resize=config.resize_masks,
        )
    found = open_boxes(config.boxes, config.pictures, image_size=config.image_size, columns=config.columns)
    for split in SPLITS:
        if split not in found:
            raise ValueError(f"{config.boxes} has no pictures of the split {split!r}: give some of each of the three.")
    return {split: data.masks_of_boxes(source) for split, source in found.items()}


def synthetic(image_size: tuple[int, int], count: int = 8) -> dict[str, data.Source]:
    """Bright discs and dark squares on grey ground, for runs that only show that everything works.

    Args:
      image_size: (height, width).
      count: Pictures of each split.

    Returns:
      Split -> source.
    """
    rng, (H, W) = np.random.default_rng(0), image_size
    y, x = np.mgrid[:H, :W]

    def picture() -> tuple[np.ndarray, np.ndarray]:
        (a, b), (c, d), r = rng.integers(0, (H, W)), rng.integers(0, (H, W)), min(H, W) // 4
        label = np.where((y - a) ** 2 + (x - b) ** 2 < r**2, 1, 0)
        label[c : c + r, d : d + r] = 2
        colours = np.array([128, 220, 40])[label] + rng.normal(0, 12, (H, W))
        return np.repeat(colours[..., None], 3, axis=2).clip(0, 255).astype(np.uint8), label

    names, made = ("ground", "disc", "square"), {}
    for split in SPLITS:
        images, labels = (np.stack(each) for each in zip(*(picture() for _ in range(count)), strict=True))
        made[split] = data.from_masks(f"{SYNTHETIC}[{split}]", images, labels, names)
    return made


def prepared(config: SegmentationConfig, training: data.Source, *fields: str) -> tuple[Prepare, Prepare]:
    """Functions that prepare batches: mirrored and of changed colours for training, and as they are.

    Args:
      config: The configuration.
      training: The training pictures, whose mean and deviation normalise.
      *fields: Fields of pixels that are mirrored too, besides the label.

    Returns:
      Preparation of training batches, and of others.
    """
    clean = augment.compose(augment.to_float(), augment.normalize(*data.statistics(training)))
    upright = config.black_box is not None
    flips = augment.flip_with_mask(vertical=not upright, fields=("label", *fields))
    return tuple(augment.augment_batch(move, seed=config.seed) for move in (augment.compose(flips, clean), clean))  # type: ignore[return-value]


def label_term() -> Term:
    """Cross-entropy of pixels plus dice, without the pixels that count nowhere.

    Returns:
      The term.
    """
    parts = {
        loss.__name__: objectives.from_labels(loss, ignore=IGNORED) for loss in (losses.cross_entropy, losses.dice)
    }
    return objectives.weighted(**parts)


def kind_terms(config: SegmentationConfig, num_classes: int) -> dict[str, Term]:
    """Objectives of students, with the labels in each.

    CIRKD has its three parts besides the soft labels of pixels, as in its paper. They read the deepest map, since pairs
    of all pixels of a batch cost the square of its size.

    Args:
      config: The configuration.
      num_classes: K.

    Returns:
      Way to teach -> term.
    """
    coarse, deepest = f"decoder{config.depth - 1}", f"stage{config.depth}"
    logits, maps, deep = ([f"{side}.{x}" for side in ("student", "teacher")] for x in ("logits", coarse, deepest))
    kd = config.kd_weight, objectives.from_outputs(losses.pixel_kd, *logits, temperature=config.temperature)
    memory = objectives.cirkd_memory(
        student=deepest,
        teacher=deepest,
        num_classes=num_classes,
        pixel_weight=config.memory_weight,
        region_weight=config.memory_weight,
        pixels=1024,
        drawn_pixels=128,
        drawn_regions=32,
    )
    further: dict[str, Mapping[str, tuple[float, Term]]] = {
        "alone": {},
        "kd": {"kd": kd},
        "cwd": {"cwd": (config.cwd_weight, objectives.from_outputs(losses.cwd, *logits))},
        "cirkd": {
            "kd": kd,
            "pixels": (config.cirkd_weight, objectives.from_outputs(losses.cirkd_pixels, *deep)),
            "memory": (1.0, memory),
        },
        "skd": {"kd": kd, "pairs": (1.0, objectives.from_outputs(losses.skd_pairwise, *maps))},
        "ifvd": {
            "kd": kd,
            "variation": (1.0, objectives.from_outputs(losses.ifvd, *maps, "batch.label", num_classes=num_classes)),
        },
    }
    return {kind: objectives.weighted(label=(1.0, label_term()), **parts) for kind, parts in further.items()}


def soft_term(config: SegmentationConfig) -> Term:
    """Soft labels of pixels alone, for students of a black box that is asked for probabilities.

    Args:
      config: The configuration.

    Returns:
      The term, whose teacher is `models.cached()`.
    """
    return objectives.from_outputs(losses.pixel_kd, "student.logits", "teacher.logits", temperature=config.temperature)


def columns_of(names: tuple[str, ...]) -> dict[str, Column]:
    """Columns of the table: mean intersection over union, that of each class, accuracy of pixels.

    Args:
      names: Names of the classes.

    Returns:
      Name of a figure -> its column.
    """
    each = {f"iou{k}": Column(name, PERCENT, 1) for k, name in enumerate(names)}
    return {"miou": Column("mIoU %", PERCENT), **each, "accuracy": Column("pixels right %", PERCENT, 1)}
