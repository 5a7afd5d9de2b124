"""Recurrent network over the frames of a spectrum in both directions, with logits of each frame, such as for CTC.

Features: `stem` and `block1..`, each [B, F, C], 0 past a recording's end.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense
from jaxkd.models.misfits import check_sizes
from jaxkd.models.text.embedding import only_real
from jaxkd.models.text.gru import GRU
from jaxkd.types import Model, Outputs


class RecurrentNet(nn.Module):
    """A convolution over frames, layers of two GRUs, forward and backward, and a linear layer.

    Attributes:
      num_classes: K.
      width: Channels of the convolution.
      hidden: Width H of each direction.
      layers: Number of layers of GRUs.
      kernel: Frames under the convolution.
      dropout: Rate of dropout on the input of each layer after the convolution.
    """

    num_classes: int
    width: int
    hidden: int
    layers: int
    kernel: int
    dropout: float

    @nn.compact
    def __call__(self, log_mel: jax.Array, frames: jax.Array, train: bool) -> Outputs:
        """Frames [B, F, M] and how many of each row are real -> Outputs with logits [B, F, K]."""
        mask = jnp.arange(log_mel.shape[1])[None] < frames[:, None]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        back, count = self.kernel // 2, log_mel.shape[1]
        padded = jnp.pad(only_real(log_mel, mask), ((0, 0), (back, self.kernel - 1 - back), (0, 0)))
        windows = jnp.concatenate([padded[:, i : i + count] for i in range(self.kernel)], axis=-1)
        x = only_real(nn.relu(nn.LayerNorm(name="stem_norm")(Dense(self.width, name="stem")(windows))), mask)
        features = {"stem": x}
        for layer in range(1, self.layers + 1):
            given = drop(x)
            ways = [GRU(self.hidden, way == "backward", name=f"block{layer}_{way}") for way in ("forward", "backward")]
            x = jnp.concatenate([gru(given, mask)[0] for gru in ways], axis=-1)
            features[f"block{layer}"] = x
        return Outputs(Dense(self.num_classes, name="head")(drop(x)), features)


def recurrent_net(
    num_classes: int, *, width: int = 128, hidden: int = 96, layers: int = 2, kernel: int = 5, dropout: float = 0.2
) -> Model:
    """Network that reads a whole spectrum in both directions and has logits for each frame.

    Args:
      num_classes: K, the blank among them for CTC.
      width: Channels of the convolution.
      hidden: Width H of each direction.
      layers: Number of layers of GRUs.
      kernel: Frames under the convolution.
      dropout: Rate of dropout on the input of each later layer, 0..1.

    Returns:
      A model that reads `log_mel` [B, F, M] and `frames` [B], the number of real ones, and returns logits [B, F, K].
      Frames past a recording's end never change a value of those within it.

    Raises:
      ValueError: If a size is not positive.

    Reference:
      Graves, Jaitly, "Towards End-to-End Speech Recognition with Recurrent Neural Networks", ICML 2014,
      https://proceedings.mlr.press/v32/graves14.html (with LSTMs)
    """
    check_sizes(num_classes=num_classes, width=width, hidden=hidden, layers=layers, kernel=kernel)
    net = RecurrentNet(num_classes, width, hidden, layers, kernel, dropout)
    return from_linen(net, inputs=("log_mel", "frames"))
