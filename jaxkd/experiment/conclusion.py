"""The end of every experiment: the table on the terminal, figures and summary in the run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from jaxkd import reports
from jaxkd.files import write_atomically
from jaxkd.parallel import processes
from jaxkd.runs.directory import Run
from jaxkd.runs.logger import read_metrics

Rows: TypeAlias = Sequence[Mapping[str, Any]]


def conclude(
    run: Run,
    rows: Rows | Callable[[Mapping[str, Any]], Rows],
    columns: Mapping[str, str] = reports.RESULTS,
    *,
    title: str,
    caption: str | None = None,
    curves: Sequence[str] = (),
    reliability: Mapping[str, Mapping[str, Any]] | None = None,
    markdown: bool = False,
    **summary: Any,
) -> None:
    """Prints an experiment's table, draws its figures and finishes the run; on process 0 alone.

    Args:
      run: The run.
      rows: Key -> text of each row of the table, such as `reports.result` gives; or a function that makes the rows from
        the last and best values of each phase, accuracies or those of another metric (`reports.last_and_best`).
      columns: Key -> header of the table's columns.
      title: Above the table.
      caption: Below the table.
      curves: Validation metrics that `curves.png` shows over the steps; no figure if empty.
      reliability: Network -> bins of its calibration error, for `reliability.png`; no figure if None.
      markdown: Whether the table is also written as `table.md`.
      **summary: Further entries of `summary.json`, besides "table", "validation" (last and best values) and, where
        there are some, "lost" (students of each phase that diverged).

    Raises:
      OSError: If a file cannot be written.
    """
    if not processes.is_first():
        return
    logged = [line for line in read_metrics(run.path) if line["split"] == "validation"]
    validation = reports.last_and_best(logged, lost=run.lost, best=run.best)
    rows = rows(validation) if callable(rows) else rows
    if markdown:
        write_atomically(run.path / "table.md", reports.markdown(rows, columns))
    reports.show(reports.table(rows, columns, title=title, caption=caption))
    if curves:
        reports.plot_curves(logged, run.path / "curves.png", y=list(curves), labels={"nll": "NLL (nats)"})
    if reliability is not None:
        reports.plot_reliability(reliability, run.path / "reliability.png", title="Reliability, students pooled")
    lost = {"lost": found} if (found := {phase: gone for phase, gone in run.lost.items() if gone}) else {}
    run.finish({"table": list(rows), "validation": validation, **lost, **summary})
    figures = "figures, " if curves or reliability is not None else ""
    print(f"{figures}metrics and checkpoints are in {run.path}")
