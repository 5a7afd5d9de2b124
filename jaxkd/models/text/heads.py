"""Last layers of text encoders: none, a classifier of the whole text, or one of each token.

Beside the encoder's features there is `pooled`, the input of the last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense
from jaxkd.models.text.blocks import INIT
from jaxkd.models.text.encoder import Encoder
from jaxkd.models.text.pooling import first_token
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables


class Pooler(NamedTuple):
    """Layer between an encoder and its last layer: dense, an activation, and perhaps a norm.

    Attributes:
      activation: Its activation.
      dropout: Rate of dropout before it.
      bias: Whether the dense layer has a bias.
      epsilon: Added to the variance in the norm; there is no norm if None.
      norm_bias: Whether the norm has a bias.
    """

    activation: Callable[[jax.Array], jax.Array] = jnp.tanh
    dropout: float = 0.0
    bias: bool = True
    epsilon: float | None = None
    norm_bias: bool = True


class TextClassifier(nn.Module):
    """An encoder, a pooled vector, a pooler, and a linear layer.

    Attributes:
      num_classes: K; there is no last layer if None, and the logits are the last hidden states [B, L, D].
      encoder: The encoder.
      dropout: Rate of dropout before the last layer.
      pool: (x [B, L, D], mask [B, L]) -> the vector of each text [B, D], or those of all tokens [B, L, D].
      pooler: The layer after it, if there is one.
    """

    num_classes: int | None
    encoder: Encoder
    dropout: float = 0.0
    pool: Callable[[jax.Array, jax.Array], jax.Array] = first_token
    pooler: Pooler | None = Pooler()

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array, segments: jax.Array | None = None, *, train: bool
    ) -> Outputs:
        """Tokens, mask and segments [B, L] -> Outputs with logits [B, K] or, of each token, [B, L, K]."""
        x, features = self.encoder(tokens, mask, segments, train)
        pooled = self.pool(x, mask)
        if self.pooler is not None:
            pooled = self._pooled(self.pooler, pooled, train)
        features = {**features, "pooled": pooled}
        if self.num_classes is None:
            return Outputs(features["tokens"], features)
        x = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return Outputs(Dense(self.num_classes, kernel_init=INIT, name="head")(x), features)

    def _pooled(self, pooler: Pooler, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dropout(pooler.dropout, deterministic=not train)(x)
        x = pooler.activation(Dense(x.shape[-1], use_bias=pooler.bias, kernel_init=INIT, name="pooler")(x))
        if pooler.epsilon is None:
            return x
        return nn.LayerNorm(epsilon=pooler.epsilon, use_bias=pooler.norm_bias, name="pooler_norm")(x)


def text_model(module: nn.Module, *, segments: str | None = None) -> Model:
    """Model of a text module.

    Args:
      module: Takes tokens, mask and, if its encoder has segment embeddings, segments.
      segments: Field of the segments; if None, it is `segments` where a batch has it, and all are 0 where it has not.

    Returns:
      A model that reads `tokens`, `token_mask` and perhaps the segments.
    """
    if not module.encoder.segments:
        return from_linen(module, inputs=("tokens", "token_mask"))
    if segments is not None:
        return from_linen(module, inputs=("tokens", "token_mask", segments))
    without, named = (from_linen(module, inputs=("tokens", "token_mask", *more)) for more in ((), ("segments",)))

    def chosen(batch: Batch) -> Model:
        return named if "segments" in batch else without

    def init(key: jax.Array, batch: Batch) -> Variables:
        return chosen(batch).init(key, batch)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return chosen(batch).apply(variables, batch, key, train)

    return Model(init, apply)
