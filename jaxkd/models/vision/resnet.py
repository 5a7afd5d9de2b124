"""Residual networks, of three stages for small images and of four for large ones.

Features: `stem`, `stage1..3` (or `..4`), each `stage*_preact` (the sum before its last ReLU), `last` and `pooled`,
its mean over the positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import classify, conv_norms
from jaxkd.types import Model, Outputs

_DEPTHS = {
    10: (1, 1, 1, 1),
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Depth -> blocks of the four stages."""
_TWO = (10, 18, 34)
"""Depths whose blocks are of two convolutions; the others have bottlenecks."""


class Block(nn.Module):
    """Residual block of two 3x3 convolutions, or a 3x3 one between two of 1x1; a 1x1 shortcut if the shape changes.

    Attributes:
      width: Output channels.
      stride: Stride of the first 3x3 convolution.
      inner: Channels of a bottleneck's 3x3 convolution; 0 makes a block of two.
      groups: Groups of channels in that convolution.
      average: Whether a shortcut of stride 2 takes the mean of 2x2 pixels instead of one of them.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    width: int
    stride: int
    inner: int = 0
    groups: int = 1
    average: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> the sum before the ReLU, [B, H / stride, W / stride, width]."""
        conv_norm = conv_norms(train, self.axis_name)
        if self.inner:
            y = nn.relu(conv_norm(x, self.inner, "{}1", kernel=1))
            y = nn.relu(conv_norm(y, self.inner, "{}2", stride=self.stride, groups=self.groups))
            y = conv_norm(y, self.width, "{}3", kernel=1)
        else:
            y = nn.relu(conv_norm(x, self.width, "{}1", stride=self.stride))
            y = conv_norm(y, self.width, "{}2")
        if x.shape != y.shape:
            stride = self.stride
            if self.average and stride > 1:
                x, stride = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False), 1
            x = conv_norm(x, self.width, "shortcut_{}", kernel=1, stride=stride)
        return x + y


