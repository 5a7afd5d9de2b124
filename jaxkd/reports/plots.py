"""Plots of results: lines with bands, ROC curves, forecasts beside the truth, confusion matrices."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from jax.typing import ArrayLike

from jaxkd.reports import canvas

T = TypeVar("T")


def plot_lines(
    path: str | os.PathLike[str],
    x: ArrayLike,
    lines: Mapping[str, ArrayLike],
    x_label: str,
    y_label: str,
    title: str = "",
) -> None:
    """Draws one line for each name, such as the accuracy of several networks over the signal-to-noise ratio.

    Of several students, the line is the mean and the band around it one standard deviation (divisor S - 1).

    Args:
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      x: [N] numbers.
      lines: Name -> y [N], or [S, N] of S students; NaN leaves a gap.
      x_label: Label of the horizontal axis, with the unit ("SNR (dB)").
      y_label: Label of the vertical axis, with the unit ("accuracy (%)").
      title: Title of the figure.

    Raises:
      ValueError: If there is no line, or one of another length than x.
      OSError: If the image cannot be written.
    """
    places = _row("x", x)
    figure, (axes,) = canvas.panels(1, (6.4, 4.2), title)
    for index, (name, values) in enumerate(_some(lines, "line").items()):
        y = np.asarray(values, np.float64)
        if y.ndim not in (1, 2) or y.shape[-1] != len(places) or not y.size:
            raise ValueError(
                f"the line {name!r} has shape {y.shape} but x has {len(places)} numbers: give [{len(places)}], or "
                f"[S, {len(places)}] of S students."
            )
        each, colour = np.atleast_2d(y), canvas.colour(index)
        mean = each.mean(axis=0)
        axes.plot(places, mean, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
        if len(each) > 1:
            std = each.std(axis=0, ddof=1)
            axes.fill_between(places, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    canvas.dress(axes, x_label, y_label)
    canvas.save(figure, path)


def plot_roc(path: str | os.PathLike[str], curves: Mapping[str, tuple[ArrayLike, ArrayLike]], title: str = "") -> None:
    """Draws receiver operating characteristics; the legend has the area under each, by trapezoids.

    Args:
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      curves: Name -> (false positive rates, true positive rates), each [N] in 0..1 and not falling, as
        `sklearn.metrics.roc_curve` returns them.
      title: Title of the figure.

    Raises:
      ValueError: If there is no curve, or one of its rates falls, or lies outside 0..1.
      OSError: If the image cannot be written.
    """
    figure, (axes,) = canvas.panels(1, (5.2, 5.2), title)
    axes.plot([0, 1], [0, 1], color="0.45", linewidth=1, linestyle="--", label="chance")
    for index, (name, rates) in enumerate(_some(curves, "curve").items()):
        fpr, tpr = (_row(f"a rate of {name!r}", rate) for rate in rates)
        if len(fpr) != len(tpr):
            raise ValueError(
                f"the curve {name!r} has {len(fpr)} false and {len(tpr)} true positive rates: give as many of both."
            )
        for rate in (fpr, tpr):
            if not (np.all(np.diff(rate) >= 0) and rate[0] >= 0 and rate[-1] <= 1):
                raise ValueError(f"a rate of the curve {name!r} falls or lies outside 0..1: give both in rising order.")
        area = np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)
        axes.plot(fpr, tpr, color=canvas.colour(index), linewidth=1.8, label=f"{name} (AUC {area:.3f})")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    canvas.dress(axes, "false positive rate", "true positive rate")
    canvas.save(figure, path)


def plot_forecasts(
    path: str | os.PathLike[str],
    times: ArrayLike,
    truth: ArrayLike,
    forecasts: Mapping[str, ArrayLike],
    x_label: str = "time",
    y_label: str = "value",
    title: str = "",
) -> None:
    """Draws forecasts beside the truth, each at the time that it is a forecast of.

    Args:
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      times: [N] numbers or NumPy dates.
      truth: [N]; NaN where nothing was measured leaves a gap.
      forecasts: Name -> [N]; NaN where there is none.
      x_label: Label of the horizontal axis, with the unit ("time (h)").
      y_label: Label of the vertical axis, with the unit ("speed (mph)").
      title: Title of the figure.

    Raises:
      ValueError: If truth or a forecast has another length than the times.
      OSError: If the image cannot be written.
    """
    at = np.asarray(times)
    if at.ndim != 1 or not at.size:
        raise ValueError(f"times have shape {at.shape}: give [N] with at least one time.")
    figure, (axes,) = canvas.panels(1, (9.0, 4.2), title)
    for index, (name, values) in enumerate({"truth": truth, **_some(forecasts, "forecast")}.items()):
        y = np.asarray(values, np.float64)
        if y.shape != at.shape:
            raise ValueError(f"{name} has shape {y.shape} but there are {len(at)} times: give one value for each.")
        colour, width = ("black", 1.2) if index == 0 else (canvas.colour(index - 1), 1.6)
        axes.plot(at, y, color=colour, linewidth=width, label=name)
    canvas.dress(axes, x_label, y_label)
    canvas.save(figure, path)


def plot_confusion(
    path: str | os.PathLike[str], matrix: ArrayLike, class_names: Sequence[str], title: str = ""
) -> None:
    """Draws a confusion matrix: colours are fractions of each true class, figures are counts.

    Args:
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      matrix: [K, K] counts, true classes in rows, predicted ones in columns.
      class_names: K names.
      title: Title of the figure.

    Raises:
      ValueError: If the matrix is not square, has negative counts, or another number of names.
      OSError: If the image cannot be written.
    """
    counts, names = np.asarray(matrix, np.float64), list(class_names)
    if counts.shape != (len(names), len(names)) or not names or not np.all(counts >= 0):
        raise ValueError(
            f"the matrix has shape {counts.shape} and there are {len(names)} names of classes: give counts [K, K] that "
            "are not negative, and K names."
        )
    size = max(4.2, 0.55 * len(names) + 2.2)
    figure, (axes,) = canvas.panels(1, (size + 0.8, size), title)
    rows = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(rows, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="fraction of the true class", shrink=0.85)
    if len(names) <= 20:
        for (i, j), count in np.ndenumerate(counts):
            ink = "white" if rows[i, j] > 0.5 else "black"
            axes.text(j, i, f"{count:.6g}", ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    canvas.dress(axes, "predicted class", "true class", legend=False)
    axes.grid(visible=False)
    canvas.save(figure, path)


def _some(things: Mapping[str, T], noun: str) -> Mapping[str, T]:
    """The same, unless there is none."""
    if not things:
        raise ValueError(f"there is no {noun} to draw: give at least one.")
    return things


def _row(name: str, values: ArrayLike) -> np.ndarray:
    """Numbers [N] as float64."""
    row = np.asarray(values, np.float64)
    if row.ndim != 1 or not row.size:
        raise ValueError(f"{name} has shape {row.shape}: give [N] with at least one number.")
    return row
