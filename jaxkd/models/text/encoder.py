"""Encoder of tokens: embeddings and the blocks of a transformer.

Features: `embedding`, `block0..`, `attention0..` (scores before the softmax), `qkv0..` (queries, keys and values as the
scores are made of them, thus after rotary positions) and `tokens` (the last hidden states).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import rematerialised
from jaxkd.models.layers import Dense
from jaxkd.models.text.blocks import INIT, Block, Form, block_features
from jaxkd.models.text.positions import allowed_pairs, distance_buckets, numbers_after, sinusoids


class Embed(nn.Module):
    """Table of embeddings; a number outside of it gives NaN, never another row.

    Attributes:
      rows: Number of rows.
      width: D.
    """

    rows: int
    width: int

    @nn.compact
    def __call__(self, numbers: jax.Array) -> jax.Array:
        """Integers [...] -> [..., D]."""
        table = self.param("embedding", INIT, (self.rows, self.width))
        numbers = numbers.astype(jnp.promote_types(numbers.dtype, jnp.int32))  # room for the number of rows
        inside = jnp.where(numbers < 0, self.rows, numbers)  # NumPy's meaning of -1 is the last row
        return jnp.take(table, inside, axis=0, mode="fill", fill_value=jnp.nan)


class Encoder(nn.Module):
    """Encoder of tokens: embeddings and transformer blocks.

    Attributes:
      vocabulary: Number of different tokens V.
      layers: Number of blocks.
      width: D.
      form: Form of the blocks.
      max_length: Longest sequence, the number of position embeddings.
      segments: Number of segment embeddings; none if 0.
      embedding_width: Width of the embeddings, which a dense layer brings to D; D if None.
      pad: Number of the padding token, after which positions begin (as in RoBERTa); they begin at 0 if None.
      fixed_positions: Whether the position embeddings are sinusoids that training leaves alone.
      rotary: Base of the rotary positions of each block, which take the place of position embeddings; none if empty.
      distances: Number of embeddings of distances, which all blocks add to their scores (as in MPNet); none if 0.
      windows: Largest distance at which each block's tokens see each other, or None; any if empty.
      embedding_norm: Whether there is a norm after the embeddings.
      first_norm: Whether the first block has a norm before its attention, if norms come first.
      causal: Whether a token sees none of those after it.
      remat: Whether the backward pass computes each block again.
    """

    vocabulary: int
    layers: int
    width: int
    form: Form
    max_length: int
    segments: int = 0
    embedding_width: int | None = None
    pad: int | None = None
    fixed_positions: bool = False
    rotary: tuple[float, ...] = ()
    distances: int = 0
    windows: tuple[int | None, ...] = ()
    embedding_norm: bool = True
    first_norm: bool = True
    causal: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array, segments: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Tokens, mask and segments [B, L] -> the last hidden states [B, L, D] and the features."""
        _check_batch(tokens, mask, segments, self.max_length)
        x = self._embed(tokens, segments, train)
        features = {"embedding": x}
        bias = self._distances(tokens.shape[1]) if self.distances else None
        for number in range(self.layers):
            window = self.windows[number] if self.windows else None
            rotary = self.rotary[number] if self.rotary else None
            options = {"rotary": rotary, "first_norm": self.first_norm or number > 0, "name": f"block{number}"}

            def block(self: Encoder, x: jax.Array, allowed: jax.Array, bias: Any, options: Any = options) -> Any:
                return Block(self.form, **options)(x, allowed, train, bias)

            allowed = allowed_pairs(mask, causal=self.causal, window=window)
            x, inner = rematerialised(block, self.remat)(self, x, allowed, bias)
            features |= block_features(number, x, inner)
        if self.form.norm_first:
            x = self.form.norm("norm")(x)
        features["tokens"] = x
        return x, features

    def _embed(self, tokens: jax.Array, segments: jax.Array | None, train: bool) -> jax.Array:
        """Tokens and segments [B, L] -> embeddings [B, L, D]."""
        width = self.embedding_width or self.width
        x = Embed(self.vocabulary, width, name="token")(tokens)
        if not self.rotary:
            x = x + self._positions(tokens, width)
        if self.segments:
            kind = jnp.zeros_like(tokens) if segments is None else segments
            x = x + Embed(self.segments, width, name="segment")(kind)
        if self.embedding_norm:
            # A network whose blocks end in norms has no norm after the last one, so that the name is free.
            x = self.form.norm("embedding_norm" if self.form.norm_first else "norm")(x)
        x = nn.Dropout(self.form.dropout.embedding, deterministic=not train)(x)
        return x if width == self.width else Dense(self.width, kernel_init=INIT, name="project")(x)

    def _distances(self, length: int) -> jax.Array:
        """Bias of the scores by distance [1, A, L, L]."""
        buckets = jnp.asarray(distance_buckets(length))
        return Embed(self.distances, self.form.heads, name="distance")(buckets).transpose(2, 0, 1)[None]

    def _positions(self, tokens: jax.Array, width: int) -> jax.Array:
        """Tokens [B, L] -> position embeddings [B or 1, L, width]."""
        rows = self.max_length + (0 if self.pad is None else self.pad + 1)
        if self.fixed_positions:
            table = self.param("position", lambda key: {"embedding": jnp.asarray(sinusoids(rows, width))})
            return jax.lax.stop_gradient(table["embedding"])[None, : tokens.shape[1]]
        embed = Embed(rows, width, name="position")
        return embed(jnp.arange(tokens.shape[1])[None] if self.pad is None else numbers_after(self.pad, tokens))


def _check_batch(tokens: jax.Array, mask: jax.Array, segments: jax.Array | None, max_length: int) -> None:
    """Raises ValueError unless tokens are integers [B, L], L is no longer than allowed, and the others are as long."""
    kind, shape = jnp.result_type(tokens), jnp.shape(tokens)
    if len(shape) != 2 or not shape[1] or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(
            f"the tokens have shape {shape} and dtype {kind}: give the tokenizer's integers [B, L], L > 0."
        )
    for name, x in (("token_mask", mask), ("segments", segments)):
        if x is not None and jnp.shape(x) != shape:
            raise ValueError(f"the tokens have shape {shape} but {name} has {jnp.shape(x)}: give both [B, L].")
    if max_length < shape[1]:
        raise ValueError(f"the tokens have length {shape[1]} but max_length is {max_length}: cut them or raise it.")
