"""Checks that all readers share: splits, labels, finite values, image shapes; each failure is one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SPLIT = re.compile(r"(?P<name>[^\[\]+]+?)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
"""NAME or NAME[start:stop], with rows or percentages."""


def split_rows(name: str, split: str, sizes: Mapping[str, int]) -> tuple[str, int, int]:
    """Resolves "train", "train[:90%]", "train[90%:]" or "train[100:200]" into a range of rows of a whole split.

    Bounds work as in Python slices. Percentages are rounded to the nearest row, so "[:p%]" and "[p%:]" never overlap.

    Args:
      name: Name of the data set, for messages.
      split: The split or a slice of it.
      sizes: Split name -> number of rows.

    Returns:
      (name of the whole split, first row, row after the last).

    Raises:
      ValueError: If the split cannot be parsed, does not exist, or is empty.
    """
    match = SPLIT.fullmatch(split.strip()) if isinstance(split, str) else None
    if match is None:
        raise ValueError(
            f"split {split!r} of {name} is not understood: write NAME or NAME[start:stop] with rows or percentages, "
            "such as train, train[:90%] or train[100:200]."
        )
    base = match["name"].strip()
    if base not in sizes:
        only = f", or a slice of it such as {next(iter(sizes))}[90%:]" if len(sizes) == 1 else ""
        raise ValueError(f"{name} has no split {base!r}: it has {listing(sizes)}, choose one of these{only}.")
    size = sizes[base]
    first, last = (_bound(match[end], size, name, split) for end in ("start", "stop"))
    start, stop, _ = slice(first, last).indices(size)
    if stop <= start:
        raise ValueError(f"split {split!r} of {name} is empty: {base} has {size} rows, choose a wider range of them.")
    return base, start, stop


def _bound(text: str | None, size: int, name: str, split: str) -> int | None:
    """One bound of a slice as a row number."""
    if text is None or not text.endswith("%"):
        return None if text is None else int(text)
    percent = int(text[:-1])
    if abs(percent) > 100:
        raise ValueError(f"split {split!r} of {name} asks for {text}: give percentages between 0% and 100%.")
    return round(size * percent / 100)


def listing(names: Mapping[str, object] | list[str] | tuple[str, ...]) -> str:
    """Enumeration of names for a sentence.

    Args:
      names: The names.

    Returns:
      Such as "train, validation and test"; "nothing" if there are no names.
    """
    ordered = list(names)
    if len(ordered) < 2:
        return ordered[0] if ordered else "nothing"
    return f"{', '.join(ordered[:-1])} and {ordered[-1]}"


def root_cause(error: BaseException) -> str:
    """Type and first line of an exception's root cause, for the middle of a sentence.

    Args:
      error: The exception, with causes or without.

    Returns:
      One line without a full stop, such as "KeyError: 'label'".
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"Failed to construct dataset .*?}\": ", "", str(error))  # TFDS puts it in front of the reason
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.:')}" if lines else type(error).__name__


def is_text(values: np.ndarray) -> bool:
    """Tests if an array holds texts (str, bytes or objects), which no device takes.

    Args:
      values: Any array.

    Returns:
      True for texts.
    """
    return np.asarray(values).dtype.kind in "OSU"


def path_of(text: str) -> Path:
    """Path that a user gave, of which "~" is the home folder.

    Args:
      text: The path.

    Returns:
      The path, of a file or folder that exists or not.

    Raises:
      ValueError: If no file system can have such a path.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        short = text if len(text) < 100 else f"{text[:100]}..."
        raise ValueError(f"{short!r} is no path ({type(error).__name__}): give one of a file or folder.") from error
    if not text:
        raise ValueError("the path is empty: give one after the colon, such as folder:PATH or npz:PATH.")
    return path


def is_whole(value: object) -> bool:
    """Tests if a value is an integer of Python or NumPy.

    Args:
      value: Anything.

    Returns:
      True for integers, False for booleans.
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def first_of(where: np.ndarray) -> tuple[int, int]:
    """Row and column of the first true entry of a matrix.

    Args:
      where: bool [N, M], at least one of them true.

    Returns:
      (row, column).
    """
    row, column = np.argwhere(where)[0]
    return int(row), int(column)


