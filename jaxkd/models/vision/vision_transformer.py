"""Vision transformers (ViT): also with a distillation token (DeiT), registers and factors (DINOv2), rotary positions.

Features: `embedding`, `block0..`, `attention0..` (scores before the softmax), `qkv0..`, `tokens` (after the last norm,
if it is one of the tokens) and `pooled`. With a distillation token also `pooled_distillation` and both heads' logits,
`logits_class` and `logits_distillation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Conv, Dense, classify, perceptron
from jaxkd.models.text.blocks import Block, Dropouts, Form, block_features, check_heads
from jaxkd.models.text.pooling import first_token
from jaxkd.models.vision.positions import Rotary, resized_positions
from jaxkd.types import Model, Outputs

_INIT = nn.initializers.truncated_normal(0.02)


class LatentPool(nn.Module):
    """Pooling by attention: a trained query looks at the tokens, and a perceptron follows (SigLIP).

    Attributes:
      form: Form of the blocks.
    """

    form: Form

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens [B, L, D], mask [B, L] of those that are seen -> [B, D]."""
        B, D, A = x.shape[0], x.shape[2], self.form.heads
        latent = self.param("latent", _INIT, (1, 1, D)).astype(x.dtype)
        q, k, v = (
            Dense(D, kernel_init=_INIT, name=name)(y).reshape(y.shape[0], -1, A, D // A).transpose(0, 2, 1, 3)
            for name, y in (("query", latent), ("key", x), ("value", x))
        )
        scores = (q / math.sqrt(D // A)) @ k.swapaxes(2, 3)
        weights = nn.softmax(jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min))
        y = Dense(D, kernel_init=_INIT, name="out")((weights @ v).transpose(0, 2, 1, 3).reshape(B, D))
        return y + perceptron(
            self.form.norm("norm")(y), _INIT, hidden=self.form.hidden, activation=self.form.activation
        )


class VisionTransformer(nn.Module):
    """Vision transformer: class token and patches, transformer blocks with norms first, and a linear layer.

    Attributes:
      num_classes: K; 0 for no last layer.
      patch: Side of a patch in pixels.
      layers: Number of blocks.
      width: D.
      form: Form of the blocks.
      class_token: Whether there is a class token.
      distilled: Whether there is a distillation token with a head of its own.
      registers: Number of register tokens.
      positions: Whether there are position embeddings.
      positions_first: Whether the tokens before the patches have some too.
      rotary: Rotary positions of the patches, or None.
      pool: (tokens [B, L, D], mask of the patches [B, L]) -> [B, D].
      pool_first: Whether the mask shows the tokens before the patches too.
      norm_first: Whether there is a norm before the first block, in place of the bias of the patches.
      norm_tokens: Whether there is a norm after the last block.
      norm_pooled: Whether there is a norm after the pooling.
      remat: Whether the backward pass computes each block again.
    """

    num_classes: int
    patch: int
    layers: int
    width: int
    form: Form
    class_token: bool = True
    distilled: bool = False
    registers: int = 0
    positions: bool = True
    positions_first: bool = True
    rotary: Rotary | None = None
    pool: Callable[[jax.Array, jax.Array], jax.Array] = first_token
    pool_first: bool = False
    norm_first: bool = False
    norm_tokens: bool = True
    norm_pooled: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        grid = self._grid(x)
        features = {"embedding": (x := self._embed(x, grid, train))}
        first = x.shape[1] - grid[0] * grid[1]
        turn = None if self.rotary is None else self.rotary(grid, first, self.width // self.form.heads)
        for number in range(self.layers):

            def block(self: VisionTransformer, x: jax.Array, name: str = f"block{number}") -> Any:
                return Block(self.form, turn, name=name)(x, None, train)

            x, inner = rematerialised(block, self.remat)(self, x)
            features |= block_features(number, x, inner)
        features["tokens"] = x = self.form.norm("norm")(x) if self.norm_tokens else x
        patches = jnp.broadcast_to(np.arange(x.shape[1]) >= (0 if self.pool_first else first), x.shape[:2])
        pooled = self.pool(x, patches)
        features["pooled"] = pooled = self.form.norm("pooled_norm")(pooled) if self.norm_pooled else pooled
        logits = classify(pooled, self.num_classes, kernel_init=_INIT)
        if not self.distilled:
            return Outputs(logits, features)
        second = x[:, 1]
        features["pooled_distillation"] = second
        if self.num_classes:
            second = Dense(self.num_classes, kernel_init=_INIT, name="head_distillation")(second)
        features |= {"logits_class": logits, "logits_distillation": second}
        return Outputs((logits + second) / 2, features)

    def _grid(self, x: jax.Array) -> tuple[int, int]:
        """Rows and columns of the patches."""
        height, width = x.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(
                f"images of {height}x{width} pixels do not divide into patches of {self.patch}: resize them to a "
                f"multiple of {self.patch}."
            )
        return height // self.patch, width // self.patch

    def _embed(self, x: jax.Array, grid: tuple[int, int], train: bool) -> jax.Array:
        """Images [B, H, W, C] -> tokens with their positions [B, L, D]."""
        size, biased = (self.patch, self.patch), not self.norm_first
        x = Conv(self.width, size, size, padding="VALID", use_bias=biased, kernel_init=_INIT, name="patch")(x)
        B, D = x.shape[0], self.width
        x = x.reshape(B, -1, D)
        counts = {
            "class_token": int(self.class_token),
            "distillation_token": int(self.distilled),
            "register_token": self.registers,
        }
        tokens = [
            jnp.broadcast_to(self.param(name, _INIT, (1, count, D)).astype(x.dtype), (B, count, D))
            for name, count in counts.items()
            if count
        ]
        if not self.positions_first:
            x = self._with_positions(x, grid, 0)
        x = jnp.concatenate([*tokens, x], axis=1)
        if self.positions_first:
            x = self._with_positions(x, grid, sum(counts.values()))
        x = nn.Dropout(self.form.dropout.embedding, deterministic=not train)(x)
        return self.form.norm("embedding_norm")(x) if self.norm_first else x

    def _with_positions(self, x: jax.Array, grid: tuple[int, int], first: int) -> jax.Array:
        """Tokens [B, L, D] plus their positions, which are interpolated for a size not trained with."""
        if not self.positions:
            return x
        trained: Any = self.get_variable("params", "position", None)
        if trained is None or trained.shape[1] == x.shape[1]:
            return x + self.param("position", _INIT, (1, *x.shape[1:])).astype(x.dtype)
        return x + resized_positions(jnp.asarray(trained), grid, first).astype(x.dtype)


def vision_transformer(
    num_classes: int,
    *,
    patch: int = 16,
    layers: int = 12,
    width: int = 192,
    heads: int = 3,
    class_token: bool = True,
    distilled: bool = False,
    registers: int = 0,
    positions: bool = True,
    positions_first: bool = True,
    rotary: Rotary | None = None,
    pool: Callable[[jax.Array, jax.Array], jax.Array] | Callable[[Form], nn.Module] = first_token,
    pool_first: bool = False,
    norm_first: bool = False,
    norm_tokens: bool = True,
    norm_pooled: bool = False,
    dropout: float = 0.0,
    remat: bool = False,
    **form: Any,
) -> Model:
    """Vision transformer; with the defaults ViT-tiny, which is DeiT-tiny too.

    DINOv2's have `scale=1e-5`, those with registers also `registers=4, positions_first=False`; DINOv3's have
    `positions=False, rotary=rotary_by_place()` as well. Position embeddings are trained for the size of images that the
    model is initialised with; for images of another size those of a square grid are interpolated.

    Args:
      num_classes: K; 0 makes a network without a last layer, whose logits are its feature `pooled` [B, D].
      patch: Side of a patch in pixels.
      layers: Blocks.
      width: Hidden size D; the perceptrons inside are four times as wide. Small has 384, base 768, large 1024.
      heads: Heads of each attention: D / 64 in nearly all published ones.
      class_token: Whether there is a class token before the patches.
      distilled: Whether there is a distillation token next to the class token. The logits are then the mean of both
        heads', which stand in the features, so that each can learn from a target of its own.
      registers: Number of register tokens between these and the patches, which nothing reads at the end.
      positions: Whether there are position embeddings.
      positions_first: Whether the tokens before the patches have position embeddings too.
      rotary: Rotary positions, such as `models.rotary_by_place()`.
      pool: (tokens [B, L, D], mask of the patches [B, L]) -> [B, D]: `models.first_token`, which is the class token,
        `models.mean_of_tokens`, or a function of yours; `models.LatentPool` pools by attention.
      pool_first: Whether the mask shows the tokens before the patches too.
      norm_first: Whether there is a norm before the first block, in place of the bias of the patches (CLIP).
      norm_tokens: Whether there is a norm after the last block.
      norm_pooled: Whether there is a norm after the pooling.
      dropout: Rate of dropout, 0..1.
      remat: Whether the backward pass computes each block again instead of keeping its activations.
      **form: Further fields of `jaxkd.models.text.blocks.Form`: `scale` (LayerScale), `gated` with
        `activation=jax.nn.silu` (SwiGLU), `hidden`, `query_norm`, `attention_bias`, `rms`, `epsilon`, ...

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Raises:
      ValueError: If the heads do not divide the width, or a token is pooled or distilled without a class token; and,
        when it is applied, if the patches do not divide the image, or positions cannot be interpolated.

    Reference:
      Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
      https://arxiv.org/abs/2010.11929; Touvron et al., "Training data-efficient image transformers & distillation
      through attention", ICML 2021, https://arxiv.org/abs/2012.12877; Touvron et al., "Going deeper with Image
      Transformers", ICCV 2021 (LayerScale), https://arxiv.org/abs/2103.17239; Darcet et al., "Vision Transformers Need
      Registers", ICLR 2024, https://arxiv.org/abs/2309.16588; Oquab et al., "DINOv2: Learning Robust Visual Features
      without Supervision", 2023, https://arxiv.org/abs/2304.07193
    """
    check_heads(width, heads)
    if not class_token and (distilled or pool is first_token):
        part = "distillation token" if distilled else "pooling of the first token"
        raise ValueError(f"there is a {part} but no class token: give class_token=True, or pool=models.mean_of_tokens.")
    rates = Dropouts(embedding=dropout, attention=dropout, perceptron=dropout)
    blocks = Form(heads, **{"norm_first": True, "epsilon": 1e-6, "dropout": rates, **form})
    network = VisionTransformer(
        num_classes,
        patch,
        layers,
        width,
        blocks,
        class_token=class_token,
        distilled=distilled,
        registers=registers,
        positions=positions,
        positions_first=positions_first,
        rotary=rotary,
        pool=LatentPool(blocks) if pool is LatentPool else pool,  # type: ignore[arg-type]
        pool_first=pool_first,
        norm_first=norm_first,
        norm_tokens=norm_tokens,
        norm_pooled=norm_pooled,
        remat=remat,
    )
    return from_linen(network)
