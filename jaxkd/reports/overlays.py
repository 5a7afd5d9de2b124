"""Pictures with what was found in them: boxes of detectors, masks of segmentation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax.typing import ArrayLike

from jaxkd.reports import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IGNORED = 255
"""Value of a mask where nothing is known."""


def plot_boxes(
    path: str | os.PathLike[str],
    pictures: ArrayLike,
    found: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    class_names: Sequence[str],
    truth: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
    title: str = "",
) -> None:
    """Draws the boxes that a detector found on pictures, a colour for each class; true boxes are dashed.

    Args:
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      pictures: [B, H, W, C] with 1 or 3 channels, uint8 or floating in 0..1.
      found: For each picture boxes [n, 4], (x1, y1, x2, y2) in pixels; classes [n]; scores [n] in 0..1.
      class_names: Name of each class.
      truth: For each picture the true boxes [m, 4] and classes [m], if they are drawn too.
      title: Title of the figure.

    Raises:
      ValueError: If the parts do not fit together, or a class has no name.
      OSError: If the image cannot be written.
    """
    shown, names = _pictures(pictures), list(class_names)
    known = [] if truth is None else list(truth)
    for what, parts in (("found", found), ("true", known)):
        if len(parts) != len(shown) and not (what == "true" and truth is None):
            raise ValueError(f"there are {len(shown)} pictures but {what} boxes of {len(parts)}: give those of each.")
    columns = min(3, len(shown))
    height, width = shown.shape[1:3]
    size = 4.2, 4.2 * height / width + 0.2
    figure, panels = canvas.panels(columns, size, title, rows=-(-len(shown) // columns))
    for axes in panels:
        axes.set_axis_off()
    for index, (axes, picture) in enumerate(zip(panels, shown, strict=False)):
        axes.imshow(picture)
        if known:
            boxes, classes = known[index]
            _draw_boxes(axes, boxes, classes, np.ones(len(np.asarray(classes))), names, found=False)
        _draw_boxes(axes, *found[index], names, found=True)
    panels[0].legend(handles=_patches(names, range(len(names))), fontsize=7, framealpha=0.8, loc="upper right")
    canvas.save(figure, path)


def plot_masks(
    path: str | os.PathLike[str],
    pictures: ArrayLike,
    masks: Mapping[str, ArrayLike],
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Draws pictures in rows, and in columns the same with each of several masks painted over them.

    Class 0, the background, is not painted; what is ignored is grey.

    Args:
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      pictures: [B, H, W, C] with 1 or 3 channels, uint8 or floating in 0..1.
      masks: Name -> classes [B, H, W]; 255 where nothing is known.
      class_names: Name of each class, for a legend; none without.
      title: Title of the figure.

    Raises:
      ValueError: If there is no mask, or one of another shape than the pictures, or a class has no name.
      OSError: If the image cannot be written.
    """
    shown = _pictures(pictures)
    if not masks:
        raise ValueError("there is no mask to draw: give at least one.")
    columns = {"picture": None, **{name: _mask(name, mask, shown, class_names) for name, mask in masks.items()}}
    height, width = shown.shape[1:3]
    size = 2.6, 2.6 * height / width + 0.25
    figure, panels = canvas.panels(len(columns), size, title, rows=len(shown))
    for place, axes in enumerate(panels):
        index, column = divmod(place, len(columns))
        name, mask = list(columns.items())[column]
        axes.set_axis_off()
        axes.imshow(shown[index] if mask is None else _painted(shown[index], mask[index]))
        if index == 0:
            axes.set_title(name, fontsize=10)
    if class_names is not None:
        patches = _patches(class_names, range(1, len(class_names)))
        figure.legend(handles=patches, fontsize=9, loc="outside lower center", ncols=max(1, len(patches)))
    canvas.save(figure, path)


def _pictures(pictures: ArrayLike) -> np.ndarray:
    """Pictures [B, H, W, 3], floating in 0..1."""
    given = np.asarray(pictures)
    if given.ndim != 4 or given.shape[-1] not in (1, 3) or not given.size:
        raise ValueError(f"pictures have shape {given.shape}: give [B, H, W, C] with 1 or 3 channels.")
    scaled = given / 255.0 if given.dtype == np.uint8 else np.clip(given.astype(np.float64), 0, 1)
    return np.broadcast_to(scaled, (*given.shape[:3], 3))


def _draw_boxes(
    axes: Axes, boxes: ArrayLike, classes: ArrayLike, scores: ArrayLike, names: Sequence[str], *, found: bool
) -> None:
    """Draws boxes on one picture: with scores if they were found, dashed if they are true."""
    from matplotlib.patches import Rectangle

    corners, numbers, certain = np.asarray(boxes, np.float64), np.asarray(classes), np.asarray(scores, np.float64)
    if corners.size == 0:
        return
    if corners.shape != (len(numbers), 4) or numbers.shape != certain.shape or numbers.ndim != 1:
        shapes = f"{corners.shape}, {numbers.shape} and {certain.shape}"
        raise ValueError(f"boxes, classes and scores have shapes {shapes}: give [n, 4], [n] and [n].")
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise ValueError(
            f"the classes of boxes lie in {numbers.min()}..{numbers.max()}, but there are names for "
            f"{len(names)}: give one for each class."
        )
    for (x1, y1, x2, y2), number, score in zip(corners, numbers, certain, strict=True):
        colour = canvas.colour(int(number))
        style = {"linewidth": 1.4} if found else {"linewidth": 1.0, "linestyle": "--"}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, **style))
        if found:
            axes.text(x1, y1, f"{score:.2f}", fontsize=6, color="white", va="bottom", backgroundcolor=colour).set_bbox(
                {"facecolor": colour, "edgecolor": "none", "pad": 0.5}
            )


def _mask(name: str, mask: ArrayLike, pictures: np.ndarray, class_names: Sequence[str] | None) -> np.ndarray:
    """A mask of the pictures' shape, whose classes have names."""
    given = np.asarray(mask)
    if given.shape != pictures.shape[:3]:
        raise ValueError(
            f"the mask {name!r} has shape {given.shape} but the pictures have {pictures.shape[:3]}: give [B, H, W]."
        )
    classes = given[given != IGNORED]
    most = len(class_names) if class_names is not None else IGNORED
    if classes.size and not 0 <= classes.min() <= classes.max() < most:
        raise ValueError(
            f"the mask {name!r} has the classes {classes.min()}..{classes.max()}, but there are names for {most}: "
            "give one for each class."
        )
    return given


def _painted(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One picture [H, W, 3] under the colours of its mask [H, W]."""
    from matplotlib.colors import to_rgb

    painted = np.array(picture)
    for number in np.unique(mask):
        if number != 0:
            at = mask == number
            paint = np.array((0.5, 0.5, 0.5) if number == IGNORED else to_rgb(canvas.colour(int(number) - 1)))
            painted[at] = 0.45 * picture[at] + 0.55 * paint
    return painted


def _patches(names: Sequence[str], numbers: Sequence[int] | range) -> list:
    """Entries of a legend of classes; the first number has the first colour."""
    from matplotlib.patches import Patch

    return [Patch(color=canvas.colour(place), label=str(names[number])) for place, number in enumerate(numbers)]
