"""Medical images of unequal classes: flags, splits, floors, teachers, and the figures that the field looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxkd import data, metrics, objectives
from jaxkd.data.splits import say
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.config import ImageConfig, check_file
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, SIDE, TEMPERATURE, WHOLE
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.images import open_images
from jaxkd.experiment.networks import SMALL_IMAGES
from jaxkd.experiment.trials import PERCENT, Column, Scores
from jaxkd.metrics import ROC, Metric
from jaxkd.pytorch import TORCHVISION, Published
from jaxkd.reports.plots import plot_confusion, plot_roc
from jaxkd.types import Outputs

SYNTHETIC = "synthetic"
"""Value of `--source` that stands for `synthetic`."""
FROZEN = "mobilenet_v2"
"""Value of `--teacher` that stands for ImageNet's MobileNetV2 under a linear layer."""

_SIDE = 64
"""Most pixels of a side that logistic regression looks at."""
_CALIBRATION: Metric = metrics.calibration()


@dataclasses.dataclass(frozen=True)
class XrayConfig(ImageConfig):
    """Configuration of an experiment on images of two classes, or of one class against the others."""

    name: str = "xrays"
    source: str = "npz:pneumoniamnist.npz"
    validation_split: str = flag("val", "split on which thresholds are chosen", DATA)
    test_split: str = flag("test", "split on which each network is evaluated once, after its training", DATA)
    positive: int | None = flag(
        None, "class to be found, a number from 0; all others count as negative. The last class if absent", DATA, WHOLE
    )
    specificity: float = flag(0.95, "specificity at which sensitivities are compared", DATA, FRACTION)
    crop: int = flag(2, "padding of random crops, in pixels", DATA, WHOLE)
    teacher: str = "resnet8"
    student: str = "lenet"
    teacher_file: str | None = flag(
        None, "file of torchvision's weights of mobilenet_v2; that of the installed package if absent", NETWORKS
    )
    teacher_size: int = flag(96, "height and width at which mobilenet_v2 sees the images, in pixels", NETWORKS, SIDE)
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    batch_size: int = 64
    epochs: int = flag(6, "passes of the students over the training data", TRAINING, COUNT)
    teacher_epochs: int = flag(4, "passes of the teacher over the training data", TRAINING, COUNT)
    learning_rate: float = flag(2e-3, "highest rate of AdamW", TRAINING, POSITIVE)
    temperature: float = flag(2.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.3, "weight of the labels; the soft labels have the rest", TRAINING, FRACTION)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    networks: ClassVar[Mapping[str, Published]] = {**SMALL_IMAGES, FROZEN: TORCHVISION[FROZEN]}

    def check(self) -> None:
        """Checks values and the networks' names before the run's folder is made."""
        super().check()
        check_file(self, "teacher_file")
        if self.teacher_file is not None and self.teacher != FROZEN:
            raise ValueError(
                f"--teacher-file is given but --teacher is {self.teacher}, which is trained here: leave the file out, "
                f"or give --teacher {FROZEN}."
            )

    @property
    def columns(self) -> Mapping[str, Column]:
        """Name -> column of each figure of the table."""
        at = f"{100 * self.specificity:g}"
        return {
            "auc": Column("AUC %", PERCENT),
            "balanced": Column("bal. acc. %", PERCENT),
            "sensitivity": Column(f"sens.@{at} %", PERCENT),
            "found": Column("sens. %", PERCENT),
            "spared": Column("spec. %", PERCENT),
            "ece": Column("ECE %", PERCENT),
        }


class Splits(NamedTuple):
    """The three splits and the class to be found.

    Attributes:
      train: Training images.
      validation: Images on which thresholds are chosen.
      test: Images that networks are compared on.
      positive: Number of the class to be found.
    """

    train: data.Source
    validation: data.Source
    test: data.Source
    positive: int

    @property
    def evaluated(self) -> tuple[data.Source, data.Source]:
        """The validation split and the test split."""
        return self.validation, self.test


