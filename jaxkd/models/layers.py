"""Layers that several families of networks share, padded and normalised as their published weights expect."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxkd.kernels.convolution import convolve
from jaxkd.kernels.dense import by_matrices, gelu
from jaxkd.models.adapters import bound

Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
"""`flax.linen.Conv` with `kernels.convolution.convolve`, whose gradients are fast on CPUs as well."""

Dense = functools.partial(nn.Dense, dot_general=by_matrices)
"""`flax.linen.Dense` with `kernels.dense.by_matrices`, whose gradient is fast for inputs of three axes as well."""


def perceptron(
    x: jax.Array,
    kernel_init: Callable[..., Any],
    *,
    hidden: int | None = None,
    activation: Callable[[jax.Array], jax.Array] = gelu,
    gated: bool = False,
    bias: bool = True,
    inside: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Perceptron of two dense layers, as submodules `mlp1` and `mlp2`, and `mlp_gate` if it is gated.

    Args:
      x: [..., C].
      kernel_init: Initialiser of the kernels.
      hidden: Width between the two; 4 C if None.
      activation: Activation between the two.
      gated: Whether a third layer's outputs are factors of the activation's.
      bias: Whether the layers have a bias.
      inside: Applied to the inputs of the second layer, such as dropout.

    Returns:
      [..., C].
    """
    width = x.shape[-1]
    hidden = 4 * width if hidden is None else hidden
    wide = activation(Dense(hidden, use_bias=bias, kernel_init=kernel_init, name="mlp1")(x))
    if gated:
        wide = wide * Dense(hidden, use_bias=bias, kernel_init=kernel_init, name="mlp_gate")(x)
    return Dense(width, use_bias=bias, kernel_init=kernel_init, name="mlp2")(inside(wide))


def classify(x: jax.Array, num_classes: int, **options: Any) -> jax.Array:
    """Last layer of a classifier, as the submodule `head`; a network of 0 classes has none and gives its features.

    Args:
      x: [B, D].
      num_classes: K.
      **options: Further arguments of `Dense`, such as `kernel_init`.

    Returns:
      Logits [B, K]; x itself if K is 0.
    """
    return Dense(num_classes, name="head", **options)(x) if num_classes else x


def batch_norm(
    x: jax.Array,
    name: str,
    *,
    train: bool,
    axis_name: str | None,
    mask: jax.Array | None = None,
    epsilon: float = 1e-5,
) -> jax.Array:
    """Batch norm as a submodule of the module that is being called.

    Args:
      x: [B, ..., C].
      name: The submodule's name.
      train: Whether it takes the batch's statistics, which then move its own.
      axis_name: Axis over which it takes them together, or None.
      mask: Booleans that broadcast to x, false where a value is no part of the statistics; None for all.
      epsilon: Added to the variance.

    Returns:
      [B, ..., C].
    """
    norm = nn.BatchNorm(not train, momentum=0.9, epsilon=epsilon, axis_name=bound(axis_name), name=name)
    return norm(x, mask=mask)


def conv_norm(
    x: jax.Array,
    width: int,
    name: str,
    *,
    train: bool,
    axis_name: str | None,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    tensorflow: bool = False,
) -> jax.Array:
    """A convolution and batch norm, as two submodules of the module that is being called.

    Args:
      x: Images [B, H, W, C].
      width: Output channels.
      name: Names of the submodules, with {} for "conv" and "norm": "stem_{}" makes `stem_conv` and `stem_norm`.
      train: As for `batch_norm`.
      axis_name: As for `batch_norm`.
      kernel: Odd side of the kernel. Padding is kernel // 2 on all four sides, which "SAME" is not at stride 2.
      stride: Stride.
      groups: Groups of channels that are convolved separately; with `width` groups over as many inputs it is depthwise.
      bias: Whether the convolution has a bias of its own.
      tensorflow: Whether padding is "SAME" and the norm's epsilon 1e-3 instead of 1e-5, as in weights that were trained
        in TensorFlow.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), width].
    """
    convolve = Conv(
        width,
        (kernel, kernel),
        stride,
        padding="SAME" if tensorflow else kernel // 2,
        feature_group_count=groups,
        use_bias=bias,
        name=name.format("conv"),
    )
    epsilon = 1e-3 if tensorflow else 1e-5
    return batch_norm(convolve(x), name.format("norm"), train=train, axis_name=axis_name, epsilon=epsilon)


def conv_norms(train: bool, axis_name: str | None, **options: Any) -> Callable[..., jax.Array]:
    """`conv_norm` with the mode and the axis of one call of a network.

    Args:
      train: As for `batch_norm`.
      axis_name: As for `batch_norm`.
      **options: Further arguments that all its layers share, such as `tensorflow`.

    Returns:
      (x, width, name, kernel=3, stride=1, groups=1, bias=False) -> [B, H', W', width].
    """
    return functools.partial(conv_norm, train=train, axis_name=axis_name, **options)


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Interleaves groups of channels, so that the next grouped convolution reads all groups of the last.

    Args:
      x: [..., C].
      groups: A divisor of C.

    Returns:
      [..., C], in which channel i of group g has become channel i * groups + g.
    """
    split = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return split.swapaxes(-1, -2).reshape(x.shape)


def flatten(x: jax.Array) -> jax.Array:
    """Flattens images channel by channel, the order in which PyTorch's linear layers after a convolution expect them.

    Args:
      x: [B, H, W, C].

    Returns:
      [B, C * H * W].
    """
    return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
