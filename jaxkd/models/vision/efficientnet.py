"""Networks of inverted residuals with squeeze and excitation: EfficientNet, MobileNet V3, MnasNet.

Features: `stem`, `stage1..`, one for each size of the image, each `stage*_preact` (the same, as stages end in a linear
layer), `last` and `pooled`, which the last layer reads: the mean of `last` over the positions, after one more layer in
MobileNet V3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Dense, classify, conv_norms
from jaxkd.models.vision.mobilenet import rounded
from jaxkd.types import Model, Outputs


class Blocks(NamedTuple):
    """Blocks of one kind.

    Attributes:
      kernel: Side of the depthwise convolution's kernel.
      stride: Stride of the first.
      expand: Factor on the channels inside a block; 0 stands for a block without a first 1x1 convolution.
      width: Output channels.
      blocks: How many there are.
      squeeze: Whether they have squeeze and excitation.
      relu: Whether their activation is ReLU whatever that of the others is.
      shortcut: Whether the input is added where the shape stays.
    """

    kernel: int
    stride: int
    expand: float
    width: int
    blocks: int = 1
    squeeze: bool = True
    relu: bool = False
    shortcut: bool = True


Groups = Sequence[Sequence[Blocks]]
"""Groups of blocks, whose blocks are counted together."""


def _hard_swish(x: jax.Array) -> jax.Array:
    return x * jax.nn.hard_sigmoid(x)


class Form(NamedTuple):
    """Form of the layers of a network.

    Attributes:
      activation: Activation of the blocks.
      tensorflow: As in `layers.conv_norm`.
      hard: Whether the factors of squeeze and excitation are a hard sigmoid of a quarter of the block's inner channels,
        with ReLU between, instead of a sigmoid of a quarter of its input channels, with the block's activation.
    """

    activation: Callable[[jax.Array], jax.Array]
    tensorflow: bool = False
    hard: bool = False


class Block(nn.Module):
    """Inverted residual, with squeeze and excitation between the depthwise convolution and the one that projects.

    Attributes:
      kind: Its form.
      stride: Its stride.
      form: Form of the layers.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    kind: Blocks
    stride: int
    form: Form
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]."""
        conv_norm = conv_norms(train, self.axis_name, tensorflow=self.form.tensorflow)
        kind, activation, y = self.kind, nn.relu if self.kind.relu else self.form.activation, x
        if kind.expand:
            y = activation(conv_norm(y, rounded(kind.expand * x.shape[-1]), "expand_{}", kernel=1))
        options = {"kernel": kind.kernel, "stride": self.stride, "groups": y.shape[-1]}
        y = activation(conv_norm(y, y.shape[-1], "depthwise_{}", **options))
        if kind.squeeze:
            y = y * self._factors(y, activation)[:, None, None]
        y = conv_norm(y, kind.width, "project_{}", kernel=1)
        return x + y if kind.shortcut and x.shape == y.shape else y

    def _factors(self, y: jax.Array, activation: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """[B, H, W, C] -> factors of the channels, [B, C]."""
        inner, hard = y.shape[-1], self.form.hard
        width = rounded(inner / 4) if hard else round(inner * (0.25 / (self.kind.expand or 1)))
        squeezed = Dense(width, name="squeeze")(jnp.mean(y, axis=(1, 2)))
        excited = Dense(inner, name="excite")((nn.relu if hard else activation)(squeezed))
        return (jax.nn.hard_sigmoid if hard else jax.nn.sigmoid)(excited)


class EfficientNet(nn.Module):
    """A stem, groups of blocks, a last 1x1 convolution, and in MobileNet V3 one more layer after the mean.

    Attributes:
      num_classes: K.
      stem: Channels of the stem.
      groups: The blocks.
      last: Channels of the last convolution.
      hidden: Outputs of the layer after the mean; 0 for none.
      form: Form of the layers.
      axis_name: Axis over which batch norm takes its statistics together.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    stem: int
    groups: Groups
    last: int
    hidden: int
    form: Form
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        conv_norm = conv_norms(train, self.axis_name, tensorflow=self.form.tensorflow)
        x = self.form.activation(conv_norm(x, self.stem, "stem_{}", stride=2))
        features = {"stem": x}
        for number, members in enumerate(_stages(self.groups), 1):

            def stage(self: EfficientNet, x: jax.Array, members: Sequence[int] = members) -> jax.Array:
                for index in members:
                    kinds = [(kind, i) for kind in self.groups[index] for i in range(kind.blocks)]
                    for count, (kind, i) in enumerate(kinds):
                        stride, name = 1 if i else kind.stride, f"group{index}_block{count}"
                        x = Block(kind, stride, self.form, self.axis_name, name=name)(x, train)
                return x

            x = rematerialised(stage, self.remat)(self, x)
            features |= {f"stage{number}": x, f"stage{number}_preact": x}
        features["last"] = x = self.form.activation(conv_norm(x, self.last, "last_{}", kernel=1))
        x = jnp.mean(x, axis=(1, 2))
        if self.hidden:
            x = self.form.activation(Dense(self.hidden, name="hidden")(x))
        features["pooled"] = x
        return Outputs(classify(x, self.num_classes), features)


def _stages(groups: Groups) -> list[list[int]]:
    """Indices of the groups of each stage, which are those of one size of the image."""
    stages: list[list[int]] = []
    for index, kinds in enumerate(groups):
        if index == 0 or kinds[0].stride > 1:
            stages.append([])
        stages[-1].append(index)
    return stages


def _changed(groups: Groups, *, widen: float = 1.0, **fields: Any) -> Groups:
    """Groups of other widths and forms."""
    return tuple(
        tuple(kind._replace(width=rounded(kind.width * widen), **fields) for kind in kinds) for kinds in groups
    )