class ResNet(nn.Module):
    """ResNet: a stem and stages of residual blocks; each stage after the first halves height and width.

    Attributes:
      num_classes: K.
      blocks: Blocks of each stage.
      widths: Output channels of each stage.
      stem: Channels of the stem.
      large: Whether the stem is a 7x7 convolution of stride 2 and a max-pool instead of one 3x3 convolution.
      inner: Channels inside the bottlenecks of each stage; blocks of two convolutions if empty.
      groups: Groups of channels in the 3x3 convolution of a bottleneck.
      deep: Channels of two 3x3 convolutions at the start of a large stem, which then ends in a third instead of one of
        7x7; none if empty.
      average: As in `Block`.
      axis_name: Axis over which batch norm takes its statistics together.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    blocks: Sequence[int]
    widths: Sequence[int]
    stem: int
    large: bool = False
    inner: Sequence[int] = ()
    groups: int = 1
    deep: Sequence[int] = ()
    average: bool = False
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        conv_norm, size = conv_norms(train, self.axis_name), {"kernel": 7, "stride": 2} if self.large else {}
        for number, width in enumerate(self.deep, 1):
            x, size = nn.relu(conv_norm(x, width, f"stem_{{}}{number}", stride=3 - number)), {}
        x = nn.relu(conv_norm(x, self.stem, "stem_{}", **size))
        features = {"stem": x}
        if self.large:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        inner = self.inner or (0,) * len(self.widths)
        for number, plan in enumerate(zip(self.blocks, self.widths, inner, strict=True), 1):

            def stage(
                self: ResNet, x: jax.Array, number: int = number, plan: tuple[int, int, int] = plan
            ) -> tuple[jax.Array, jax.Array]:
                blocks, width, inside = plan
                for i in range(blocks):
                    stride, name = 2 if number > 1 and i == 0 else 1, f"stage{number}_block{i + 1}"
                    before = Block(width, stride, inside, self.groups, self.average, self.axis_name, name=name)(
                        x, train
                    )
                    x = nn.relu(before)
                return x, before

            x, before = rematerialised(stage, self.remat)(self, x)
            features |= {f"stage{number}": x, f"stage{number}_preact": before}
        features["last"] = x
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return Outputs(classify(x, self.num_classes), features)


def resnet(
    num_classes: int,
    *,
    depth: int,
    widen: int = 1,
    stem: int = 16,
    axis_name: str | None = None,
    remat: bool = False,
) -> Model:
    """CIFAR ResNet: a stem and three stages of 16, 32 and 64 channels.

    Args:
      num_classes: K.
      depth: 6n + 2: 8, 14, 20, 32, 44, 56 or 110.
      widen: Factor on the channels of the stages.
      stem: Channels of the stem. The networks called 8x4 and 32x4 have `widen=4, stem=32`.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.
      remat: Whether the backward pass computes each stage again instead of keeping its activations: less memory, about
        a third more work.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Raises:
      ValueError: If the depth is not 6n + 2.

    Reference:
      He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"a CIFAR ResNet has depth 6n + 2 but depth is {depth}: choose 8, 14, 20, 32, 44, 56 or 110.")
    widths = tuple(widen * w for w in (16, 32, 64))
    blocks = ((depth - 2) // 6,) * 3
    return from_linen(ResNet(num_classes, blocks, widths, stem, axis_name=axis_name, remat=remat))


def imagenet_resnet(
    num_classes: int,
    *,
    depth: int = 50,
    widen: int = 1,
    groups: int = 1,
    deep: Sequence[int] = (),
    average: bool = False,
    small_images: bool = False,
    axis_name: str | None = None,
    remat: bool = False,
) -> Model:
    """ResNet of four stages: blocks of 64 to 512 channels, or bottlenecks of 256 to 2048.

    Bottlenecks downsample in their 3x3 convolution, as in torchvision and timm.

    Args:
      num_classes: K.
      depth: 10, 18 or 34; 14, 26, 50, 101 or 152 with bottlenecks.
      widen: Factor on the channels inside the bottlenecks; 2 makes a wide ResNet-50 or 101.
      groups: Groups of these channels, convolved separately; with `widen=2, groups=32` it is ResNeXt-50 (32x4d).
      deep: Channels of two 3x3 convolutions in the stem, in front of a third one in place of its 7x7 one: (32, 32) is
        that of ResNet-C and ResNet-D, (24, 32) that of timm's ResNet-T; none if empty.
      average: Whether shortcuts of stride 2 take the mean of 2x2 pixels, as in ResNet-D and ResNet-T.
      small_images: Whether the stem is one 3x3 convolution that keeps the size of the image, for 32x32 pixels.
      axis_name: As for `resnet`.
      remat: As for `resnet`.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Raises:
      ValueError: If the depth is another, there are no bottlenecks to widen, or no large stem to deepen.

    Reference:
      He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385;
      Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017,
      https://arxiv.org/abs/1611.05431; He et al., "Bag of Tricks for Image Classification with Convolutional Neural
      Networks", CVPR 2019, https://arxiv.org/abs/1812.01187
    """
    if depth not in _DEPTHS:
        raise ValueError(f"an ImageNet ResNet has depth {', '.join(map(str, _DEPTHS))} but depth is {depth}.")
    planes = (64, 128, 256, 512)
    inner = () if depth in _TWO else tuple(widen * p for p in planes)
    if (widen, groups) != (1, 1) and not inner:
        raise ValueError(
            f"a ResNet-{depth} has no bottlenecks but widen is {widen} and groups is {groups}: choose depth 14, "
            "26, 50, 101 or 152."
        )
    if deep and (small_images or len(deep) != 2):
        raise ValueError(f"a deep stem is of two widths and for large images, but deep is {tuple(deep)}: leave it out.")
    widths = tuple(4 * p for p in planes) if inner else planes
    blocks, large = _DEPTHS[depth], not small_images
    options: dict[str, Any] = {"inner": inner, "groups": groups, "deep": deep, "average": average}
    return from_linen(ResNet(num_classes, blocks, widths, 64, large, **options, axis_name=axis_name, remat=remat))
