"""Results of checks: counter-examples, and the report made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np


class Finding(NamedTuple):
    """A counter-example.

    Attributes:
      what: One sentence: what should have held.
      rows: Name of an input -> the rows of it that show the failure; empty where no single row does.
      values: The two things that disagree, by name.
      row: The row's number in the inputs, or None if it takes the whole batch.
    """

    what: str
    rows: Mapping[str, np.ndarray]
    values: Mapping[str, Any]
    row: int | None = None


class NotRun(NamedTuple):
    """Outcome of a check that could not be made.

    Attributes:
      reason: Why, in one sentence.
    """

    reason: str


Outcome: TypeAlias = Finding | NotRun | None
"""A counter-example, a reason why the check was not run, or None where the property held."""


class Result(NamedTuple):
    """One property and the outcome of its check, which is None where it held."""

    name: str
    outcome: Outcome


@dataclass(frozen=True, repr=False)
class Report:
    """Report of `check_loss`: true if nothing failed; `str(report)` is the text.

    Attributes:
      subject: Name of the checked function.
      results: One result for each property, in the order declared.
    """

    subject: str
    results: tuple[Result, ...]

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the properties that held."""
        return tuple(r.name for r in self.results if r.outcome is None)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the properties that failed."""
        return tuple(r.name for r in self.results if isinstance(r.outcome, Finding))

    @property
    def not_run(self) -> Mapping[str, str]:
        """Name -> reason of the properties that could not be checked."""
        return {r.name: r.outcome.reason for r in self.results if isinstance(r.outcome, NotRun)}

    def __bool__(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        counts = f"{len(self.held)} held, {len(self.failed)} failed, {len(self.not_run)} not run"
        return "\n".join([f"{self.subject}: {counts}", *(_render(r) for r in self.results)])

    __repr__ = __str__


def _render(result: Result) -> str:
    """The lines of one result: one, or a block if it failed."""
    if result.outcome is None:
        return f"  held     {result.name}"
    if isinstance(result.outcome, NotRun):
        return f"  not run  {result.name}: {result.outcome.reason}"
    finding = result.outcome
    lines = [f"  FAILED   {result.name}: {finding.what}"]
    if finding.rows:
        place = "the whole batch" if finding.row is None else f"row {finding.row}"
        lines.append(f"             counter-example ({place}):")
    shown = {**finding.rows, **finding.values}
    width = max((len(name) for name in shown), default=0)
    return "\n".join(
        [*lines, *(f"             {name:<{width}} = {_show(value, width)}" for name, value in shown.items())]
    )


def _show(value: Any, width: int) -> str:
    """A value in few digits; further lines are indented below the first."""
    if not isinstance(value, np.ndarray):
        return str(value)
    if value.size > 8 and np.array_equal(value, np.full_like(value, value.flat[0]), equal_nan=True):
        return f"{value.flat[0]} everywhere, shape {value.shape}"
    digits = 7 if value.size == 1 else 4
    text = np.array2string(value, precision=digits, threshold=40, edgeitems=3, max_line_width=100, separator=", ")
    return re.sub(r"\n+", "\n" + " " * (width + 16), text)
