"""Figures: curves of logged metrics, and reliability diagrams."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jaxkd.reports import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    figure, panels = canvas.panels(len(names), (6.4, 4.2), title)
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
                colour = canvas.colour(phases.index(phase))
                dash = _DASHES[splits.index(split) % len(_DASHES)]
                _draw_line(axes, line, name, ", ".join(filter(None, [phase, split])), colour, dash)
        canvas.dress(axes, x_label, (labels or {}).get(name, name))
    canvas.save(figure, path)


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
    figure, (above,) = canvas.panels(1, (5.6, 6.4), title)
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
            "color": canvas.colour(index),
            "linewidth": 1.8,
            "marker": "osD^vPX"[index % 7],
        }
        label = f"{name} (ECE {100 * float(fraction @ gap):.1f} %)"
        above.plot(confidence[full], accuracy[full], label=label, markersize=5, **style)
        below.plot(confidence[full], 100 * fraction, markersize=4, **style)
    canvas.dress(above, "", "accuracy (fraction right)")
    above.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    above.tick_params(labelbottom=False)
    canvas.dress(below, "confidence (largest probability)", "examples (%)", legend=False)
    below.set(ylim=(0, None))
    canvas.save(figure, path)


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
