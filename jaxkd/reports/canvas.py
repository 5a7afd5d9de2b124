"""What all figures share: colours, panels, labels of axes, and the file that they are written to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxkd.files import explain_write_errors
from jaxkd.parallel import processes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers, without its yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def colour(index: int) -> str:
    """Colour of the line, or of the class, with a number; the colours repeat.

    Args:
      index: The number, from 0.

    Returns:
      The colour as "#RRGGBB".
    """
    return _COLOURS[index % len(_COLOURS)]


def panels(columns: int, size: tuple[float, float], title: str, *, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Figure with panels in a grid, made without pyplot and its global state.

    Args:
      columns: Number of panels in a row.
      size: Width and height of a panel in inches.
      title: Title of the figure; none if empty.
      rows: Number of rows.

    Returns:
      The figure, and its panels row by row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13)
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def dress(axes: Axes, x_label: str, y_label: str, *, legend: bool = True) -> None:
    """Adds labels, a grid, a legend and a light frame to a panel.

    Args:
      axes: The panel.
      x_label: Label of the horizontal axis.
      y_label: Label of the vertical axis.
      legend: Whether there is a legend.
    """
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=9, framealpha=0.9)


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes an image and makes its folder, on process 0 alone.

    Args:
      figure: The figure.
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).

    Raises:
      OSError: If the image cannot be written.
    """
    if not processes.is_first():
        return
    with explain_write_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
