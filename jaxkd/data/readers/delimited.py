"""Files of one row a line, whose first line names the fields: TSV without quoting, and CSV."""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path

from jaxkd.data.checks import listing
from jaxkd.data.readers.columns import Columns, read_lines, shortened

_LOCK = threading.Lock()


def read_tsv(path: Path) -> Columns:
    """Reads a TSV file as published sets are written: tabs part the fields, and quotes are characters like others.

    Args:
      path: The file; its first line names the fields.

    Returns:
      The columns, as texts.

    Raises:
      ValueError: As `read_lines` says; or if a field's name occurs twice, or a line has more or fewer fields than the
        first.
    """
    lines = read_lines(path)
    while lines and not lines[-1]:  # empty lines at the end are no rows
        lines.pop()
    rows = [line.split("\t") for line in lines]
    return _columns(path, rows, range(1, len(rows) + 1), "a tab")


def read_csv(path: Path) -> Columns:
    """Reads a CSV file: commas part the fields, and double quotes hold commas and line ends together.

    Args:
      path: The file; its first line names the fields.

    Returns:
      The columns, as texts.

    Raises:
      ValueError: As `read_tsv` says, and if a quote is not closed.
    """
    text = "\n".join(read_lines(path))
    rows, numbers, number = [], [], 1
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            for row in reader:
                if row:  # the module gives an empty list for an empty line
                    rows.append(row)
                    numbers.append(number)
                number = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"line {number} of {path} is no CSV ({error}): close its quotes and double those within a field, or "
                "write tsv:PATH if tabs part the fields and quotes are characters."
            ) from error
    return _columns(path, rows, numbers, "a comma")


@contextlib.contextmanager
def _long_fields() -> Generator[None, None, None]:
    """Context in which the module csv reads fields of any length: its limit is one of the whole process."""
    with _LOCK:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _columns(path: Path, rows: Sequence[Sequence[str]], lines: Sequence[int], separator: str) -> Columns:
    """Columns of the rows below the first one, which names them."""
    header = [name.strip() or f"column{number}" for number, name in enumerate(rows[0], 1)]
    if twice := [name for name, count in collections.Counter(header).items() if count > 1]:
        raise ValueError(f"the first line of {path} names the field {twice[0]!r} twice: give each a name of its own.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"line {line} of {path} has {len(row)} field(s), {shortened(' | '.join(row))}, but the first "
                f"line names {len(header)} ({listing(header)}), parted by {separator}: correct that line."
            )
    if len(rows) < 2:
        raise ValueError(f"{path} has no line below the first, which names the fields {listing(header)}: add rows.")
    return Columns(str(path), dict(zip(header, map(list, zip(*rows[1:], strict=True)), strict=True)), lines[1:])
