"""Regular expressions of paths, as rules have them."""

from __future__ import annotations

import re


def matches(pattern: str, path: str) -> bool:
    """Search of a pattern in a path: true if it is found.

    Args:
      pattern: Regular expression.
      path: Path such as "encoder/block0/mlp1/kernel".

    Returns:
      True if it is found.

    Raises:
      ValueError: If the pattern is no regular expression.
    """
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise ValueError(
            f"the pattern {pattern!r} is no regular expression ({error}): write signs such as ( and [ as \\( and \\[."
        ) from None
