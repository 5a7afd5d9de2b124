"""What all networks of series share: what they read, and forecasts as changes of the last value."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxkd.models.adapters import from_linen
from jaxkd.models.misfits import check_sizes
from jaxkd.types import Model

INPUTS = ("series", "time")
"""Fields of a batch that such networks read."""


def forecaster(net: nn.Module, **sizes: int) -> Model:
    """Model of a module of series.

    Args:
      net: A Linen module that reads `series` [B, P, N] and `time` [B, P, 2].
      **sizes: Name -> a size of it that must be positive.

    Returns:
      The model.

    Raises:
      ValueError: If a size is not positive.
    """
    check_sizes(**sizes)
    return from_linen(net, inputs=INPUTS)


def check_series(series: jax.Array, time: jax.Array, sensors: int | None = None) -> None:
    """Refuses series of another kind than a network was made for.

    Args:
      series: [B, P, N].
      time: [B, P, 2].
      sensors: N, if the network knows it.

    Raises:
      ValueError: If the shapes do not fit.
    """
    if series.ndim != 3 or time.shape != (*series.shape[:2], 2):
        raise ValueError(
            f"series have shape {series.shape} and time {time.shape}: give [B, P, N] and the sine and cosine of the "
            "time of day, [B, P, 2]."
        )
    if sensors is not None and series.shape[2] != sensors:
        raise ValueError(f"series are of {series.shape[2]} sensors but the network was made for {sensors}.")


def from_last(series: jax.Array, change: jax.Array, mean: float, std: float) -> jax.Array:
    """Forecasts in units of the data: the last value, and a change of it.

    mean + std (x_P + change)

    Args:
      series: Standardised past values [B, P, N].
      change: [B, N, H], in standard deviations.
      mean: Mean of the data, in their units.
      std: Standard deviation of the data, in their units.

    Returns:
      [B, H, N].
    """
    last = series[:, -1:].astype(change.dtype)
    return mean + std * (last + change.swapaxes(1, 2))
