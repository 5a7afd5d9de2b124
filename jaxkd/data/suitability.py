"""What a training may require of its sources: their task, rows that do not overlap, pixels between 0 and 1."""

from __future__ import annotations

import re

import numpy as np

from jaxkd.data.labels import ADVICE, MEANING, Task
from jaxkd.data.source import Source, sample_rows
from jaxkd.data.texts import Texts

_WHOLE = re.compile(r"(\[[^\[\]]+)\[[^\[\]]*\]\]$")


def check_task(source: Source, *tasks: Task) -> None:
    """Checks that a source's labels are of a kind that a training can use.

    Args:
      source: The source.
      *tasks: Tasks that the training knows.

    Raises:
      ValueError: If the source has another task; the message names it, what was needed, and the losses that suit it.
    """
    if source.task not in tasks:
        needed = " or ".join(f"{MEANING[task]} ({task})" for task in tasks)
        raise ValueError(
            f"{source.name} has {MEANING[source.task]} (task {source.task!r}), but {needed} are needed here: "
            f"{ADVICE[source.task]}."
        )


def check_disjoint(*sources: Source | Texts) -> None:
    """Checks that sources which are slices of one split hold different rows, as training and validation rows should.

    Args:
      *sources: Sources of one data set, as `open_source` gives them, or texts, as `open_texts` does.

    Raises:
      ValueError: If two of them share a row; the message names both and the row.
    """
    for i, one in enumerate(sources):
        for other in sources[:i]:
            same = {_WHOLE.sub(r"\1]", source.name) for source in (one, other)}
            if len(same) == 1 and (shared := np.intersect1d(one.ids, other.ids)).size:
                raise ValueError(
                    f"{other.name} and {one.name} share {shared.size} rows, such as {shared[0]}: give slices that do "
                    "not overlap, all by percentages or all by row numbers."
                )


def check_unit_pixels(source: Source) -> None:
    """Checks, on a sample of rows, that images are bytes or lie between 0 and 1, as a fixed mean and std expect them.

    Args:
      source: A source of images.

    Raises:
      ValueError: If floating images lie elsewhere; the message names their range.
    """
    pixels = source.read(sample_rows(source, 256))["image"]
    if pixels.dtype != np.uint8 and (pixels.min() < 0 or pixels.max() > 1):
        raise ValueError(
            f"images of {source.name} are floats from {pixels.min():g} to {pixels.max():g}, but 0 to 1 is expected: "
            "scale them, or give uint8 in 0..255."
        )
