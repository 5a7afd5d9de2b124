"""Copies of rows of an array, placed in memory where devices take them fastest."""

from __future__ import annotations

import numpy as np

_ALIGNMENT = 64
"""A CPU back end takes an array that begins at a multiple of this many bytes without a copy; NumPy's begin at 16."""

_WORTH = 1 << 14
"""Bytes from which a second copy costs more than choosing the place of the first."""


def take(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of an array, `values[rows]`, placed in memory where a CPU back end needs no copy of them.

    Args:
      values: [N, ...] of any dtype.
      rows: Row numbers, integers [B].

    Returns:
      [B, ...], a new array.

    Raises:
      IndexError: If there is no such row.
    """
    rows = np.asarray(rows)
    shape = (len(rows), *values.shape[1:])
    size = int(np.prod(shape)) * values.dtype.itemsize
    if size < _WORTH or values.dtype.kind not in "biufc" or rows.min() < 0 or rows.max() >= len(values):
        return values[rows]
    place = np.empty(size + _ALIGNMENT, np.uint8)
    first = -place.ctypes.data % _ALIGNMENT
    out = place[first : first + size].view(values.dtype).reshape(shape)
    # Without a mode NumPy writes into a place of its own first.
    return np.take(values, rows, axis=0, out=out, mode="clip")
