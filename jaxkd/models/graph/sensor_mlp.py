"""Perceptron that forecasts each sensor from its own past; features `hidden1..n` and `hidden` (the last of them)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.graph.forecast import check_series, forecaster, from_last
from jaxkd.models.layers import Dense
from jaxkd.types import Model, Outputs


class SensorMLP(nn.Module):
    """Perceptron with the same weights for all sensors, which sees one sensor's past and the time of day.

    Attributes:
      horizons: Number of future steps H.
      hidden: Widths of the hidden layers.
      sensors: Number of sensors N that have an embedding each.
      embedding: Width of the embeddings; 0 for none.
      mean: Mean of the data.
      std: Standard deviation of the data.
    """

    horizons: int
    hidden: Sequence[int]
    sensors: int
    embedding: int
    mean: float
    std: float

    @nn.compact
    def __call__(self, series: jax.Array, time: jax.Array, train: bool) -> Outputs:
        """Standardised series [B, P, N] and time of day [B, P, 2] -> Outputs with forecasts [B, H, N]."""
        check_series(series, time, self.sensors if self.embedding else None)
        own = series.swapaxes(1, 2)
        last = own[..., -1:]
        rows = [own[..., :-1] - last, last, jnp.broadcast_to(time[:, -1:], (*own.shape[:2], 2)).astype(own.dtype)]
        if self.embedding:
            shape = (self.sensors, self.embedding)
            each = self.param("sensor", nn.initializers.normal(0.1), shape, own.dtype)
            rows.append(jnp.broadcast_to(each[None], (own.shape[0], *shape)))
        x = jnp.concatenate(rows, axis=-1)
        features = {}
        for i, width in enumerate(self.hidden, 1):
            x = nn.relu(Dense(width, name=f"dense{i}")(x))
            features[f"hidden{i}"] = x
        change = Dense(self.horizons, kernel_init=nn.initializers.zeros, name="head")(x)
        return Outputs(from_last(series, change, self.mean, self.std), {**features, "hidden": x})


def sensor_mlp(
    horizons: int,
    *,
    hidden: Sequence[int] = (32, 32),
    sensors: int = 0,
    embedding: int = 0,
    mean: float = 0.0,
    std: float = 1.0,
) -> Model:
    """Perceptron that forecasts each sensor from its own past, without a graph; the sensors share its weights.

    Args:
      horizons: Number of future steps H.
      hidden: Widths of the hidden layers, at least one.
      sensors: Number of sensors N; needed for embeddings alone.
      embedding: Width of an embedding of each sensor, which joins its past; 0 for none.
      mean: Mean of the data, in their units.
      std: Standard deviation of the data, in their units.

    Returns:
      A model that reads `series` [B, P, N], standardised, and `time` [B, P, 2], and returns forecasts [B, H, N] in
      units of the data, as its logits. Feature `hidden` is [B, N, C].

    Raises:
      ValueError: If a size is not positive.
    """
    sizes = {f"hidden[{i}]": width for i, width in enumerate(hidden)} | ({"sensors": sensors} if embedding else {})
    if not hidden:
        raise ValueError("the perceptron has no hidden layer: give the width of at least one.")
    net = SensorMLP(horizons, tuple(hidden), sensors, embedding, mean, std)
    return forecaster(net, horizons=horizons, **sizes)
