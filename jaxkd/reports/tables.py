"""What a run is told with: a table, on a terminal and in Markdown, and figures of curves and of reliability."""

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
