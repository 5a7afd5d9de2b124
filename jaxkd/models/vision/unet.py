"""A small U-Net for segmentation: logits for each pixel; features `stage1..n`, `decoder1..n-1`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Conv, conv_norms
from jaxkd.types import Model, Outputs


class UNet(nn.Module):
    """Encoder whose stages halve the resolution, and a decoder that brings each stage's map back to the one before.

    Differs from the paper in what is usual today: batch norm, padding that keeps sizes, strides instead of pooling,
    upsampling by nearest neighbour, and logits of a coarser map that are upsampled bilinearly if `stride` is above 1.

    Attributes:
      num_classes: K.
      width: Channels of the first stage; each further stage has twice as many.
      depth: Number of stages.
      stride: Stride of the first convolution.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    num_classes: int
    width: int = 16
    depth: int = 4
    stride: int = 2
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, H, W, K]."""
        if x.ndim != 4:
            raise ValueError(f"images have shape {x.shape}: give [B, H, W, C].")
        conv, size, features = conv_norms(train, self.axis_name), x.shape[1:3], {}
        for stage in range(1, self.depth + 1):
            width, stride = self.width * 2 ** (stage - 1), self.stride if stage == 1 else 2
            x = nn.relu(conv(x, width, f"stage{stage}_{{}}1", stride=stride))
            features[f"stage{stage}"] = x = nn.relu(conv(x, width, f"stage{stage}_{{}}2"))
        for stage in range(self.depth - 1, 0, -1):
            skip = features[f"stage{stage}"]
            x = jnp.concatenate([skip, _doubled(x)[:, : skip.shape[1], : skip.shape[2]]], axis=-1)
            features[f"decoder{stage}"] = x = nn.relu(conv(x, skip.shape[-1], f"decoder{stage}_{{}}"))
        logits = Conv(self.num_classes, (1, 1), name="head")(x)
        if logits.shape[1:3] != size:
            logits = jax.image.resize(logits, (len(logits), *size, self.num_classes), "bilinear")
        return Outputs(logits, features)


def unet(num_classes: int, *, width: int = 16, depth: int = 4, stride: int = 2, axis_name: str | None = None) -> Model:
    """Small U-Net for segmentation, of any size: a student is one of a quarter of the width.

    Args:
      num_classes: K.
      width: Channels of the first stage; each further stage has twice as many.
      depth: Number of stages, of which each after the first halves height and width.
      stride: Stride of the first convolution; with 2 the logits are upsampled bilinearly at the end.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.

    Returns:
      A model that reads `image` [B, H, W, C], of any height and width, and returns logits [B, H, W, K]. Its features
      are `stage1` to `stage<depth>`, and of the decoder `decoder<depth - 1>` to `decoder1`, the map under the head.

    Raises:
      ValueError: If width, depth or stride is less than 1.

    Reference:
      Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
      https://arxiv.org/abs/1505.04597
    """
    if min(width, depth, stride) < 1:
        raise ValueError(f"width is {width}, depth {depth} and stride {stride}: give at least 1 each.")
    return from_linen(UNet(num_classes, width, depth, stride, axis_name))


def _doubled(x: jax.Array) -> jax.Array:
    """Map [B, H, W, C] -> [B, 2 H, 2 W, C], by nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
