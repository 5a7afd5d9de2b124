"""Detectors without a network, which every other one has to beat: the usual boxes, and spots of one colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from scipy import ndimage

from jaxkd import data
from jaxkd.models import Detections

_Spot: TypeAlias = tuple[float, int, np.ndarray]
"""Score, class and box."""

_DETECTIONS = 100
_SAMPLE = 64  # pictures that colours are learnt from
_LEVELS = 6  # thresholds among which a class chooses


def usual_boxes(training: data.Source, source: data.Source) -> Detections:
    """The same boxes in every picture: of each class the mean box on a grid, as dense as it is wide.

    A box scores as often as a training box of its class overlaps it by half.

    Args:
      training: The training pictures.
      source: The pictures that are searched.

    Returns:
      Detections of all rows of the source.
    """
    truth = training.read(np.arange(len(training)))
    height, width, _ = training.image_shape or (0, 0, 0)
    found: list[_Spot] = []
    for k in range(training.num_classes):
        own = truth["boxes"][truth["label"] == k]
        if not len(own):
            continue
        w, h = np.mean(own[:, 2:] - own[:, :2], axis=0)
        columns, rows = (max(1, int(np.ceil(1.5 * side / size))) for side, size in ((width, w), (height, h)))
        x, y = np.meshgrid(*(np.linspace(s / 2, e - s / 2, n) for s, e, n in ((w, width, columns), (h, height, rows))))
        centre = np.stack([x.ravel(), y.ravel()], axis=-1)
        half = np.array([w, h]) / 2
        boxes = np.concatenate([centre - half, centre + half], axis=-1)
        found.extend((float(s), k, b) for s, b in zip(_hits(boxes, own) / len(training), boxes, strict=True))
    one = _detections([found])
    return Detections(*(np.repeat(x, len(source), axis=0) for x in one))


def _hits(boxes: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Number of boxes [M, 4] that each of some boxes [N, 4] overlaps by half."""
    sides = np.minimum(boxes[:, None, 2:], own[None, :, 2:]) - np.maximum(boxes[:, None, :2], own[None, :, :2])
    both = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (boxes, own)]
    return (both >= 0.5 * (areas[0][:, None] + areas[1][None] - both)).sum(axis=1)


def coloured_spots(training: data.Source, source: data.Source) -> Detections:
    """Connected spots of each class's colour: a linear model of pixels, a threshold, and the usual areas.

    The model is least squares from a pixel's channels and their products to whether it lies in the ellipse of a box of
    the class. Its threshold is the one of a few whose spots match training boxes best, and a spot has an area that
    boxes of its class have.

    Args:
      training: The training pictures.
      source: The pictures that are searched.

    Returns:
      Detections of all rows of the source.
    """
    truth = training.read(np.unique(np.linspace(0, len(training) - 1, _SAMPLE).astype(int)))
    known, wanted = (_channels(image) for image in (truth["image"], source.read(np.arange(len(source)))["image"]))
    found: list[list[_Spot]] = [[] for _ in wanted]
    for k in range(training.num_classes):
        own = truth["boxes"][truth["label"] == k]
        if not len(own):
            continue
        areas = np.prod(own[:, 2:] - own[:, :2], axis=-1)
        bounds = 0.5 * float(np.quantile(areas, 0.05)), 1.5 * float(np.quantile(areas, 0.95))
        pairs = zip(truth["boxes"], truth["label"] == k, strict=True)
        inside = np.stack([_ellipses(boxes[own], known.shape[1:3]) for boxes, own in pairs])
        answers = inside.reshape(-1).astype(np.float64)
        weights = np.linalg.lstsq(known.reshape(-1, known.shape[-1]), answers, rcond=None)[0]
        score = known @ weights
        levels = np.quantile(score[inside], np.linspace(0.1, 0.7, _LEVELS))
        best = max(levels, key=lambda level: _matches(score, truth, k, level, bounds))
        for spots, map_ in zip(found, wanted @ weights, strict=True):
            spots.extend((s, k, box) for s, box in _spots(map_, best, bounds))
    return _detections(found)


def _channels(image: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] as floats, with their products and 1, [N, H, W, (C + 1) (C + 2) / 2]."""
    x = np.concatenate([image / 255.0, np.ones_like(image[..., :1], np.float64)], axis=-1)
    i, j = np.triu_indices(x.shape[-1])
    return x[..., i] * x[..., j]


def _ellipses(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels [H, W] within the ellipse of one of the boxes [n, 4]."""
    y, x = (np.arange(n) + 0.5 for n in shape)
    inside = np.zeros(shape, bool)
    for x1, y1, x2, y2 in boxes:
        across, down = ((2 * p - low - high) / (high - low) for p, low, high in ((x, x1, x2), (y, y1, y2)))
        inside |= across[None] ** 2 + down[:, None] ** 2 <= 1
    return inside


def _spots(score: np.ndarray, level: float, bounds: tuple[float, float]) -> list[tuple[float, np.ndarray]]:
    """Mean score and box of each connected spot of a map [H, W] whose box has an area within bounds."""
    marks, _ = ndimage.label(score > level)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(marks), 1):
        box = np.array([columns.start, rows.start, columns.stop, rows.stop], float)
        if bounds[0] <= (box[2] - box[0]) * (box[3] - box[1]) <= bounds[1]:
            own = score[rows, columns][marks[rows, columns] == number]
            found.append((float(np.mean(own)), box))
    return found


def _matches(
    score: np.ndarray, truth: Mapping[str, np.ndarray], k: int, level: float, bounds: tuple[float, float]
) -> float:
    """F1 of the spots at a threshold: those that overlap a true box of the class by half."""
    hits = made = real = 0
    for map_, boxes, label in zip(score, truth["boxes"], truth["label"], strict=True):
        own, spots = boxes[label == k], [box for _, box in _spots(map_, level, bounds)]
        made, real = made + len(spots), real + len(own)
        hits += int((_hits(own, np.stack(spots)) > 0).sum()) if spots and len(own) else 0
    return 2 * hits / max(made + real, 1)


def _detections(found: Sequence[Sequence[_Spot]]) -> Detections:
    """(score, class, box) of each picture as arrays, the best first."""
    boxes, scores = np.zeros((len(found), _DETECTIONS, 4), np.float32), np.zeros((len(found), _DETECTIONS), np.float32)
    label = np.full((len(found), _DETECTIONS), -1, np.int32)
    for n, spots in enumerate(found):
        for d, (score, k, box) in enumerate(sorted(spots, key=lambda spot: -spot[0])[:_DETECTIONS]):
            boxes[n, d], scores[n, d], label[n, d] = box, score, k
    return Detections(boxes, scores, label)
