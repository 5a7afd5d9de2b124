"""CNN over tokens; features `embedding`, `tokens` (all maps at each token) and `pooled` (their maxima over a text)."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense
from jaxkd.models.misfits import check_sizes
from jaxkd.models.text.embedding import embed, only_real
from jaxkd.types import Model, Outputs


class TextCNN(nn.Module):
    """Convolutions of several widths over the embeddings, side by side, and a linear layer.

    Attributes:
      num_classes: K.
      vocabulary: Number of different tokens V.
      width: D.
      kernels: Tokens under each kernel.
      filters: Maps of each kernel.
      per_token: Whether each token has logits of its own.
      dropout: Rate of dropout on the last layer's input.
    """

    num_classes: int
    vocabulary: int
    width: int
    kernels: Sequence[int] = (2, 3, 4)
    filters: int = 100
    per_token: bool = False
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, train: bool) -> Outputs:
        """Tokens and mask [B, L] -> Outputs with logits [B, K] or [B, L, K]."""
        x = embed(tokens, mask, self.vocabulary, self.width)
        # A product of matrices, not a convolution: as fast for one student, and several at once batch well.
        maps = [nn.relu(Dense(self.filters, name=f"conv{k}")(windows(x, k))) for k in self.kernels]
        found = only_real(jnp.concatenate(maps, axis=-1), mask)
        pooled = jnp.max(found, axis=1)  # no map is negative, so the 0 at padding is never above a real token's
        y = nn.Dropout(self.dropout, deterministic=not train)(found if self.per_token else pooled)
        logits = Dense(self.num_classes, name="head")(y)
        return Outputs(logits, {"embedding": x, "tokens": found, "pooled": pooled})


def windows(x: jax.Array, size: int) -> jax.Array:
    """Neighbours of each token, from (size - 1) // 2 before it to size // 2 after it, with 0 past the ends.

    Args:
      x: [B, L, D].
      size: Tokens of a window.

    Returns:
      [B, L, size * D], the first neighbour first.
    """
    before = (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (before, size - 1 - before), (0, 0)))
    return jnp.concatenate([padded[:, i : i + x.shape[1]] for i in range(size)], axis=-1)


def text_cnn(
    num_classes: int,
    *,
    vocabulary: int,
    width: int,
    kernels: Sequence[int] = (2, 3, 4),
    filters: int = 100,
    per_token: bool = False,
    dropout: float = 0.0,
) -> Model:
    """CNN of texts: convolutions of several widths, each map's maximum over the real tokens, and a linear layer.

    head(max_i relu(W_k [x_{i - (k-1)//2}, ..., x_{i + k//2}] + b_k)), for all kernels k together

    Each real token is the middle of a window, and vectors outside the text are 0, so that texts shorter than a kernel
    need no padding.

    Args:
      num_classes: K.
      vocabulary: Number of different tokens V.
      width: D, width of the embeddings.
      kernels: Tokens under each kernel; the paper has 3, 4 and 5.
      filters: Maps of each kernel.
      per_token: Whether each token has logits of its own, from the maps at its place.
      dropout: Rate of dropout on the last layer's input, 0..1; the paper has 0.5.

    Returns:
      A model that reads `tokens`, integers [B, L], and `token_mask` [B, L], true on real tokens, and returns logits
      [B, K], or [B, L, K] per token. Padding never changes a value; the maxima of an empty text are 0.

    Raises:
      ValueError: If a size is not positive, or no kernel or one kernel twice is given.

    Reference:
      Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014, https://arxiv.org/abs/1408.5882
    """
    kernels = tuple(kernels)
    check_sizes(num_classes=num_classes, vocabulary=vocabulary, width=width, filters=filters)
    check_sizes(**{f"kernels[{i}]": k for i, k in enumerate(kernels)})
    if not kernels or len(set(kernels)) < len(kernels):
        raise ValueError(f"the kernels are {kernels}: give at least one width, and each once.")
    net = TextCNN(num_classes, vocabulary, width, kernels, filters, per_token, dropout)
    return from_linen(net, inputs=("tokens", "token_mask"))