def open_splits(config: XrayConfig) -> Splits:
    """Opens the three splits, and says what should be known about them.

    Args:
      config: The configuration.

    Returns:
      The splits.

    Raises:
      ValueError: As `open_images` says; if there is no class `--positive`; or if a split has no example of it, or none
        of another class.
    """
    spec = synthetic() if config.source == SYNTHETIC else None
    names = config.train_split, config.validation_split, config.test_split
    train, validation, test = open_images(config, *names, spec=spec)
    positive = train.num_classes - 1 if config.positive is None else config.positive
    if positive >= train.num_classes:
        raise ValueError(
            f"--positive is {positive} but {train.name} has {train.num_classes} classes: give a number from 0 to "
            f"{train.num_classes - 1}."
        )
    shares = []
    for source in (train, validation, test):
        share = float(np.mean(data.labels_of(source) == positive))
        if share in (0, 1):
            kind = "no" if share == 0 else "nothing but"
            raise ValueError(
                f"{source.name} has {kind} examples of the class {positive}, which is to be found: give a split with "
                "examples of both kinds, or another --positive."
            )
        shares.append(f"{100 * share:.1f} % of {source.size:,} in {source.name}")
    say(f"positive are {', '.join(shares)}.")
    _say_copies(train, validation, test)
    return Splits(train, validation, test, positive)


def _say_copies(train: data.Source, *others: data.Source) -> None:
    """Says how many images of other splits the training split has too."""
    seen = {image.tobytes() for image in _images(train)}
    for other in others:
        if copies := sum(image.tobytes() in seen for image in _images(other)):
            say(f"{copies} images of {other.name} are in {train.name} too.")


def _images(source: data.Source) -> np.ndarray:
    """Images of all rows, [size, H, W, C] as the source has them."""
    images: np.ndarray = source.read(np.arange(source.size))["image"]
    return images


