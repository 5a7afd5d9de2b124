"""Floors on paper: the operations and bytes of a program, and the milliseconds that an H100 needs for them at least."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxkd import kernels
from jaxkd.models.size import count_work

PEAKS = {"bfloat16": 990e12, "tf32": 495e12, "float32": 67e12}
"""Dense products of an H100 (SXM), operations a second, by their format."""

BANDWIDTH = 3.35e12
"""Memory of an H100 (SXM), bytes a second."""

SHARES = {"products": 0.5, "traffic": 0.8}
"""Shares of the two peaks that well-written kernels reach, for the expected time."""

LAUNCH = 2e-6
"""Seconds from one kernel to the next when the host runs ahead."""


class Floor(NamedTuple):
    """Least and expected time of a program on an H100.

    Attributes:
      gflop: Operations of its products and convolutions, in 1e9.
      gbyte: Bytes that no fusion saves, in 1e9.
      floor_ms: The larger of the times that these take at the peaks.
      expected_ms: The same at `SHARES` of the peaks, plus `LAUNCH` for each kernel.
    """

    gflop: float
    gbyte: float
    floor_ms: float
    expected_ms: float


def floor(function: Any, *arguments: Any, precision: str = "tf32") -> Floor:
    """Floor of one call, from the program as written.

    Args:
      function: A function of arrays.
      *arguments: Arrays or their shapes.
      precision: Format of the products.

    Returns:
      The floor.
    """
    with kernels.plain():
        work = count_work(function, *arguments)
    compute, memory = work.products / PEAKS[precision], work.traffic / BANDWIDTH
    expected = max(compute / SHARES["products"], memory / SHARES["traffic"]) + LAUNCH * work.kernels
    return Floor(work.products / 1e9, work.traffic / 1e9, 1e3 * max(compute, memory), 1e3 * expected)
