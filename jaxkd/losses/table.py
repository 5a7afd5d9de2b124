"""Table of losses in the README of this folder, from declarations and docstrings.

`python -m jaxkd.losses.table` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxkd import losses
from jaxkd.files import write_atomically
from jaxkd.testing import declarations

README = Path(__file__).with_name("README.md")
HEAD = "| Loss | Paper, or what it computes | Venue | Link | Kind | Parameters of its own |"


def rows() -> Iterator[str]:
    """Rows of the table, one for each loss, in the order of the modules and of the functions in them."""
    yield HEAD
    yield "| :-- | :-- | :-- | :-- | :-- | :-- |"
    for declared in declarations(losses):
        title, venue, link = declared.reference
        title = title.removesuffix(f"; {declared.kind}")  # which has a column of its own
        yield f"| `{declared.name}` | {title} | {venue} | {link} | {declared.kind} | {declared.own} |"


def with_table(text: str) -> str:
    """A README with the table as it should be.

    Args:
      text: Markdown with one table of losses in it.

    Returns:
      The same with the table's lines replaced.

    Raises:
      ValueError: If the table is missing.
    """
    before, head, after = text.partition(HEAD)
    if not head:
        raise ValueError(f"the README has no table of losses: put the line {HEAD!r} where it should stand.")
    left = after.split("\n")
    end = next((i for i, line in enumerate(left[1:], 1) if not line.startswith("|")), len(left))
    return before + "\n".join([*rows(), *left[end:]])


if __name__ == "__main__":
    write_atomically(README, with_table(README.read_text()))
