"""Figures: curves of logged metrics, and reliability diagrams."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jaxkd.files import explain_write_errors
from jaxkd.parallel import processes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers, without its yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")


def plot_curves(
    metrics: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    y: str | Sequence[str],
    labels: Mapping[str, str] | None = None,
    x_label: str = "step (updates)",
    title: str = "",
) -> None:
    """Draws logged metrics over the steps, with a panel for each metric and a line for each phase and split.

    Phases differ by colour, splits by dashes. If rows hold one value for each student, the line is their mean and the
    band around it one standard deviation.

    Args:
      metrics: Rows as `jaxkd.runs.read_metrics` returns them.
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      y: Name of the metric, or several names.
      labels: Metric -> label of its axis, with the unit ("loss (nats)"); the name itself by default.
      x_label: Label of the axis of steps.
      title: Title of the figure.

    Raises:
      ValueError: If no row has one of the metrics; the message lists those there are.
      OSError: If the image cannot be written.
    """
    rows, names = list(metrics), [y] if isinstance(y, str) else list(y)
    figure, panels = _figure(len(names), (6.4, 4.2), title)
    phases = list(dict.fromkeys(row.get("phase", "") for row in rows))
    splits = list(dict.fromkeys(row["split"] for row in rows))
    for axes, name in zip(panels, names, strict=True):
        chosen = [row for row in rows if name in row]
        if not chosen:
            there = sorted({key for row in rows for key in row} - {"phase", "step", "split"})
            raise ValueError(f"no logged row has the metric {name!r}: choose among {', '.join(there) or 'none'}.")
        for phase, split in itertools.product(phases, splits):
            line = [row for row in chosen if (row.get("phase", ""), row["split"]) == (phase, split)]
            if line:
                colour = _COLOURS[phases.index(phase) % len(_COLOURS)]
                dash = _DASHES[splits.index(split) % len(_DASHES)]
                _draw_line(axes, line, name, ", ".join(filter(None, [phase, split])), colour, dash)
        _dress(axes, x_label, (labels or {}).get(name, name))
    _save(figure, path)


def plot_reliability(
    bins: Mapping[str, Mapping[str, ArrayLike]], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draws a reliability diagram: accuracy over confidence, and below it the fraction of examples in each bin.

    The legend shows ECE = sum_b count_b / sum(count) * |accuracy_b - confidence_b|.

    Args:
      bins: Model -> `count`, `confidence` and `accuracy`, each [bins]: the number of examples whose confidence falls
        into the bin, their mean confidence and their accuracy, both in [0, 1]. Values of empty bins are ignored.
      path: Path of the image, whose suffix chooses the format (.png, .svg, .pdf).
      title: Title of the figure.

    Raises:
      ValueError: If there is no model, or if the three arrays of a model are not of one shape [bins].
      OSError: If the image cannot be written.

    Reference:
      Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599
    """
    if not bins:
        raise ValueError("there is no model to draw the reliability of: give at least one.")
    figure, (above,) = _figure(1, (5.6, 6.4), title)
    below = above.inset_axes((0, -0.33, 1, 0.25), sharex=above)
    above.plot([0, 1], [0, 1], color="0.45", linewidth=1, linestyle="--", label="perfectly calibrated")
    for index, (name, arrays) in enumerate(bins.items()):
        count, confidence, accuracy = (
            np.asarray(arrays[key], np.float64) for key in ("count", "confidence", "accuracy")
        )
        if not count.shape == confidence.shape == accuracy.shape or count.ndim != 1:
            shapes = f"{count.shape}, {confidence.shape} and {accuracy.shape}"
            raise ValueError(
                f"count, confidence and accuracy of {name!r} have shapes {shapes}: give all three one shape [bins]."
            )
        full = count > 0
        fraction = count[full] / count.sum() if full.any() else count[full]
        gap = np.abs(accuracy[full] - confidence[full])
        style: dict[str, Any] = {
            "color": _COLOURS[index % len(_COLOURS)],
            "linewidth": 1.8,
            "marker": "osD^vPX"[index % 7],
        }
        label = f"{name} (ECE {100 * float(fraction @ gap):.1f} %)"
        above.plot(confidence[full], accuracy[full], label=label, markersize=5, **style)
        below.plot(confidence[full], 100 * fraction, markersize=4, **style)
    _dress(above, "", "accuracy (fraction right)")
    above.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    above.tick_params(labelbottom=False)
    _dress(below, "confidence (largest probability)", "examples (%)", legend=False)
    below.set(ylim=(0, None))
    _save(figure, path)


def _figure(panels: int, size: tuple[float, float], title: str) -> tuple[Figure, list[Axes]]:
    """Figure with panels in a row, made without pyplot and its global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * panels, size[1]), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13)
    return figure, list(np.ravel(figure.subplots(1, panels, squeeze=False)))


def _draw_line(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, label: str, colour: str, dash: str) -> None:
    """Draws one line, with a band if the rows hold a value for each student."""
    steps = np.array([row["step"] for row in rows])
    values = [np.ravel(np.asarray(row[name], np.float64)) for row in rows]
    mean = np.array([v.mean() for v in values])
    # A single point would be an invisible line.
    marker = "o" if len(rows) == 1 else None
    axes.plot(steps, mean, color=colour, linestyle=dash, linewidth=1.8, marker=marker, label=label)
    if max(v.size for v in values) > 1:
        std = np.array([v.std(ddof=1) if v.size > 1 else 0.0 for v in values])
        axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)


def _dress(axes: Axes, x_label: str, y_label: str, *, legend: bool = True) -> None:
    """Adds labels, a grid, a legend and a light frame."""
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=9, framealpha=0.9)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the image and makes its folder, on process 0 alone."""
    if not processes.is_first():
        return
    with explain_write_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
