"""Figures of segmentation on the test pictures: scores, plots, and the floors under every table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, metrics
from jaxkd.data.masks import IGNORED
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.trials import Scores, Trials
from jaxkd.reports import plot_confusion, plot_masks
from jaxkd.types import Outputs

_MEASURED = metrics.ignoring(metrics.SEGMENTATION, IGNORED)
_PIXELS = 4000  # of the training pictures, from which logistic regression learns
_SHOWN = 3  # pictures in a plot


class Board(NamedTuple):
    """The figures of networks on the test pictures, and what the plots need of them.

    Attributes:
      test: The test pictures.
      image: Their pixels, [N, H, W, C].
      label: Their masks, [N, H, W].
      masks: Name of a network that is drawn -> its masks of the first pictures.
      counts: Name of a network that is drawn -> its confusion matrix [K, K].
    """

    test: data.Source
    image: np.ndarray
    label: np.ndarray
    masks: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]

    def score(self, name: str, logits: np.ndarray, *, drawn: bool = True) -> Scores:
        """Figures of one network.

        Args:
          name: The network's name.
          logits: Its logits of the test pictures [N, H, W, K].
          drawn: Whether plots show it; of several of one name, they show the last.

        Returns:
          Name -> figure, as `columns_of` names them; without the classes that neither side has.
        """
        found = _measure(logits, self.label)
        if drawn:
            self.masks[name], self.counts[name] = np.argmax(logits[:_SHOWN], axis=-1), np.asarray(found.matrix)
        each = {f"iou{k}": float(x) for k, x in enumerate(found.per_class()) if not np.isnan(x)}
        return {"miou": float(found.value()), **each, "accuracy": float(found.accuracy())}

    def draw(self, folder: Path) -> None:
        """Draws masks of the first test pictures beside the labelled ones, and the confusion of pixels.

        Args:
          folder: Folder of `masks.png` and of `confusion_NAME.png`.

        Raises:
          OSError: If an image cannot be written.
        """
        names, label = self.test.class_names, self.label[:_SHOWN]
        plot_masks(folder / "masks.png", self.image[:_SHOWN], {"labelled": label, **self.masks}, names)
        for name, counts in self.counts.items():
            plot_confusion(folder / f"confusion_{name.replace(' ', '_')}.png", counts, names, title=name)


def board_of(test: data.Source) -> Board:
    """A board without a network.

    Args:
      test: The test pictures.

    Returns:
      The board.
    """
    rows = test.read(np.arange(test.size))
    return Board(test, rows["image"], rows["label"], {}, {})


@jax.jit
def _of_batch(logits: jax.Array, label: jax.Array) -> metrics.IoU:
    return _MEASURED["miou"](Outputs(logits, {}), Outputs(None, {}), {"label": label})


def _measure(logits: np.ndarray, label: np.ndarray) -> metrics.IoU:
    """Confusion of pixels, on the host."""
    found = [_of_batch(jnp.asarray(z), jnp.asarray(y)) for z, y in zip(logits, label, strict=True)]
    return metrics.IoU(*(np.sum([np.asarray(part) for part in parts], axis=0) for parts in zip(*found, strict=True)))


def add_floors(board: Board, trials: Trials, train: data.Source) -> None:
    """Adds the rows of networks' floors: always the commonest class, and logistic regression on colours.

    Args:
      board: The board.
      trials: The trials.
      train: Training pictures, of which some pixels are drawn, as many of each class as of the others where they last.
    """
    K = train.num_classes
    counts = np.bincount(data.labels_of(train).ravel(), minlength=IGNORED + 1)[:K]
    always = np.broadcast_to(np.eye(K, dtype=np.float32)[np.argmax(counts)], (*board.label.shape, K))
    trials.add("commonest class", board.score("commonest class", always, drawn=False))
    for name, reach in (("colour of the pixel", 0), ("colours of 3x3 pixels", 1)):
        x, y = _some_pixels(train, reach)
        centre, scale = x.mean(axis=0), _whitening(x)  # colours side by side are almost equal: it would converge slowly
        fitted = logistic_regression((x - centre) @ scale, y, ((x - centre) @ scale, y), K, strengths=(1.0,))
        pixels = _colours(board.image, reach).reshape(-1, x.shape[1])
        logits = fitted.logits((pixels - centre) @ scale).reshape(*board.label.shape, K)
        trials.add(name, board.score(name, logits, drawn=False), parameters=fitted.parameters)


def _whitening(x: np.ndarray) -> np.ndarray:
    """Matrix [D, D] that turns centred vectors [N, D] into ones of uncorrelated entries of variance 1."""
    variances, axes = np.linalg.eigh(np.cov(x, rowvar=False) + 1e-6 * np.eye(x.shape[1]))
    return axes / np.sqrt(variances)


def _colours(image: np.ndarray, reach: int) -> np.ndarray:
    """Colours of each pixel and of those around it, [N, H, W, C (2 reach + 1)^2], in 0..1."""
    H, W = image.shape[1:3]
    padded = np.pad(image, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    scale = 255 if image.dtype == np.uint8 else 1
    side = range(2 * reach + 1)
    return np.concatenate([padded[:, i : i + H, j : j + W] / scale for i in side for j in side], axis=-1)


def _some_pixels(source: data.Source, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours and classes of pixels drawn evenly from the classes."""
    rows = source.read(np.arange(source.size))
    colours, label = _colours(rows["image"], reach), rows["label"].ravel()
    rng, chosen = np.random.RandomState(0), []  # its stream is frozen for good
    for k in range(source.num_classes):
        own = np.flatnonzero(label == k)
        chosen.append(rng.permutation(own)[: _PIXELS // source.num_classes])
    at = np.concatenate(chosen)
    return colours.reshape(-1, colours.shape[-1])[at], label[at]
