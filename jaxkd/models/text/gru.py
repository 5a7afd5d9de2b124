"""GRU over tokens in both directions; features `embedding`, `tokens` (states of both) and `pooled` (their last)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense
from jaxkd.models.misfits import check_sizes
from jaxkd.models.text.embedding import embed, only_real
from jaxkd.types import Model, Outputs


class GRU(nn.Module):
    """Gated recurrent unit over the real tokens, with PyTorch's equations.

    r, z = sigmoid(W x + b + U h + c) for each,  n = tanh(W x + b + r (U h + c)),  h' = (1 - z) n + z h

    Attributes:
      hidden: Width H of the state.
      reverse: Whether it reads from the last token to the first.
    """

    hidden: int
    reverse: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, L, D] and mask [B, L] -> states [B, L, H], 0 at padding, and the state after the last token read."""
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # in +-1 / sqrt(fan in)
        given = Dense(3 * self.hidden, kernel_init=init, name="input")(x)
        kernel = self.param("hidden_kernel", init, (self.hidden, 3 * self.hidden), jnp.float32)
        bias = self.param("hidden_bias", nn.initializers.zeros, (3 * self.hidden,), jnp.float32)
        kernel, bias = kernel.astype(given.dtype), bias.astype(given.dtype)[None]

        def step(h: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            (own_r, own_z, own_n), real = jnp.split(now[0], 3, axis=-1), now[1][:, None]
            r, z, n = jnp.split(h @ kernel + bias, 3, axis=-1)
            r, z = nn.sigmoid(own_r + r), nn.sigmoid(own_z + z)
            n = jnp.tanh(own_n + r * n)
            # Padding leaves the state as it is, so that the backward direction begins at the last real token.
            h = jnp.where(real, (1 - z) * n + z * h, h)
            return h, h

        start = jnp.zeros((x.shape[0], self.hidden), given.dtype)
        over_time = given.swapaxes(0, 1), mask.astype(bool).swapaxes(0, 1)
        last, states = jax.lax.scan(step, start, over_time, reverse=self.reverse)
        return only_real(states.swapaxes(0, 1), mask), last


class BiGRU(nn.Module):
    """Two GRUs over the embeddings, forward and backward, and a linear layer.

    Attributes:
      num_classes: K.
      vocabulary: Number of different tokens V.
      width: D.
      hidden: Width H of each direction.
      per_token: Whether each token has logits of its own.
      dropout: Rate of dropout on the GRUs' and the last layer's input.
    """

    num_classes: int
    vocabulary: int
    width: int
    hidden: int
    per_token: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, train: bool) -> Outputs:
        """Tokens and mask [B, L] -> Outputs with logits [B, K] or [B, L, K]."""
        x = embed(tokens, mask, self.vocabulary, self.width)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        read = drop(x)
        both = [GRU(self.hidden, way == "backward", name=way)(read, mask) for way in ("forward", "backward")]
        states, last = (jnp.concatenate(pair, axis=-1) for pair in zip(*both, strict=True))
        logits = Dense(self.num_classes, name="head")(drop(states if self.per_token else last))
        return Outputs(logits, {"embedding": x, "tokens": states, "pooled": last})


def bigru(
    num_classes: int, *, vocabulary: int, width: int, hidden: int, per_token: bool = False, dropout: float = 0.0
) -> Model:
    """GRU in both directions, and a linear layer on their last states or on the states of each token.

    Args:
      num_classes: K.
      vocabulary: Number of different tokens V.
      width: D, width of the embeddings.
      hidden: Width H of each direction.
      per_token: Whether each token has logits of its own, from both states at its place.
      dropout: Rate of dropout on the embeddings and on the last layer's input, 0..1.

    Returns:
      A model that reads `tokens`, integers [B, L], and `token_mask` [B, L], true on real tokens, and returns logits
      [B, K], or [B, L, K] per token. Padding never changes a value; the states of an empty text are 0.

    Raises:
      ValueError: If a size is not positive.

    Reference:
      Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
      EMNLP 2014, https://arxiv.org/abs/1406.1078;
      Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", 2019,
      https://arxiv.org/abs/1903.12136
    """
    check_sizes(num_classes=num_classes, vocabulary=vocabulary, width=width, hidden=hidden)
    net = BiGRU(num_classes, vocabulary, width, hidden, per_token, dropout)
    return from_linen(net, inputs=("tokens", "token_mask"))
