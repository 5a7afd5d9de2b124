"""Files of one text a line, and of one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxkd.data.readers.columns import Columns, read_lines, shortened


def read_plain(path: Path) -> Columns:
    """Reads a file of one text a line.

    Args:
      path: The file.

    Returns:
      One column, `text`.

    Raises:
      ValueError: As `read_lines` says.
    """
    lines = read_lines(path)
    return Columns(str(path), {"text": lines}, range(1, len(lines) + 1))


def read_jsonl(path: Path) -> Columns:
    """Reads a file of one JSON object a line.

    Args:
      path: The file. Empty lines are left out.

    Returns:
      A column for each name that occurs; None where an object lacks it.

    Raises:
      ValueError: As `read_lines` says, or if a line holds no JSON object; the sentence names the line.
    """
    rows, lines = [], []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            rows.append(_object(path, number, line))
            lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    if not names:
        raise ValueError(f"the objects of {path} have no fields: give at least a text.")
    return Columns(str(path), {name: [row.get(name) for row in rows] for name in names}, lines)


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    """The object that a line holds."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        advice = (
            "write one object a line, as jq -c '.[]' does of a list"
            if number == 1 and line.lstrip()[:1] in ("[", "{")
            else "correct that line"
        )
        raise ValueError(f"line {number} of {path} is not JSON ({shortened(line)}): {advice}.") from error
    if not isinstance(value, dict):
        advice = "write one object a line, as jq -c '.[]' does of a list" if isinstance(value, list) else "correct it"
        raise ValueError(
            f"line {number} of {path} holds {shortened(value)} where an object is expected, such as "
            f'{{"text": "...", "label": 0}}: {advice}.'
        )
    return value
