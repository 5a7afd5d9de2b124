"""What a run is told with: a table, on a terminal and in Markdown, and figures of curves and of reliability."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jaxkd import processes
from jaxkd.run import writing

if TYPE_CHECKING:
    import rich.table
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without their yellow, which is too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")


def mean_std(values: ArrayLike, *, scale: float = 1.0, digits: int = 2) -> str:
    """Formats the mean and the standard deviation over seeds.

    std = sqrt(sum_s (v_s - mean)^2 / (S - 1)), the sample's

    Args:
      values: [S], one value a seed, or a scalar.
      scale: Factor before formatting; 100 shows a fraction in percent.
      digits: Decimals.

    Returns:
      "91.20 ± 0.35", or the mean alone for a single value.
    """
    array = np.ravel(np.asarray(values, np.float64)) * scale
    if array.size == 0:
        return "-"
    mean = f"{array.mean():.{digits}f}"
    return mean if array.size == 1 else f"{mean} ± {array.std(ddof=1):.{digits}f}"


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str],
    *,
    title: str | None = None,
    caption: str | None = None,
) -> rich.table.Table:
    """Builds the table that an experiment prints.

    Args:
      rows: Key -> value of each row; a missing one shows as "-".
      columns: Keys in order, or key -> header. The first column is set to the left, the others to the right.
      title: Above the table.
      caption: Below it.

    Returns:
      A rich table: `rich.print` it.
    """
    import rich.box
    import rich.table

    headers = _headers(columns)
    result = rich.table.Table(title=title, caption=caption, box=rich.box.SIMPLE_HEAD, caption_justify="left")
    for index, header in enumerate(headers.values()):
        result.add_column(header, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        result.add_row(*(_cell(row.get(key)) for key in headers))
    return result


def show(result: rich.table.Table) -> None:
    """Prints a table: as wide as the terminal allows, 120 columns where the output is no terminal.

    Of several processes the first does.

    Args:
      result: From `table`.
    """
    import rich.console

    if not processes.is_first():
        return
    console = rich.console.Console()
    (console if console.is_terminal else rich.console.Console(width=120)).print(result)


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]) -> str:
    """Writes the same table in Markdown, for a README.

    Args:
      rows: As in `table`.
      columns: As in `table`.

    Returns:
      Lines that end with a line break.
    """
    headers = _headers(columns)
    rules = [":--", *["--:"] * (len(headers) - 1)]
    body = [[_cell(row.get(key)).replace("|", "\\|") for key in headers] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [list(headers.values()), rules, *body])


RESULTS: Mapping[str, str] = {
    "network": "network",
    "parameters": "params",
    "labels": "labels",
    "accuracy": "accuracy %",
    "ece": "ECE %",
    "agreement": "agrees %",
    "kl": "KL to teacher",
}
"""Columns of the table of results; drop those that an experiment has no use for."""


def result(
    network: str, values: Mapping[str, ArrayLike], *, parameters: int, labels: int | None = None
) -> dict[str, str]:
    """One row of the table of results, mean ± std where there are several students.

    Args:
      network: What the row is about.
      values: Metric -> value or [S]: `accuracy`, `ece` and `agreement` in 0..1, `kl` in nats; those there are.
      parameters: Trained scalars of one network.
      labels: Labels that it has seen.

    Returns:
      Column -> text.
    """
    percent = {n: mean_std(values[n], scale=100) for n in ("accuracy", "ece", "agreement") if n in values}
    nats = {"kl": mean_std(values["kl"], digits=3)} if "kl" in values else {}
    seen = {} if labels is None else {"labels": f"{labels:,}"}
    return {"network": network, "parameters": f"{parameters:,}", **seen, **percent, **nats}


def by_point(
    values: Mapping[str, ArrayLike], points: Mapping[str, ArrayLike] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Splits the metrics of a sweep by what its students differ in besides the seed.

    Args:
      values: Metric -> [S].
      points: Name -> [S], as `students.grid` gives them; None where there is one student.

    Yields:
      " temperature=2" (nothing where only the seeds differ), and metric -> the values of those students.
    """
    if points is None:
        yield "", dict(values)
        return
    varied = [name for name in points if name != "seed"]
    columns = [np.asarray(points[name]) for name in varied]
    count = np.asarray(next(iter(points.values()))).size
    labels = ["".join(f" {n}={c[i]:g}" for n, c in zip(varied, columns, strict=True)) for i in range(count)]
    for label in dict.fromkeys(labels):
        mine = np.array([other == label for other in labels])
        yield label, {name: np.asarray(value)[mine] for name, value in values.items()}


def gain(before: ArrayLike, after: ArrayLike, *, unit: str = "points") -> tuple[float, float, str]:
    """How much better one kind of student is than another, and whether the seeds can tell.

    gain = mean(after) - mean(before);  error = sqrt(var(before) / S_before + var(after) / S_after)

    Args:
      before: [S], one value a student, at least two of them.
      after: [S].
      unit: Unit of the values.

    Returns:
      The gain, its standard error, and a sentence that claims a gain only above two standard errors.
    """
    b, a = np.asarray(before, np.float64), np.asarray(after, np.float64)
    difference = float(a.mean() - b.mean())
    error = float(np.sqrt(b.var(ddof=1) / b.size + a.var(ddof=1) / a.size))
    verdict = "more" if difference > 2 * error else "NOT more"
    return difference, error, f"{difference:+.2f} {unit}, {verdict} than two standard errors (of {error:.2f})"