def check_rows(name: str, rows: np.ndarray, size: int) -> np.ndarray:
    """Checks row numbers that are to be read.

    Args:
      name: Name of the source, for the message.
      rows: Integers [B].
      size: Number of rows.

    Returns:
      The row numbers as an array.

    Raises:
      IndexError: If there is no such row.
    """
    rows = np.asarray(rows)
    if rows.size and rows.dtype.kind not in "iu":
        raise IndexError(f"rows of {name} were asked for by numbers of dtype {rows.dtype}: give integers.")
    if rows.size and not (rows.min() >= 0 and rows.max() < size):
        wrong = rows[(rows < 0) | (rows >= size)][0]
        raise IndexError(f"row {wrong} of {name} was asked for, which has {size} rows: give 0..{size - 1}.")
    return rows


def check_labels(name: str, labels: np.ndarray, ids: np.ndarray, num_classes: int) -> None:
    """Checks that all labels lie in 0..num_classes-1.

    Args:
      name: Name of the source, for the message.
      labels: Integers [N].
      ids: Row numbers [N].
      num_classes: Number of classes.

    Raises:
      ValueError: If a label lies outside; the message names it, its row and the number of classes.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        advice = "correct the labels, choose a split that has them, or give another num_classes"
        if labels[wrong[0]] < 0:
            advice = (
                f"correct the labels, leave out rows that have none, or give ignore={labels[wrong[0]]} if it means none"
            )
        raise ValueError(
            f"label {labels[wrong[0]]} in row {ids[wrong[0]]} of {name} lies outside 0..{num_classes - 1} "
            f"({num_classes} classes): {advice}."
        )


def check_int32(name: str, field: str, values: np.ndarray, ids: np.ndarray) -> None:
    """Checks that integers keep their values on a device, which holds them in 32 bits.

    Args:
      name: Name of the source, for the message.
      field: Name of the field, for the message.
      values: Array [N, ...] of any dtype; of unsigned integers 32 bits may be used, of others 31 and a sign.
      ids: Row numbers [N].

    Raises:
      ValueError: If a value would wrap; the message names it, the field and the row.
    """
    if values.dtype not in (np.int64, np.uint64, np.uint32) or not values.size:
        return
    limits = np.iinfo(np.int32 if values.dtype == np.int64 or field in ("label", "tokens") else np.uint32)
    if values.min() >= limits.min and values.max() <= limits.max:
        return
    wrong = (values < limits.min) | (values > limits.max)
    row = int(np.flatnonzero(wrong.reshape(len(values), -1).any(axis=1))[0])
    raise ValueError(
        f"`{field}` in row {ids[row]} of {name} holds {values[row][wrong[row]].ravel()[0]}, which does not fit into "
        f"{limits.dtype}: devices hold integers in 32 bits, give smaller numbers."
    )


def check_finite(name: str, field: str, values: np.ndarray, ids: np.ndarray) -> None:
    """Checks that floating values hold neither NaN nor Inf.

    Args:
      name: Name of the source, for the message.
      field: Name of the field, for the message.
      values: Array [N, ...] of any dtype.
      ids: Row numbers [N].

    Raises:
      ValueError: If a value is not finite; the message names the field and the first such row.
    """
    if not np.issubdtype(values.dtype, np.floating):
        return
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if wrong.size:
        means = ", or give ignore=float('nan') if NaN means that there is no label" if field == "label" else ""
        raise ValueError(
            f"`{field}` in row {ids[wrong[0]]} of {name} holds NaN or Inf (as {wrong.size} of {len(values)} checked "
            f"rows do): clean the data before training on it{means}."
        )


def check_image(name: str, row: int, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Checks that an image has the expected shape.

    Args:
      name: Name of the source, for the message.
      row: Row number of the image.
      shape: Shape of the image.
      expected: Shape that it should have.

    Raises:
      ValueError: If they differ; the message names the row and both shapes.
    """
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"the image in row {row} of {name} has shape {tuple(shape)} but {tuple(expected)} was expected: "
            "make all images the same shape, or give image_size=(height, width) (--image-size) to have them resized."
        )
