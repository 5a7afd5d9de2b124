"""Transformers over tokens: the blocks, the encoder, and a classifier like BERT.

Features: `embedding`, `block0..`, `attention0..` (scores before the softmax), `qkv0..`, `tokens` (the last hidden
states) and, of the classifier, `pooled`.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Dense, perceptron
from jaxkd.types import Model, Outputs

_INIT = nn.initializers.normal(0.02)


class Attention(nn.Module):
    """Self-attention of several heads.

    Attributes:
      heads: Number of heads A; it divides the width.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, L, D], [B, 1, L, L] -> [B, L, D] and its scores [B, A, L, L] and queries, keys, values [B, 3, L, D]."""
        B, L, D = x.shape
        qkv = [Dense(D, kernel_init=_INIT, name=name)(x) for name in ("query", "key", "value")]
        q, k, v = (y.reshape(B, L, self.heads, D // self.heads).transpose(0, 2, 1, 3) for y in qkv)  # [B, A, L, D / A]
        scores = (q / math.sqrt(D // self.heads)) @ k.swapaxes(2, 3)
        if allowed is not None:
            # Finite, so that a row without any allowed token is uniform instead of NaN.
            scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
        mixed = (nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(B, L, D)
        return Dense(D, kernel_init=_INIT, name="out")(mixed), {
            "attention": scores,
            "qkv": jnp.stack(qkv, axis=1),
        }


class Block(nn.Module):
    """Attention and a two-layer perceptron, each with a shortcut and a layer norm.

    Attributes:
      heads: Heads of the attention.
      dropout: Rate of dropout after each of the two.
      norm_first: Whether norms stand before the two (as in GPT-2) instead of after the shortcuts (as in BERT).
      epsilon: Added to the variance in the norms.
    """

    heads: int
    dropout: float = 0.0
    norm_first: bool = False
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array | None, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B, L, D], and [B, 1, L, L] or None if all are allowed -> [B, L, D] and the attention's features."""
        norms = [nn.LayerNorm(epsilon=self.epsilon, name=name) for name in ("norm1", "norm2")]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y, features = Attention(self.heads, name="attention")(norms[0](x) if self.norm_first else x, allowed)
        x = x + drop(y) if self.norm_first else norms[0](x + drop(y))
        y = norms[1](x) if self.norm_first else x
        y = drop(perceptron(y, _INIT))
        return (x + y if self.norm_first else norms[1](x + y)), features


class Encoder(nn.Module):
    """Encoder of tokens: embeddings and transformer blocks.

    Attributes:
      vocabulary: Number of different tokens V.
      layers: Number of blocks.
      width: D.
      heads: Heads of each attention.
      max_length: Number of position embeddings.
      segments: Number of segment embeddings; none if 0.
      dropout: Rate of dropout.
      causal: Whether a token sees none of those after it.
      norm_first: As in `Block`, with a norm after the last block then.
      remat: Whether the backward pass computes each block again.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    max_length: int
    segments: int = 0
    dropout: float = 0.0
    causal: bool = False
    norm_first: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array, segments: jax.Array | None, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Tokens, mask and segments [B, L] -> the last hidden states [B, L, D] and the features."""
        L = tokens.shape[1]
        if self.max_length < L:
            raise ValueError(f"the tokens have length {L} but max_length is {self.max_length}: cut them or raise it.")
        x = nn.Embed(self.vocabulary, self.width, embedding_init=_INIT, name="token")(tokens)
        x = x + nn.Embed(self.max_length, self.width, embedding_init=_INIT, name="position")(jnp.arange(L))[None]
        if self.segments:
            kind = jnp.zeros_like(tokens) if segments is None else segments
            x = x + nn.Embed(self.segments, self.width, embedding_init=_INIT, name="segment")(kind)
        if not self.norm_first:
            x = nn.LayerNorm(epsilon=1e-12, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        features = {"embedding": x}
        allowed = mask.astype(bool)[:, None, None, :]
        if self.causal:
            allowed = allowed & jnp.tril(jnp.ones((L, L), bool))[None, None]
        for number in range(self.layers):

            def block(self: Encoder, x: jax.Array, allowed: jax.Array, name: str = f"block{number}") -> Any:
                return Block(self.heads, self.dropout, self.norm_first, name=name)(x, allowed, train)

            x, inner = rematerialised(block, self.remat)(self, x, allowed)
            features |= {f"block{number}": x, **{f"{name}{number}": f for name, f in inner.items()}}
        if self.norm_first:
            x = nn.LayerNorm(epsilon=1e-12, name="norm")(x)
        features["tokens"] = x
        return x, features


class Classifier(nn.Module):
    """An encoder, a pooler on its first token, and a linear layer.

    Attributes:
      num_classes: K.
      encoder: The encoder.
      dropout: Rate of dropout before the last layer.
    """

    num_classes: int
    encoder: Encoder
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, tokens: jax.Array, mask: jax.Array, segments: jax.Array | None = None, *, train: bool
    ) -> Outputs:
        """Tokens, mask and segments [B, L] -> Outputs with logits [B, K]."""
        x, features = self.encoder(tokens, mask, segments, train)
        pooled = jnp.tanh(Dense(x.shape[-1], kernel_init=_INIT, name="pooler")(x[:, 0]))
        x = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        logits = Dense(self.num_classes, kernel_init=_INIT, name="head")(x)
        return Outputs(logits, {**features, "pooled": pooled})


def bert(
    num_classes: int,
    *,
    vocabulary: int = 30522,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    max_length: int = 512,
    dropout: float = 0.1,
    segments: str | None = None,
    remat: bool = False,
) -> Model:
    """Classifier like BERT; with the defaults it has BERT-base's 109,482,240 params and the last layer's.

    Args:
      num_classes: K.
      vocabulary: Number of different tokens.
      layers: Blocks; 6 is the usual student.
      width: Hidden size D; the perceptrons inside are four times as wide.
      heads: Heads of each attention; they divide the width.
      max_length: Longest sequence.
      dropout: Rate of dropout, 0..1.
      segments: Field of the batch [B, L] with 0 for the first sentence and 1 for the second; all 0 if None.
      remat: Whether the backward pass computes each block again instead of keeping its activations.

    Returns:
      A model that reads `tokens`, integers [B, L], and `token_mask` [B, L], true on real tokens, and returns logits
      [B, K].

    Raises:
      ValueError: If the heads do not divide the width; and, when it is applied, if the sequence is too long.

    Reference:
      Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
      NAACL 2019, https://arxiv.org/abs/1810.04805
    """
    check_heads(width, heads)
    encoder = Encoder(vocabulary, layers, width, heads, max_length, segments=2, dropout=dropout, remat=remat)
    inputs = ("tokens", "token_mask", *((segments,) if segments else ()))
    return from_linen(Classifier(num_classes, encoder, dropout), inputs=inputs)


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError if the heads do not divide the width.

    Args:
      width: D.
      heads: Heads of the attention.

    Raises:
      ValueError: If they do not divide it.
    """
    if width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}: choose a multiple of {heads}.")