def last_and_best(
    metrics: Iterable[Mapping[str, Any]], *, metric: str = "accuracy", split: str = "validation"
) -> dict[str, dict[str, Any]]:
    """Finds, for each stage, the last and the best value of a metric that is better when larger.

    The best is each student's own, as where others speak of the best epoch of a run.

    Args:
      metrics: Rows as `jaxkd.log.read_metrics` gives them.
      metric: The metric's name.
      split: The split that was measured.

    Returns:
      Stage -> {"last": value or [S], "best": likewise, "best_step": the steps of the best, likewise}.
    """
    found: dict[str, list[tuple[int, Any]]] = {}
    for row in metrics:
        if row["split"] == split and metric in row:
            found.setdefault(row.get("stage", ""), []).append((row["step"], row[metric]))
    result = {}
    for stage, rows in found.items():
        steps, values = np.asarray([step for step, _ in rows]), np.asarray([value for _, value in rows])
        best = {"best": values.max(axis=0).tolist(), "best_step": steps[values.argmax(axis=0)].tolist()}
        result[stage] = {"last": rows[-1][1], **best}
    return result


def plot_curves(
    metrics: Iterable[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    y: str | Sequence[str],
    labels: Mapping[str, str] | None = None,
    x_label: str = "step (updates)",
    title: str = "",
) -> None:
    """Draws logged metrics over the steps, a panel for each metric and a line for each stage and split.

    Stages differ by colour, splits by dashes. Where a row holds one value a student, the line is their mean and the
    band around it one standard deviation.

    Args:
      metrics: Rows as `jaxkd.log.read_metrics` gives them.
      path: The image; its ending chooses the format (.png, .svg, .pdf).
      y: The metric's name, or several.
      labels: Metric name -> label of its axis, with the unit ("loss (nats)"); the name itself by default.
      x_label: Label of the steps' axis.
      title: Above the figure.

    Raises:
      ValueError: If no row has one of the metrics (lists those there are).
      OSError: If the image cannot be written.
    """
    rows, names = list(metrics), [y] if isinstance(y, str) else list(y)
    figure, panels = _figure(len(names), (6.4, 4.2), title)
    stages = list(dict.fromkeys(row.get("stage", "") for row in rows))
    splits = list(dict.fromkeys(row["split"] for row in rows))
    for axes, name in zip(panels, names, strict=True):
        chosen = [row for row in rows if name in row]
        if not chosen:
            there = sorted({key for row in rows for key in row} - {"stage", "step", "split"})
            raise ValueError(f"no logged row has the metric {name!r}: choose among {', '.join(there) or 'none'}.")
        for stage, split in itertools.product(stages, splits):
            line = [row for row in chosen if (row.get("stage", ""), row["split"]) == (stage, split)]
            if line:
                colour = _COLOURS[stages.index(stage) % len(_COLOURS)]
                dash = _DASHES[splits.index(split) % len(_DASHES)]
                _draw_line(axes, line, name, ", ".join(filter(None, [stage, split])), colour, dash)
        _dress(axes, x_label, (labels or {}).get(name, name))
    _save(figure, path)


def plot_reliability(
    bins: Mapping[str, Mapping[str, ArrayLike]], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draws the reliability diagram: accuracy over confidence, with the share of examples in each bin below.

    ECE = sum_b count_b / sum(count) * |accuracy_b - confidence_b|, shown in the legend

    Args:
      bins: Model -> `count`, `confidence` and `accuracy`, each [bins]: the number of examples whose confidence falls
        into the bin, their mean confidence and their accuracy, both in [0, 1]; empty bins may hold anything.
      path: The image; its ending chooses the format (.png, .svg, .pdf).
      title: Above the figure.

    Raises:
      ValueError: If there is no model, or the three arrays of a model do not share one shape [bins].
      OSError: If the image cannot be written.
    Reference: On Calibration of Modern Neural Networks, C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, 2017,
      https://arxiv.org/abs/1706.04599
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
            raise ValueError(f"count, confidence and accuracy of {name!r} have shapes {shapes}: give [bins] each.")
        full = count > 0
        share = count[full] / count.sum() if full.any() else count[full]
        gap = np.abs(accuracy[full] - confidence[full])
        style: dict[str, Any] = {
            "color": _COLOURS[index % len(_COLOURS)],
            "linewidth": 1.8,
            "marker": "osD^vPX"[index % 7],
        }
        label = f"{name} (ECE {100 * float(share @ gap):.1f} %)"
        above.plot(confidence[full], accuracy[full], label=label, markersize=5, **style)
        below.plot(confidence[full], 100 * share, markersize=4, **style)
    _dress(above, "", "accuracy (fraction right)")
    above.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    above.tick_params(labelbottom=False)
    _dress(below, "confidence (largest probability)", "examples (%)", legend=False)
    below.set(ylim=(0, None))
    _save(figure, path)


def _headers(columns: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Key -> header."""
    return dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}


def _cell(value: Any) -> str:
    """The text of one cell: thousands apart, four significant digits of other numbers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)


def _figure(panels: int, size: tuple[float, float], title: str) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, without pyplot and its global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * panels, size[1]), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=13)
    return figure, list(np.ravel(figure.subplots(1, panels, squeeze=False)))


def _draw_line(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str, label: str, colour: str, dash: str) -> None:
    """One line, with a band where the rows hold a value for each student."""
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
    """Labels, grid, legend and a light frame."""
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=9, framealpha=0.9)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the image, making its folder; process 0 alone does."""
    if not processes.is_first():
        return
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
