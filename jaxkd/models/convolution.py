"""Convolution layers whose weights' gradient is fast on CPUs as well."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_LARGEST = 25  # pixels of a kernel above which one product a pixel is no gain
_NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = _NHWC,
    feature_group_count: int = 1,
    precision: Any = None,
    **options: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` with another formulation of the kernel's gradient on CPUs.

    There XLA computes it as a convolution with a kernel as large as the image, for which it copies the image once a
    pixel of the kernel. Here it is a product of two matrices, pixels by columns of the kernel and pixels by rows of it;
    strided, one product a pixel of the kernel. Other back ends get XLA's own, and so do kernels that are large, dilated
    or grouped.

    Args:
      lhs: Images [N, H, W, C].
      rhs: Kernel [h, w, C, D].
      window_strides: Strides along H and W.
      padding: "SAME", "VALID", or pairs of rows and columns to add.
      lhs_dilation: As `lax.conv_general_dilated` takes it.
      rhs_dilation: Likewise.
      dimension_numbers: Likewise.
      feature_group_count: Likewise.
      precision: Likewise.
      **options: Likewise.

    Returns:
      [N, H', W', D].
    """
    layout = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    whole: Callable[..., jax.Array] = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        **options,
    )
    plain = feature_group_count == 1 and not options and lhs.ndim == 4
    plain = plain and layout == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    plain = plain and {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} == {1}
    if not plain or rhs.shape[0] * rhs.shape[1] > _LARGEST:
        return whole(lhs, rhs)
    strides = (window_strides[0], window_strides[1])
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding) if isinstance(padding, str) else padding
    return _convolve(lhs, rhs, strides, tuple(tuple(pair) for pair in pads), precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4))
def _convolve(x: jax.Array, w: jax.Array, strides: Any, pads: Any, precision: Any) -> jax.Array:
    return lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=_NHWC, precision=precision)


@_convolve.defjvp
def _tangent(strides: Any, pads: Any, precision: Any, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, w), (dx, dw) = primals, tangents
    whole = functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=_NHWC, precision=precision
    )
    products = functools.partial(_as_products, strides=strides, pads=pads, precision=precision)
    along_w = lax.platform_dependent(x, dw, cpu=products, default=lambda x, dw: whole(x, dw))
    return _convolve(x, w, strides, pads, precision), whole(dx, w) + along_w


def _as_products(x: jax.Array, w: jax.Array, *, strides: Any, pads: Any, precision: Any) -> jax.Array:
    """The convolution as matrix products, which reverse mode turns into the kernel's gradient."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = (1 + (x.shape[1 + i] - w.shape[i]) // strides[i] for i in (0, 1))

    def moved(x: jax.Array, axis: int, first: int, size: int) -> jax.Array:
        """What lies under one row or column of the kernel as it moves."""
        stride = strides[axis - 1]
        return lax.slice_in_dim(x, first, first + stride * (size - 1) + 1, stride, axis)

    if strides == (1, 1):  # columns side by side in x, rows side by side in the result: one product
        h, _, _, D = w.shape
        columns = jnp.concatenate([moved(x, 2, j, width) for j in range(w.shape[1])], axis=3)
        rows = jnp.dot(_flat(columns), _flat(w.transpose(1, 2, 0, 3), 2, 2), precision=precision)
        rows = rows.reshape(*columns.shape[:3], h * D)
        return functools.reduce(operator.add, (moved(rows[..., i * D : (i + 1) * D], 1, i, height) for i in range(h)))
    parts = [
        jnp.dot(_flat(moved(moved(x, 1, i, height), 2, j, width)), w[i, j], precision=precision)
        for i in range(w.shape[0])
        for j in range(w.shape[1])
    ]
    return functools.reduce(operator.add, parts).reshape(x.shape[0], height, width, w.shape[3])


def _flat(x: jax.Array, left: int = 3, right: int = 1) -> jax.Array:
    """A matrix of the first axes and the last ones."""
    return x.reshape(math.prod(x.shape[:left]), math.prod(x.shape[-right:]))


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)
"""`flax.linen.Conv` with `convolve`."""