def _pixels(source: data.Source) -> np.ndarray:
    """Pixels of all images as rows of numbers in 0..1 or as the source has them; every k-th one of large images."""
    images = _images(source)
    k = -(-max(images.shape[1:3]) // _SIDE)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return images[:, ::k, ::k].reshape(len(images), -1) / scale


class Board(NamedTuple):
    """The figures of networks, and what the plots need of them.

    Attributes:
      config: The configuration.
      splits: The splits.
      drawn: Name -> logits of the test images [N, K] of each network of that name.
    """

    config: XrayConfig
    splits: Splits
    drawn: dict[str, list[np.ndarray]]

    def score(self, name: str, validation: np.ndarray, test: np.ndarray) -> Scores:
        """Figures of one network. Both thresholds are chosen on validation images.

        Args:
          name: The network's name.
          validation: Its logits of the validation images [M, K].
          test: Its logits of the test images [N, K].

        Returns:
          Name -> figure, as `XrayConfig.columns` names them.
        """
        self.drawn.setdefault(name, []).append(test)
        chosen, curve = (self._curve(z, s) for z, s in zip((validation, test), self.splits.evaluated, strict=True))
        of_both, spared = self._rates(test, chosen.balanced_threshold())
        found, specificity = self._rates(test, chosen.threshold(self.config.specificity))
        calibration = _CALIBRATION(Outputs(jnp.asarray(test), {}), Outputs(None, {}), self._labels(self.splits.test))
        return {
            "auc": curve.auc(),
            "balanced": (of_both + spared) / 2,
            "sensitivity": curve.sensitivity(self.config.specificity),
            "found": found,
            "spared": specificity,
            "ece": float(calibration.value()),
        }

    def draw(self, folder: Path) -> Mapping[str, Mapping[str, Any]]:
        """Draws ROC curves and confusion matrices of the last network of each name.

        Args:
          folder: Folder of `roc.png` and of `confusion_NAME.png`.

        Returns:
          Name -> bins of its reliability, for `conclude`.

        Raises:
          OSError: If an image cannot be written.
        """
        curves = {name: self._curve(each[-1], self.splits.test) for name, each in self.drawn.items()}
        plot_roc(
            folder / "roc.png", {name: (x.false_positive_rate, x.true_positive_rate) for name, x in curves.items()}
        )
        labels, train = data.labels_of(self.splits.test), self.splits.train
        names = train.class_names or [str(k) for k in range(train.num_classes)]
        bins = {}
        for name, each in self.drawn.items():
            matrix = np.zeros((len(names), len(names)), np.int64)
            np.add.at(matrix, (labels, each[-1].argmax(axis=-1)), 1)
            plot_confusion(folder / f"confusion_{name.replace(' ', '-')}.png", matrix, names, title=name)
            pooled = Outputs(jnp.concatenate(each), {}), Outputs(None, {}), {"label": np.tile(labels, len(each))}
            bins[name] = _CALIBRATION(*pooled).bins()
        return bins

    def _labels(self, source: data.Source) -> dict[str, np.ndarray]:
        return {"label": data.labels_of(source)}

    def _curve(self, logits: np.ndarray, source: data.Source) -> ROC:
        """ROC curve of the class to be found."""
        return metrics.roc(self._log_odds(logits), data.labels_of(source) == self.splits.positive)

    def _rates(self, test: np.ndarray, threshold: float) -> tuple[float, float]:
        """Sensitivity and specificity on test images at a threshold."""
        called, yes = self._log_odds(test) >= threshold, data.labels_of(self.splits.test) == self.splits.positive
        return float(called[yes].mean()), float(1 - called[~yes].mean())

    def _log_odds(self, logits: np.ndarray) -> np.ndarray:
        """Log-odds of the class to be found against all others, [N]."""
        z = np.asarray(logits, np.float64)
        others = np.delete(z, self.splits.positive, axis=1)
        most = others.max(axis=1)
        return z[:, self.splits.positive] - most - np.log(np.exp(others - most[:, None]).sum(axis=1))


def add_floors(board: Board, trials: Any) -> None:
    """Adds the rows of what any network must beat: no look at the image at all, and a linear look at its pixels.

    Args:
      board: The figures.
      trials: The `Trials` whose table gets the rows.
    """
    splits = board.splits
    labels, classes = data.labels_of(splits.train), splits.train.num_classes
    share = np.log(np.maximum(np.bincount(labels, minlength=classes), 0.5) / len(labels)).astype(np.float32)
    constant = [np.tile(share, (source.size, 1)) for source in splits.evaluated]
    trials.add("always the same answer", board.score("always the same answer", *constant))
    pixels = [_pixels(source) for source in (splits.train, *splits.evaluated)]
    given = pixels[0], labels, (pixels[1], data.labels_of(splits.validation)), classes
    line = logistic_regression(*given, strengths=(0.01, 0.1, 1.0))
    found = board.score("logistic regression", *map(line.logits, pixels[1:]))
    trials.add("logistic regression on pixels", found, parameters=line.parameters)


def weights_of(splits: Splits) -> objectives.Weigh:
    """Weights of the examples that make all classes count alike.

    Args:
      splits: The splits.

    Returns:
      A function for a term's `weigh`.
    """
    labels = data.labels_of(splits.train)
    return objectives.class_weight(objectives.inverse_frequency(labels, splits.train.num_classes))


def summary(splits: Splits, seeds: int) -> str:
    """Title of the table.

    Args:
      splits: The splits.
      seeds: Number of students of each kind.

    Returns:
      One line.
    """
    return f"{splits.test.name}: {len(splits.test):,} images, {len(splits.train):,} to train on, {seeds} seed(s)"


def synthetic() -> dict[str, np.ndarray]:
    """Makes small grey pictures for smoke runs, three in four with a bright spot, always the same.

    Returns:
      Arrays of the splits train, val and test.
    """
    random = np.random.RandomState(0)  # its stream is frozen for good
    arrays: dict[str, np.ndarray] = {}
    for split, size in (("train", 64), ("val", 32), ("test", 32)):
        labels = (np.arange(size) % 4 > 0).astype(np.uint8)
        images = random.randint(0, 160, (size, 12, 12, 1))
        images[:, 3:7, 3:7] += 60 * labels[:, None, None, None]
        arrays |= {f"{split}_image": images.astype(np.uint8), f"{split}_label": labels}
    return arrays
