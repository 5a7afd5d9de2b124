"""Bag of embeddings; features `embedding`, `tokens` (the same vectors) and `pooled` (the last layer's input)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense
from jaxkd.models.misfits import check_sizes
from jaxkd.models.text.embedding import embed
from jaxkd.types import Model, Outputs


class BagOfEmbeddings(nn.Module):
    """Classifier of the mean of a text's embeddings.

    Attributes:
      num_classes: K.
      vocabulary: Number of different tokens V.
      width: D.
      bigrams: Rows of the table of bigrams; none if 0.
      hidden: Width of a hidden layer; none if 0.
      dropout: Rate of dropout on the last layer's input.
    """

    num_classes: int
    vocabulary: int
    width: int
    bigrams: int = 0
    hidden: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, train: bool) -> Outputs:
        """Tokens and mask [B, L] -> Outputs with logits [B, K]."""
        real = mask.astype(bool)
        x = embed(tokens, real, self.vocabulary, self.width)
        total, count = jnp.sum(x, axis=1), jnp.sum(real, axis=1)
        if self.bigrams:
            both = real[:, :-1] & real[:, 1:]
            rows = hashed_bigrams(tokens, self.bigrams)
            total += jnp.sum(embed(rows, both, self.bigrams, self.width, "bigram"), axis=1)
            count += jnp.sum(both, axis=1)
        pooled = total / jnp.maximum(count, 1).astype(x.dtype)[:, None]
        if self.hidden:
            pooled = nn.relu(Dense(self.hidden, name="hidden")(pooled))
        y = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return Outputs(Dense(self.num_classes, name="head")(y), {"embedding": x, "tokens": x, "pooled": pooled})


def hashed_bigrams(tokens: jax.Array, rows: int) -> jax.Array:
    """Row of each pair of neighbouring tokens in a table of fewer rows, by a hash that is the same everywhere.

    Args:
      tokens: Integers [B, L].
      rows: Rows of the table.

    Returns:
      int32 [B, L - 1], in 0..rows-1.
    """
    first, second = (t.astype(jnp.uint32) for t in (tokens[:, :-1], tokens[:, 1:]))
    mixed = first * jnp.uint32(0x9E3779B1) + second  # overflow wraps; then the finaliser of MurmurHash3
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return ((mixed ^ (mixed >> 16)) % jnp.uint32(rows)).astype(jnp.int32)


def bag_of_embeddings(
    num_classes: int, *, vocabulary: int, width: int, bigrams: int = 0, hidden: int = 0, dropout: float = 0.0
) -> Model:
    """Bag of embeddings, fastText's classifier: a linear layer on the mean over a text's tokens and bigrams.

    mean over real tokens w and pairs of neighbours (v, w) of E[w], H[hash(v, w)]

    Args:
      num_classes: K.
      vocabulary: Number of different tokens V.
      width: D.
      bigrams: Rows of the table H, which pairs of tokens share by a hash; no bigrams if 0.
      hidden: Width of a hidden layer with ReLU between mean and last layer; none if 0.
      dropout: Rate of dropout on the last layer's input, 0..1.

    Returns:
      A model that reads `tokens`, integers [B, L], and `token_mask` [B, L], true on real tokens, and returns logits
      [B, K]. Padding never changes a value; the mean of an empty text is 0.

    Raises:
      ValueError: If a size is not positive.

    Reference:
      Joulin, Grave, Bojanowski, Mikolov, "Bag of Tricks for Efficient Text Classification", EACL 2017,
      https://arxiv.org/abs/1607.01759
    """
    check_sizes(num_classes=num_classes, vocabulary=vocabulary, width=width)
    return from_linen(
        BagOfEmbeddings(num_classes, vocabulary, width, bigrams, hidden, dropout), inputs=("tokens", "token_mask")
    )
