"""Blocks of transformers: attention of several heads and a perceptron, each with a shortcut and a layer norm."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.kernels.dense import gelu
from jaxkd.models.layers import Dense, perceptron
from jaxkd.models.text.positions import rotary_tables, rotate

INIT = nn.initializers.normal(0.02)


class Dropouts(NamedTuple):
    """Rates of dropout of a transformer, each 0..1.

    Attributes:
      embedding: After the embeddings.
      weights: Of the attention's weights, after the softmax.
      attention: After the attention.
      inner: Inside the perceptron, before its last layer.
      perceptron: After the perceptron.
    """

    embedding: float = 0.0
    weights: float = 0.0
    attention: float = 0.0
    inner: float = 0.0
    perceptron: float = 0.0


class Form(NamedTuple):
    """Form of a transformer's blocks.

    Attributes:
      heads: Heads A of the attention; they divide the width D.
      hidden: Width inside the perceptron; 4 D if None.
      activation: Activation of the perceptron.
      gated: Whether the perceptron is gated: activation(W1 x) * (W3 x) goes into its last layer.
      norm_first: Whether norms stand before the two parts (as in GPT-2) instead of after the shortcuts (as in BERT).
      epsilon: Added to the variance in the norms.
      dropout: Rates of dropout.
      norm_bias: Whether norms have a bias.
      attention_bias: Whether the attention's layers have one.
      perceptron_bias: Whether the perceptron's layers have one.
      key_bias: Whether the layer of the keys has one, if the attention's have.
      out_bias: Whether the attention's last layer has one; as the others if None.
      rms: Whether norms divide by the root mean square alone (RMSNorm) and have no bias.
      query_norm: Whether queries and keys are normed, head by head.
      inner_norm: Whether the perceptron has a norm before its last layer.
      scale: Initial value of trained factors on what either part adds (LayerScale); none if None.
    """

    heads: int
    hidden: int | None = None
    activation: Callable[[jax.Array], jax.Array] = gelu
    gated: bool = False
    norm_first: bool = False
    epsilon: float = 1e-12
    dropout: Dropouts = Dropouts()
    norm_bias: bool = True
    attention_bias: bool = True
    perceptron_bias: bool = True
    key_bias: bool = True
    out_bias: bool | None = None
    rms: bool = False
    query_norm: bool = False
    inner_norm: bool = False
    scale: float | None = None

    def norm(self, name: str) -> nn.Module:
        """Norm of this form, as a submodule of the module that is being called.

        Args:
          name: The submodule's name.

        Returns:
          The module.
        """
        if self.rms:
            return nn.RMSNorm(epsilon=self.epsilon, name=name)
        return nn.LayerNorm(epsilon=self.epsilon, use_bias=self.norm_bias, name=name)


class Attention(nn.Module):
    """Self-attention of several heads.

    Attributes:
      form: Form of the block.
      rotary: Base of the rotary positions, which turn queries and keys; or tables [L, D / A / 2] of cosines and sines
        as (x) -> x turned, both [B, A, L, D / A]; none if None.
    """

    form: Form
    rotary: float | Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, allowed: jax.Array | None, train: bool, bias: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As of `Block`; the features are scores [B, A, L, L] and queries, keys, values [B, 3, L, D]."""
        B, L, D = x.shape
        A, biased = self.form.heads, self.form.attention_bias
        biases = {"query": biased, "key": biased and self.form.key_bias, "value": biased}
        qkv = [Dense(D, use_bias=bias_of, kernel_init=INIT, name=name)(x) for name, bias_of in biases.items()]
        q, k, v = (y.reshape(B, L, A, D // A).transpose(0, 2, 1, 3) for y in qkv)  # [B, A, L, D / A]
        if self.form.query_norm:
            q, k = self.form.norm("query_norm")(q), self.form.norm("key_norm")(k)
        if self.rotary is not None:
            turn = self.rotary
            if not callable(turn):
                turn = functools.partial(rotate, tables=rotary_tables(L, D // A, turn))
            q, k = turn(q), turn(k)
        if self.form.query_norm or self.rotary is not None:
            qkv[:2] = (y.transpose(0, 2, 1, 3).reshape(B, L, D) for y in (q, k))
        scores = (q / math.sqrt(D // A)) @ k.swapaxes(2, 3)
        scores = scores if bias is None else scores + bias
        if allowed is not None:
            # Finite, so that a row without any allowed token is uniform instead of NaN.
            scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
        weights = nn.Dropout(self.form.dropout.weights, deterministic=not train)(nn.softmax(scores))
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(B, L, D)
        biased = biased if self.form.out_bias is None else self.form.out_bias
        return Dense(D, use_bias=biased, kernel_init=INIT, name="out")(mixed), {
            "attention": scores,
            "qkv": jnp.stack(qkv, axis=1),
        }


class Block(nn.Module):
    """Attention and a two-layer perceptron, each with a shortcut and a layer norm.

    Attributes:
      form: Its form.
      rotary: As in `Attention`.
      first_norm: Whether there is a norm before the attention, if norms come first.
    """

    form: Form
    rotary: float | Callable[[jax.Array], jax.Array] | None = None
    first_norm: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, allowed: jax.Array | None, train: bool, bias: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Gives [B, L, D] and the attention's features.

        Args:
          x: [B, L, D].
          allowed: [B, 1, L or 1, L], or None if all tokens see each other.
          train: Whether dropout acts.
          bias: Added to the scores, [1, A, L, L], or None.

        Returns:
          Its output and the features.
        """
        form, rates = self.form, self.form.dropout
        attend = Attention(form, self.rotary, name="attention")
        norm1: Callable[[jax.Array], jax.Array] = form.norm("norm1") if self.first_norm else lambda x: x
        norm2 = form.norm("norm2")

        def drop(rate: float, x: jax.Array) -> jax.Array:
            return nn.Dropout(rate, deterministic=not train)(x)

        def scaled(name: str, x: jax.Array) -> jax.Array:
            if form.scale is None:
                return x
            return x * self.param(name, nn.initializers.constant(form.scale), x.shape[-1:]).astype(x.dtype)[None, None]

        def inside(y: jax.Array) -> jax.Array:
            return form.norm("inner_norm")(drop(rates.inner, y)) if form.inner_norm else drop(rates.inner, y)

        y, features = attend(norm1(x) if form.norm_first else x, allowed, train, bias)
        y = drop(rates.attention, scaled("scale1", y))
        x = x + y if form.norm_first else norm1(x + y)
        y = perceptron(
            norm2(x) if form.norm_first else x,
            INIT,
            hidden=form.hidden,
            activation=form.activation,
            gated=form.gated,
            bias=form.perceptron_bias,
            inside=inside,
        )
        y = drop(rates.perceptron, scaled("scale2", y))
        return (x + y if form.norm_first else norm2(x + y)), features


def check_heads(width: int, heads: int) -> None:
    """Raises ValueError if the heads do not divide the width.

    Args:
      width: D.
      heads: Heads of the attention.

    Raises:
      ValueError: If they do not divide it.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}: choose a multiple of {heads}.")


def block_features(number: int, x: jax.Array, inner: dict[str, jax.Array]) -> dict[str, Any]:
    """Features of one block by their names.

    Args:
      number: The block's number i.
      x: Its output [B, L, D].
      inner: Features of its attention.

    Returns:
      `block<i>`, `attention<i>`, `qkv<i>`.
    """
    return {f"block{number}": x, **{f"{name}{number}": feature for name, feature in inner.items()}}
