"""Wide residual networks of depth 6n + 4, whose blocks begin with their norms.

Features: `stem` (before any norm), `stage1..3` (sums that no ReLU follows), `stage*_preact` (these sums after the next
batch norm and before its ReLU), `last` (the last of them after it) and `pooled`, its mean over the positions.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Conv, Dense, batch_norm
from jaxkd.types import Model, Outputs


class Block(nn.Module):
    """Residual block of norm, ReLU and 3x3 convolution, twice; a 1x1 shortcut where the width changes.

    Attributes:
      width: Output channels.
      stride: Stride of the first convolution.
      dropout: Rate of dropout between the convolutions.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    width: int
    stride: int
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> [B, H / stride, W / stride, width], and the input after its norm."""
        normed = batch_norm(x, "norm1", train=train, axis_name=self.axis_name)
        y = nn.relu(normed)
        if x.shape[-1] != self.width:
            x = Conv(self.width, (1, 1), self.stride, use_bias=False, name="shortcut_conv")(y)
        y = Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False, name="conv1")(y)
        y = nn.relu(batch_norm(y, "norm2", train=train, axis_name=self.axis_name))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return x + Conv(self.width, (3, 3), padding=1, use_bias=False, name="conv2")(y), normed


class WideResNet(nn.Module):
    """Wide ResNet: a stem and three stages of `blocks` blocks, of 16, 32 and 64 channels times `widen`.

    Attributes:
      num_classes: K.
      blocks: n of depth 6n + 4.
      widen: Factor on the channels of the stages.
      dropout: Rate of dropout between the convolutions of a block.
      axis_name: Axis over which batch norm takes its statistics together.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    blocks: int
    widen: int
    dropout: float = 0.0
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        x = Conv(16, (3, 3), padding=1, use_bias=False, name="stem_conv")(x)
        features = {"stem": x}
        for number in (1, 2, 3):

            def stage(self: WideResNet, x: jax.Array, number: int = number) -> tuple[jax.Array, jax.Array]:
                before = x
                for i in range(self.blocks):
                    stride = 2 if number > 1 and i == 0 else 1
                    width, name = 16 * self.widen * 2 ** (number - 1), f"stage{number}_block{i + 1}"
                    x, normed = Block(width, stride, self.dropout, self.axis_name, name=name)(x, train)
                    before = normed if i == 0 else before
                return x, before

            x, before = rematerialised(stage, self.remat)(self, x)
            features |= {f"stage{number}": x, **({f"stage{number - 1}_preact": before} if number > 1 else {})}
        features["stage3_preact"] = x = batch_norm(x, "norm", train=train, axis_name=self.axis_name)
        features["last"] = x = nn.relu(x)
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return Outputs(Dense(self.num_classes, name="head")(x), features)


def wide_resnet(
    num_classes: int,
    *,
    depth: int = 16,
    widen: int = 2,
    dropout: float = 0.0,
    axis_name: str | None = None,
    remat: bool = False,
) -> Model:
    """Wide ResNet.

    Args:
      num_classes: K.
      depth: 6n + 4: 16, 28 or 40.
      widen: Factor on the 16, 32 and 64 channels of the stages.
      dropout: Rate of dropout between the convolutions of a block, 0..1.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.
      remat: Whether the backward pass computes each stage again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Raises:
      ValueError: If the depth is not 6n + 4.

    Reference:
      Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"a wide ResNet has depth 6n + 4 but depth is {depth}: choose 10, 16, 22, 28 or 40.")
    return from_linen(WideResNet(num_classes, (depth - 4) // 6, widen, dropout, axis_name, remat))