_EFFICIENTNET: Groups = (
    (Blocks(3, 1, 0, 16),),
    (Blocks(3, 2, 6, 24, 2),),
    (Blocks(5, 2, 6, 40, 2),),
    (Blocks(3, 2, 6, 80, 3),),
    (Blocks(5, 1, 6, 112, 3),),
    (Blocks(5, 2, 6, 192, 4),),
    (Blocks(3, 1, 6, 320),),
)
_SMALL: Groups = (
    (Blocks(3, 2, 0, 16, relu=True),),
    (Blocks(3, 2, 4.5, 24, squeeze=False, relu=True), Blocks(3, 1, 3.67, 24, squeeze=False, relu=True)),
    (Blocks(5, 2, 4, 40), Blocks(5, 1, 6, 40, 2)),
    (Blocks(5, 1, 3, 48, 2),),
    (Blocks(5, 2, 6, 96, 3),),
)
_LARGE: Groups = (
    (Blocks(3, 1, 0, 16, squeeze=False, relu=True),),
    (Blocks(3, 2, 4, 24, squeeze=False, relu=True), Blocks(3, 1, 3, 24, squeeze=False, relu=True)),
    (Blocks(5, 2, 3, 40, 3, relu=True),),
    (Blocks(3, 2, 6, 80, 1, False), Blocks(3, 1, 2.5, 80, 1, False), Blocks(3, 1, 2.3, 80, 2, False)),
    (Blocks(3, 1, 6, 112, 2),),
    (Blocks(5, 2, 6, 160, 3),),
)
_MNASNET: Groups = (
    (Blocks(3, 1, 0, 16, 1, False, shortcut=False),),
    (Blocks(3, 2, 3, 24, 3, False),),
    (Blocks(5, 2, 3, 40, 3, False),),
    (Blocks(5, 2, 6, 80, 3, False),),
    (Blocks(3, 1, 6, 96, 2, False),),
    (Blocks(5, 2, 6, 192, 4, False),),
    (Blocks(3, 1, 6, 320, 1, False, shortcut=False),),
)


def efficientnet(
    num_classes: int,
    *,
    widen: float = 1.0,
    deepen: float = 1.0,
    lite: bool = False,
    tensorflow: bool = False,
    axis_name: str | None = None,
    remat: bool = False,
) -> Model:
    """EfficientNet; B0 as it stands.

    Args:
      num_classes: K.
      widen: Factor on the channels, which are rounded to multiples of 8: 1.1 in B2, 1.2 in B3.
      deepen: Factor on the number of blocks of each group, rounded up: 1.1 in B1, 1.2 in B2, 1.4 in B3.
      lite: Whether it is a Lite one: ReLU6 and no squeeze and excitation; stem, last convolution and the depth of the
        first and the last group stay as they are.
      tensorflow: Whether its padding and norms are those of weights from TensorFlow, timm's `tf_efficientnet_...`.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.
      remat: Whether the backward pass computes each stage again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Reference:
      Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019,
      https://arxiv.org/abs/1905.11946
    """
    ends = (0, len(_EFFICIENTNET) - 1) if lite else ()
    groups = tuple(
        tuple(k if i in ends else k._replace(blocks=math.ceil(k.blocks * deepen)) for k in kinds)
        for i, kinds in enumerate(_changed(_EFFICIENTNET, widen=widen, squeeze=not lite))
    )
    stem, last = (32, 1280) if lite else (rounded(32 * widen), rounded(1280 * widen))
    form = Form(jax.nn.relu6 if lite else jax.nn.silu, tensorflow)
    return from_linen(EfficientNet(num_classes, stem, groups, last, 0, form, axis_name, remat))


def mobilenet_v3(
    num_classes: int,
    *,
    small: bool = True,
    widen: float = 1.0,
    minimal: bool = False,
    tensorflow: bool = False,
    axis_name: str | None = None,
    remat: bool = False,
) -> Model:
    """MobileNet V3, small or large.

    Args:
      num_classes: K.
      small: Whether it is the small one.
      widen: Factor on the channels, which are rounded to multiples of 8; below 0.75 the stem keeps its 16.
      minimal: Whether all activations are ReLU, all kernels 3x3, and no block has squeeze and excitation.
      tensorflow: Whether its padding and norms are those of weights from TensorFlow, timm's `tf_mobilenetv3_...`.
      axis_name: As for `efficientnet`.
      remat: As for `efficientnet`.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Reference:
      Howard et al., "Searching for MobileNetV3", ICCV 2019, https://arxiv.org/abs/1905.02244
    """
    fields: dict[str, Any] = {"kernel": 3, "squeeze": False} if minimal else {}
    groups = _changed(_SMALL if small else _LARGE, widen=widen, **fields)
    last, hidden = (576, 1024) if small else (960, 1280)
    form = Form(nn.relu if minimal else _hard_swish, tensorflow, hard=True)
    stem = 16 if widen < 0.75 else rounded(16 * widen)
    return from_linen(EfficientNet(num_classes, stem, groups, rounded(last * widen), hidden, form, axis_name, remat))


def mnasnet(num_classes: int, *, widen: float = 1.0, axis_name: str | None = None, remat: bool = False) -> Model:
    """MnasNet B1.

    Args:
      num_classes: K.
      widen: Factor on the channels, which are rounded to multiples of 8.
      axis_name: As for `efficientnet`.
      remat: As for `efficientnet`.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Reference:
      Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR 2019,
      https://arxiv.org/abs/1807.11626
    """
    groups = _changed(_MNASNET, widen=widen)
    return from_linen(EfficientNet(num_classes, rounded(32 * widen), groups, 1280, 0, Form(nn.relu), axis_name, remat))
