"""Vision transformers (ViT), also with a distillation token (DeiT).

Features: `embedding`, `block0..`, `attention0..` (scores before the softmax), `qkv0..`, `tokens` (after the last norm)
and `pooled` (the class token of these). With a distillation token also `pooled_distillation` and both heads' logits,
`logits_class` and `logits_distillation`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Conv, Dense
from jaxkd.models.text.blocks import Block, Dropouts, Form, block_features, check_heads
from jaxkd.types import Model, Outputs

_INIT = nn.initializers.truncated_normal(0.02)


class VisionTransformer(nn.Module):
    """Vision transformer: class token and patches, transformer blocks with norms first, and a linear layer.

    Attributes:
      num_classes: K.
      patch: Side of a patch in pixels.
      layers: Number of blocks.
      width: D.
      heads: Heads of each attention.
      distilled: Whether there is a distillation token with a head of its own.
      dropout: Rate of dropout.
      remat: Whether the backward pass computes each block again.
    """

    num_classes: int
    patch: int
    layers: int
    width: int
    heads: int
    distilled: bool = False
    dropout: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        features = {"embedding": (x := self._embed(x, train))}
        rates = Dropouts(attention=self.dropout, perceptron=self.dropout)
        form = Form(self.heads, norm_first=True, epsilon=1e-6, dropout=rates)
        for number in range(self.layers):

            def block(self: VisionTransformer, x: jax.Array, name: str = f"block{number}") -> Any:
                return Block(form, name=name)(x, None, train)

            x, inner = rematerialised(block, self.remat)(self, x)
            features |= block_features(number, x, inner)
        features["tokens"] = x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        features["pooled"] = x[:, 0]
        logits = Dense(self.num_classes, kernel_init=_INIT, name="head")(x[:, 0])
        if not self.distilled:
            return Outputs(logits, features)
        second = Dense(self.num_classes, kernel_init=_INIT, name="head_distillation")(x[:, 1])
        features |= {"pooled_distillation": x[:, 1], "logits_class": logits, "logits_distillation": second}
        return Outputs((logits + second) / 2, features)

    def _embed(self, x: jax.Array, train: bool) -> jax.Array:
        """Images [B, H, W, C] -> tokens with their positions [B, L, D]."""
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height}x{width} pixels do not divide into patches of {self.patch}: resize them to a "
                f"multiple of {self.patch}."
            )
        size = (self.patch, self.patch)
        x = Conv(self.width, size, size, padding="VALID", kernel_init=_INIT, name="patch")(x)
        B, D = x.shape[0], self.width
        first = [self.param("class_token", _INIT, (1, 1, D))]
        if self.distilled:
            first.append(self.param("distillation_token", _INIT, (1, 1, D)))
        tokens = [jnp.broadcast_to(token.astype(x.dtype), (B, 1, D)) for token in first]
        x = jnp.concatenate([*tokens, x.reshape(B, -1, D)], axis=1)
        x = x + self.param("position", _INIT, (1, x.shape[1], D)).astype(x.dtype)
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def vision_transformer(
    num_classes: int,
    *,
    patch: int = 16,
    layers: int = 12,
    width: int = 192,
    heads: int = 3,
    distilled: bool = False,
    dropout: float = 0.0,
    remat: bool = False,
) -> Model:
    """Vision transformer; with the defaults ViT-tiny, which is DeiT-tiny too.

    Its positions are trained for one size of images, the size that it is initialised with.

    Args:
      num_classes: K.
      patch: Side of a patch in pixels.
      layers: Blocks.
      width: Hidden size D; the perceptrons inside are four times as wide. Small has 384, base 768, large 1024.
      heads: Heads of each attention: D / 64 in all published ones.
      distilled: Whether there is a distillation token next to the class token. The logits are then the mean of both
        heads', which stand in the features, so that each can learn from a target of its own.
      dropout: Rate of dropout, 0..1.
      remat: Whether the backward pass computes each block again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Raises:
      ValueError: If the heads do not divide the width; and, when it is applied, if the patches do not divide the image.

    Reference:
      Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
      https://arxiv.org/abs/2010.11929; Touvron et al., "Training data-efficient image transformers & distillation
      through attention", ICML 2021, https://arxiv.org/abs/2012.12877
    """
    check_heads(width, heads)
    return from_linen(VisionTransformer(num_classes, patch, layers, width, heads, distilled, dropout, remat))
