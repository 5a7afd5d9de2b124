"""Tables of results, for a terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from jaxkd.parallel import processes

if TYPE_CHECKING:
    import rich.table


def mean_std(values: ArrayLike, *, scale: float = 1.0, digits: int = 2) -> str:
    """Mean and sample standard deviation over seeds, as text.

    std = sqrt(sum_s (v_s - mean)^2 / (S - 1))

    Args:
      values: Values [S], one for each seed, or a scalar.
      scale: Factor that the values are multiplied by; 100 shows a fraction in percent.
      digits: Number of decimals.

    Returns:
      Such as "91.20 ± 0.35"; the mean alone for a single value, "-" for none. NaN stands for a student that has
      diverged: the others make up the mean, and the text says how many have, as "91.20 ± 0.35, 1 diverged".
    """
    array = np.ravel(np.asarray(values, np.float64)) * scale
    if array.size == 0:
        return "-"
    left = array[~np.isnan(array)]
    if left.size == 0:
        return "diverged"
    lost = f", {array.size - left.size} diverged" if left.size < array.size else ""
    mean = f"{left.mean():.{digits}f}"
    return (mean if left.size == 1 else f"{mean} ± {left.std(ddof=1):.{digits}f}") + lost


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | Mapping[str, str],
    *,
    title: str | None = None,
    caption: str | None = None,
) -> rich.table.Table:
    """Builds a table for the terminal.

    Args:
      rows: Key -> value of each row; a missing value shows as "-".
      columns: Keys in order, or key -> header. The first column is aligned to the left, the others to the right.
      title: Text above the table.
      caption: Text below the table.

    Returns:
      Table of the library rich, for `show` or `rich.print`.
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
    """Prints a table, only on process 0.

    It is as wide as the terminal allows, and at most 120 columns wide where the output is no terminal.

    Args:
      result: Table from `table`.
    """
    import rich.console

    if not processes.is_first():
        return
    plain: dict[str, Any] = {"markup": False, "emoji": False}  # brackets and colons are parts of names and paths
    console = rich.console.Console(**plain)
    (console if console.is_terminal else rich.console.Console(width=120, **plain)).print(result)


def markdown(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]) -> str:
    """Builds a table in Markdown, for a README.

    Args:
      rows: As in `table`.
      columns: As in `table`.

    Returns:
      Text of the table, which ends with a line break.
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
"""Column -> header of the table of results; an experiment leaves out the columns that it has no values for."""

REGRESSION_RESULTS: Mapping[str, str] = {
    "network": "network",
    "parameters": "params",
    "labels": "labels",
    "mae": "MAE",
    "rmse": "RMSE",
}
"""Column -> header of the table of results of a regression."""


def result(
    network: str, values: Mapping[str, ArrayLike], *, parameters: int, labels: int | None = None
) -> dict[str, str]:
    """Row of the table of results, with mean ± std if there are several students.

    Args:
      network: Name of the network.
      values: Metric -> value or [S]; of these are shown `accuracy`, `ece` and `agreement` in 0..1, `kl` in nats, `mae`
        and `rmse` in units of the labels.
      parameters: Number of trained scalars of one network.
      labels: Number of labels that it was trained with; None leaves the column empty.

    Returns:
      Column -> text, for `table` and `markdown` with the columns `RESULTS` or `REGRESSION_RESULTS`.
    """
    percent = {n: mean_std(values[n], scale=100) for n in ("accuracy", "ece", "agreement") if n in values}
    plain = {n: mean_std(values[n], digits=3) for n in ("kl", "mae", "rmse") if n in values}
    seen = {} if labels is None else {"labels": f"{labels:,}"}
    return {"network": network, "parameters": f"{parameters:,}", **seen, **percent, **plain}


def _headers(columns: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Key -> header of each column."""
    return dict(columns) if isinstance(columns, Mapping) else {key: key for key in columns}


def _cell(value: Any) -> str:
    """Text of one cell: integers with separated thousands, other numbers with four significant digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
