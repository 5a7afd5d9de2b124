"""Projections: small networks that bring one side's feature to the other side's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.objectives.networks.core import (
    Network,
    Shape,
    check_channels,
    conv_kernel,
    dense_params,
    norm_params,
    width_or,
)
from jaxkd.types import PyTree


def linear(*, bias: bool = True, width: int | None = None) -> Network:
    """Linear projection of the last axis; on feature maps [B, H, W, C] that is a 1x1 convolution.

    x W + b, W drawn with variance 1 / C

    Args:
      bias: Whether there is a b.
      width: D, width of the result; the other side's if None.

    Returns:
      A network with parameters `kernel` [C, D] and `bias` [D].
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        if width is None:
            _check_alike(own, other, own[:-1] == other[:-1], "a linear projection changes the last axis only")
        return dense_params(key, own[-1], width_or(width, other[-1], "width"), bias=bias)

    return Network(init, _dense)


def mlp(*, hidden: Sequence[int], width: int | None = None) -> Network:
    """Perceptron over the last axis: linear maps with a ReLU between them.

    Args:
      hidden: Widths between the feature and the result, such as (512,).
      width: D, width of the result; the other side's if None.

    Returns:
      A network whose parameters are a list of `linear`'s.
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        if width is None:
            _check_alike(own, other, own[:-1] == other[:-1], "a perceptron changes the last axis only")
        widths = (own[-1], *hidden, width_or(width, other[-1], "width"))
        keys = jax.random.split(key, len(widths) - 1)
        return [dense_params(k, *pair) for k, *pair in zip(keys, widths[:-1], widths[1:], strict=True)]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for i, layer in enumerate(params):
            x = _dense(layer, jax.nn.relu(x) if i else x)
        return x

    return Network(init, apply)


def connector(*, relu: bool = False) -> Network:
    """1x1 convolution and batch norm to the other side's channels, as in AB, OFD, ICKD and (with a ReLU) SRRL.

    BN(conv1x1(f)), and with a ReLU max(BN(conv1x1(f)), 0)

    The batch norm uses the batch's statistics, so the term couples the batch.

    Args:
      relu: Whether a ReLU follows.

    Returns:
      A network with parameters `kernel` [1, 1, C, D], `scale` [D] and `bias` [D] that turns maps [B, H, W, C] into
      [B, H, W, D]; it raises ValueError if the channels differ.

    Reference:
      Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
      https://arxiv.org/abs/1904.01866;
      Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021,
      https://arxiv.org/abs/2202.03680;
      Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021,
      https://openreview.net/forum?id=ZzwDy_wiWv
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        _check_maps(own, other)
        _check_alike(own, other, own[:-1] == other[:-1], "this connector changes the channels only")
        return {"kernel": conv_kernel(key, 1, own[-1], other[-1]), **norm_params(other[-1])}

    def apply(params: PyTree, x: ArrayLike) -> jax.Array:
        y, kernel, scale, bias = numerics.promote(x, params["kernel"], params["scale"], params["bias"])
        check_channels(y, kernel)
        y = numerics.batch_norm(numerics.conv2d(y, kernel), scale, bias)
        return jax.nn.relu(y) if relu else y

    return Network(init, apply, couples=True)


def regressor(*, halve: bool = False, norm: bool = False) -> Network:
    """FitNets' regressor: one convolution from the student's map to the teacher's shape, for `losses.hint`.

    conv(f; kernel) + bias, and with a norm max(BN(conv(f; kernel) + bias), 0)

    Args:
      halve: Whether the kernel is 3x3 with stride 2 and padding 1, onto a map of half the size, as in the CIFAR-100
        benchmark; else it is (1 + Hs - Ht) x (1 + Ws - Wt) with stride 1 and no padding, as in the paper.
      norm: Whether batch norm and ReLU follow, as in that benchmark; the network then couples the batch.

    Returns:
      A network with parameters `kernel` [h, w, C, D], `bias` [D] and, with a norm, `scale` and `shift` [D] that turns
      maps [B, Hs, Ws, C] into [B, Ht, Wt, D]; it raises ValueError if the channels differ.

    Reference:
      Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        _check_maps(own, other)
        sizes = list(zip(own[1:3], other[1:3], strict=True))
        fits = all((a + 1) // 2 == b if halve else a >= b for a, b in sizes)
        _check_alike(
            own, other, fits, f"a convolution with stride {1 + halve} does not lead from one size to the other"
        )
        height, width = (3 if halve else 1 + a - b for a, b in sizes)
        kernel = jax.nn.initializers.he_normal()(key, (height, width, own[-1], other[-1]), jnp.float32)
        params = {"kernel": kernel, "bias": jnp.zeros(other[-1])}
        return {**params, "scale": jnp.ones(other[-1]), "shift": jnp.zeros(other[-1])} if norm else params

    def apply(params: PyTree, x: ArrayLike) -> jax.Array:
        y, kernel, bias = numerics.promote(x, params["kernel"], params["bias"])
        check_channels(y, kernel)
        y = numerics.conv2d(y, kernel, bias, stride=1 + halve, padding=int(halve))
        if not norm:
            return y
        scale, shift = (jnp.asarray(params[name], y.dtype) for name in ("scale", "shift"))
        return jax.nn.relu(numerics.batch_norm(y, scale, shift))

    return Network(init, apply, couples=norm)


def _dense(params: PyTree, x: jax.Array) -> jax.Array:
    (x,) = numerics.promote(x)
    y = x @ params["kernel"].astype(x.dtype)
    return y + params["bias"].astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,)) if "bias" in params else y


def _check_maps(own: Shape, other: Shape) -> None:
    _check_alike(own, other, len(own) == len(other) == 4, "this projection is made for feature maps [B, H, W, C]")


def _check_alike(own: Shape, other: Shape, fits: bool, why: str) -> None:
    if not fits:
        raise ValueError(
            f"{why}, but the feature to project has shape {own} and the other side's {other}: choose stages of one "
            "resolution, or pool one of them first."
        )


def matched(s: Any, t: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of two features once `numerics.match_resolution` has pooled the larger map.

    Args:
      s: Abstract map of the student [B, H, W, Cs].
      t: Abstract map of the teacher [B, H', W', Ct].

    Returns:
      Both shapes.
    """
    return tuple(tuple(x.shape) for x in jax.eval_shape(numerics.match_resolution, s, t))  # type: ignore[return-value]
