"""Projections: the small trained maps between a student's feature and a teacher's, as pairs of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.objectives import networks, regressors
from jaxkd.types import PyTree

Shape = tuple[int, ...]


class Projection(NamedTuple):
    """A small map from one side's feature to another shape, with parameters of its own.

    init:  (key, own_shape, other_shape) -> params
    apply: (params, x) -> projected x

    Attributes:
      init: See above.
      apply: See above.
      couples: Whether a batch norm makes one example's result depend on the others.
    """

    init: Callable[[jax.Array, Shape, Shape], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    couples: bool = False


def linear(*, bias: bool = True, width: int | None = None) -> Projection:
    """Linear projection of the last axis; on feature maps [B, H, W, C] that is a 1x1 convolution.

    x W + b, W drawn with variance 1 / C

    Args:
      bias: Whether there is a b.
      width: D, width of the result; the other side's if None.

    Returns:
      A projection with parameters `kernel` [C, D] and `bias` [D].
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        if width is None:
            _check_alike(own, other, own[:-1] == other[:-1], "a linear projection changes the last axis only")
        return dense_params(key, own[-1], width or other[-1], bias=bias)

    return Projection(init, _dense)


def mlp(*, hidden: Sequence[int], width: int | None = None) -> Projection:
    """Perceptron over the last axis: linear maps with a ReLU between them.

    Args:
      hidden: Widths between the feature and the result, such as (512,).
      width: D, width of the result; the other side's if None.

    Returns:
      A projection whose parameters are a list of `linear`'s.
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        if width is None:
            _check_alike(own, other, own[:-1] == other[:-1], "a perceptron changes the last axis only")
        widths = (own[-1], *hidden, width or other[-1])
        keys = jax.random.split(key, len(widths) - 1)
        return [dense_params(k, *pair) for k, *pair in zip(keys, widths[:-1], widths[1:], strict=True)]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for i, layer in enumerate(params):
            x = _dense(layer, jax.nn.relu(x) if i else x)
        return x

    return Projection(init, apply)


def connector(*, relu: bool = False) -> Projection:
    """1x1 convolution and batch norm to the other side's channels, as AB, OFD, ICKD and (with a ReLU) SRRL have it.

    The batch norm uses the batch's statistics, so the term couples the batch.

    Args:
      relu: Whether a ReLU follows.

    Returns:
      A projection of maps with parameters `kernel` [1, 1, C, D], `scale` [D] and `bias` [D].
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        _check_maps(own, other)
        _check_alike(own, other, own[:-1] == other[:-1], "this connector changes the channels only")
        return {"kernel": conv_kernel(key, 1, own[-1], other[-1]), **norm_params(other[-1])}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        parameters = (params["kernel"], params["scale"], params["bias"])
        return networks.srrl_connector(x, *parameters) if relu else networks.ickd_embedding(x, *parameters)

    return Projection(init, apply, couples=True)


def regressor(*, halve: bool = False, norm: bool = False) -> Projection:
    """FitNets' convolution to the teacher's map.

    Args:
      halve: Whether the kernel is 3x3 with stride 2, onto a map of half the size, as in the CIFAR-100 benchmark; else
        it is (1 + Hs - Ht) x (1 + Ws - Wt) with stride 1, as in the paper.
      norm: Whether batch norm and ReLU follow, as in that benchmark, which couples the batch.

    Returns:
      A projection of maps with parameters `kernel` [h, w, C, D], `bias` [D] and, with a norm, `scale` and `shift` [D].
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

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        pair = (params["scale"], params["shift"]) if norm else None
        parameters = (params["kernel"], params["bias"], pair)
        return regressors.fitnet_regressor(x, *parameters, stride=1 + halve, padding=int(halve))

    return Projection(init, apply, couples=norm)


def dense_params(key: jax.Array, inputs: int, outputs: int, *, bias: bool = True) -> PyTree:
    """Parameters of a linear map: `kernel` [inputs, outputs] with variance 1 / inputs, `bias` of zeros."""
    kernel = jax.nn.initializers.lecun_normal()(key, (inputs, outputs), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)} if bias else {"kernel": kernel}


def conv_kernel(key: jax.Array, size: int, inputs: int, outputs: int) -> jax.Array:
    """Kernel [size, size, inputs, outputs] with variance 2 / fan-in, as before a ReLU."""
    return jax.nn.initializers.he_normal()(key, (size, size, inputs, outputs), jnp.float32)


def conv_chain(key: jax.Array, size: int, widths: Sequence[int]) -> list[jax.Array]:
    """Kernels [size, size, ...] of convolutions from one number of channels to the next."""
    keys = jax.random.split(key, len(widths) - 1)
    return [conv_kernel(k, size, *pair) for k, *pair in zip(keys, widths[:-1], widths[1:], strict=True)]


def norm_params(channels: int) -> dict[str, jax.Array]:
    """Batch norm's `scale` of ones and `bias` of zeros."""
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}


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
