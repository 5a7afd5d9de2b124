"""Object detection: annotated pictures that the flags opened, kinds of students, and figures of detectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax

from jaxkd import augment, data, losses, metrics, models, objectives, parallel, reports
from jaxkd.data.readers.boxes import COLUMNS
from jaxkd.data.splits import SPLITS
from jaxkd.experiment.config import Config, check_choice
from jaxkd.experiment.context import Context
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, SIDE
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.optimizers import warmed_up
from jaxkd.experiment.trials import PERCENT, Column
from jaxkd.parallel import processes
from jaxkd.runs.directory import Run
from jaxkd.types import Batch, Model, Outputs, Prepare, Term, Variables

KINDS = ("alone", "predictions", "crosskd", "hard", "ld", "neck", "pkd", "cwd", "fgd")
"""Kinds of students: without a teacher, or ways to teach; "hard" learns from its boxes instead of the labelled ones."""

_SHAPES = {"train": 8, "val": 2, "test": 4}  # pictures of smoke runs
_AT_ONCE = 32  # pictures of a batch in which objects are searched
_detect = jax.jit(models.detect, static_argnames="image_shape")  # one program for detectors of all widths


@dataclasses.dataclass(frozen=True)
class DetectionConfig(Config):
    """Base configuration of an experiment on pictures with boxes."""

    boxes: str = flag(
        "csv:boxes.csv", "boxes: coco:PATH ({split} in it if each has a file), csv:PATH, voc:FOLDER", DATA
    )
    pictures: str = flag("images.zip", "folder or ZIP archive of the pictures", DATA)
    columns: tuple[str, ...] = flag(
        COLUMNS, "columns of a CSV file: picture, split, class, left, upper, right and lower edge, in this order", DATA
    )
    classes: tuple[str, ...] = flag((), "classes to find, others are left out; all that occur if absent", DATA)
    outside: Literal["clip", "refuse"] = flag("clip", "fate of boxes over the border of their picture", DATA)
    max_boxes: int | None = flag(None, "boxes of a picture at most; the largest number there is if absent", DATA, COUNT)
    height: int = flag(96, "height to resize pictures to, a multiple of 16 pixels", DATA, SIDE)
    width: int = flag(128, "width to resize pictures to, a multiple of 16 pixels", DATA, SIDE)
    strides: tuple[int, ...] = flag(
        (4, 8, 16), "strides of the maps on which objects are found: some of 4, 8, 16", NETWORKS, COUNT
    )
    blocks: int = flag(2, "residual blocks of each of the three stages", NETWORKS, COUNT)
    depth: int = flag(2, "convolutions of each tower of the head", NETWORKS, COUNT)
    teacher_width: int = flag(32, "channels of the first stage of the teacher", NETWORKS, COUNT)
    student_width: int = flag(8, "channels of the first stage of the students", NETWORKS, COUNT)
    students: tuple[str, ...] = flag(
        ("alone", "crosskd", "neck"), f"kinds of students: {', '.join(KINDS)}, or all", TRAINING
    )
    teacher_epochs: int = flag(25, "passes of the teacher over the training pictures", TRAINING, COUNT)
    epochs: int = flag(25, "passes of each student over the training pictures", TRAINING, COUNT)
    learning_rate: float = flag(3e-3, "highest rate of AdamW", TRAINING, POSITIVE)
    views: int = flag(8, "augmented views of a picture, of which the teacher's outputs are kept", TRAINING, COUNT)
    certain: float = flag(0.5, "least score of a teacher's box that counts as a hard label", TRAINING, FRACTION)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def chosen(self) -> tuple[str, ...]:
        """Kinds of students."""
        return KINDS if self.students == ("all",) else self.students

    def check(self) -> None:
        """Checks values and names before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain, or there is no such kind of student.
        """
        super().check()
        if self.students != ("all",):
            check_choice(self, "students", "kind of student", KINDS)
        for name in ("height", "width"):
            if getattr(self, name) % 16:
                raise ValueError(f"--{name} is {getattr(self, name)}: give a multiple of 16 pixels.")


def open_pictures(config: DetectionConfig) -> dict[str, data.Source]:
    """Opens the three splits and keeps them in memory.

    Args:
      config: The configuration.

    Returns:
      "train", "val" and "test" -> source.

    Raises:
      ValueError: As `data.open_boxes` says, or if a split is missing.
    """
    if config.boxes == "shapes":
        return {split: shapes(n, split, config.image_size, seed) for seed, (split, n) in enumerate(_SHAPES.items())}
    options = {name: getattr(config, name) for name in ("image_size", "columns", "classes", "outside")}
    sources = data.open_boxes(config.boxes, config.pictures, most=config.max_boxes, **options)
    for split in SPLITS:
        if split not in sources:
            raise ValueError(f"{config.boxes} has no pictures of the split {split!r}: give some of each of the three.")
    return {split: data.in_memory(source) for split, source in sources.items()}


def shapes(count: int, split: str, image_size: tuple[int, int], seed: int) -> data.Source:
    """Makes pictures of dark and light squares, for smoke runs.

    Args:
      count: N, pictures.
      split: Name of the split.
      image_size: (height, width) in pixels.
      seed: Seed.

    Returns:
      Source of two squares in each picture at most, of two classes.
    """
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, 2, (count, 2)).astype(np.int32)
    label[0] = (0, 1)
    side = rng.integers(5, 9, (count, 2, 1))
    corner = rng.integers(0, np.array([*image_size[::-1]]) - side, (count, 2, 2))
    boxes = np.where(label[..., None] >= 0, np.concatenate([corner, corner + side], axis=-1), 0)
    image = rng.integers(100, 150, (count, *image_size, 3), np.uint8)
    for n, k in zip(*np.nonzero(label >= 0), strict=True):
        x1, y1, x2, y2 = boxes[n, k]
        image[n, y1:y2, x1:x2] = (20, 230)[label[n, k]]
    fields = {"boxes": boxes.astype(np.float32), "label": label, "crowd": np.zeros_like(label, bool)}
    rows = {"image": image, "id": np.arange(count, dtype=np.int32), **fields}

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[numbers] for name, values in rows.items()}

    names = ("dark", "light")
    return data.Source(f"shapes[{split}]", count, 2, (*image_size, 3), read, task="boxes", class_names=names)


def prepared(config: DetectionConfig, training: data.Source) -> tuple[Prepare, Prepare]:
    """Functions that prepare batches: flipped, of changed brightness and contrast for training, and as they are.

    Args:
      config: The configuration.
      training: The training pictures, whose mean and deviation normalise.

    Returns:
      Preparation of training batches, and of others; both add `valid`, which boxes are real.
    """
    clean = augment.compose(augment.to_float(), augment.normalize(*data.statistics(training)))
    jitter = augment.color_jitter(brightness=0.15, contrast=0.15, saturation=0.15)
    noisy = augment.compose(
        augment.flip_with_boxes(), augment.to_float(), jitter, augment.normalize(*data.statistics(training))
    )

    def with_valid(move: Any) -> Prepare:
        change = augment.augment_batch(move, seed=config.seed)
        return lambda batch: {**change(batch), "valid": batch["label"] >= 0}

    return with_valid(noisy), with_valid(clean)


def make_detector(config: DetectionConfig, width: int, num_classes: int) -> Model:
    """A detector of the configuration's strides.

    Args:
      config: The configuration.
      width: Channels of its first stage.
      num_classes: K.

    Returns:
      The model.
    """
    return models.detector(num_classes, width=width, blocks=config.blocks, depth=config.depth, strides=config.strides)


def adamw(config: DetectionConfig, steps: int) -> optax.GradientTransformation:
    """AdamW whose rate rises for a tenth of the updates, then falls along a cosine.

    Args:
      config: The configuration.
      steps: Updates.

    Returns:
      The optax transformation.
    """
    rate = warmed_up(config.learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(rate, weight_decay=1e-3))


def label_term(config: DetectionConfig) -> Term:
    """Term of the labelled boxes.

    Args:
      config: The configuration.

    Returns:
      The term.
    """
    return objectives.labelled_boxes(image_shape=config.image_size, strides=config.strides)


def kind_terms(config: DetectionConfig, head: Any) -> dict[str, tuple[Term, tuple[str, ...]]]:
    """Kind of student -> its term, and the teacher's features that it reads besides its logits.

    Args:
      config: The configuration.
      head: The teacher's head.

    Returns:
      All kinds that read what a teacher says; the others have the term of labelled boxes.
    """
    levels = range(len(config.strides))
    necks = tuple(f"neck{level}" for level in levels)
    counts = [(config.height // s) * (config.width // s) for s in config.strides]
    label = label_term(config)

    def of_necks(weight: float, make: Callable[[int], Term]) -> Term:
        parts: dict[str, Any] = {f"neck{level}": (weight / len(levels), make(level)) for level in levels}
        return objectives.weighted(label=label, **parts)

    def by_feature(loss: Callable[..., jax.Array], **hyper: Any) -> Callable[[int], Term]:
        return lambda level: objectives.from_features(
            loss, student=f"neck{level}", teacher=f"neck{level}", project=objectives.linear(), **hyper
        )

    def fgd(level: int) -> Term:
        sides = {"student": f"neck{level}", "teacher": f"neck{level}"}
        return objectives.fgd(**sides, image_shape=config.image_size, valid="valid")

    crossed = objectives.cross_head(head, strides=config.strides)
    return {
        "predictions": (
            objectives.weighted(label=label, predictions=(1.0, objectives.predictions())),
            ("found_boxes",),
        ),
        "crosskd": (objectives.weighted(label=label, cross=(1.0, crossed)), ("found_boxes",)),
        "ld": (objectives.weighted(label=label, ld=(0.25, objectives.edge_distributions())), ("bins",)),
        "neck": (of_necks(1.0, lambda level: objectives.score_weighted_neck(level, first=sum(counts[:level]))), necks),
        "pkd": (of_necks(2.0, by_feature(losses.pkd_pearson)), necks),
        "cwd": (of_necks(1.0, by_feature(losses.cwd)), necks),
        "fgd": (of_necks(1.0, fgd), necks),
    }


def finder(context: Context, model: Model, image_size: tuple[int, int]) -> Callable[..., models.Detections]:
    """Search for objects in all pictures of a source, compiled once for several networks.

    Args:
      context: The context of the trainings.
      model: A detector.
      image_size: (height, width) of its pictures.

    Returns:
      (variables, source) -> detections of all rows in the source's order, NumPy arrays.
    """
    plan = parallel.with_jit(context.plan.mesh)

    def run(state: Any, variables: Variables, batch: Batch) -> Outputs:
        outputs, _ = model.apply(variables, context.eval_prepare(batch), None, False)
        return Outputs(outputs.logits, {name: outputs.features[name] for name in ("found_boxes", "centerness")})

    step = plan.compile(run, donate_state=False)

    def find(variables: Variables, source: data.Source) -> models.Detections:
        placed, parts = plan.put(variables), []
        for batch in data.prefetch(data.eval_batches(source, _AT_ONCE * plan.mesh.size), plan.place):
            found, mask = jax.device_get((_detect(step(None, placed, batch), image_shape=image_size), batch["mask"]))
            parts.append(models.Detections(*(x[mask] for x in found)))
        return models.Detections(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    return find


def columns_of(names: Sequence[str]) -> dict[str, Column]:
    """Columns of a table of detectors: mAP@50, mAP@[.5:.95], and AP@50 of each class.

    Args:
      names: Names of the classes.

    Returns:
      Key -> column, in percent.
    """
    each = {f"ap/{name}": Column(f"{name} AP50", PERCENT, 1) for name in names}
    return {"ap50": Column("mAP50", PERCENT, 1), "ap": Column("mAP50-95", PERCENT, 1), **each}


def figures(found: models.Detections, source: data.Source) -> dict[str, float]:
    """Figures of found boxes against those of a source.

    Args:
      found: Detections of all its rows.
      source: The source.

    Returns:
      The figures that `columns_of` names; without those of classes of which the source has no box.
    """
    truth = source.read(np.arange(len(source)))
    ap = metrics.detection_ap(
        *found, truth["boxes"], truth["label"], num_classes=source.num_classes, crowd=truth["crowd"]
    )
    each = {f"ap/{name}": float(x) for name, x in zip(source.class_names, ap.per_class(0.5), strict=True)}
    return {key: x for key, x in {"ap50": ap.at(0.5), "ap": ap.value(), **each}.items() if not np.isnan(x)}


def with_found(source: data.Source, found: models.Detections, least: float) -> data.Source:
    """A source whose boxes are those that a teacher found, as hard labels.

    Args:
      source: The source.
      found: Detections of all its rows.
      least: Least score of a box that counts.

    Returns:
      A source of the same pictures, with as many boxes at most.
    """
    most = source.read(np.zeros(1, np.int64))["label"].shape[1]
    sure = found.scores[:, :most] >= least  # the surest come first
    label = np.where(sure, found.label[:, :most], -1).astype(np.int32)
    boxes = np.where(sure[..., None], found.boxes[:, :most], 0).astype(np.float32)
    made = {"boxes": boxes, "label": label, "crowd": np.zeros_like(sure)}

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {**source.read(rows), **{name: values[rows] for name, values in made.items()}}

    return dataclasses.replace(source, read=read)


def draw(
    run: Run, name: str, source: data.Source, found: models.Detections, *, least: float = 0.4, count: int = 6
) -> None:
    """Draws the boxes that a network found on the first pictures of a source, and the true ones, in the run's folder.

    Args:
      run: The run.
      name: Name of the file, without its suffix.
      source: The pictures.
      found: Detections of all its rows.
      least: Least score of a box that is drawn.
      count: Number of pictures at most.
    """
    if not processes.is_first():
        return
    rows = source.read(np.arange(min(count, len(source))))
    sure, real = found.scores >= least, rows["label"] >= 0
    drawn = [(found.boxes[n, sure[n]], found.label[n, sure[n]], found.scores[n, sure[n]]) for n in range(len(real))]
    true = [(rows["boxes"][n, real[n]], rows["label"][n, real[n]]) for n in range(len(real))]
    title = f"{name}: boxes of score {least:g} or more, and the true ones, dashed"
    reports.plot_boxes(run.path / f"{name}.png", rows["image"], drawn, source.class_names, true, title)
