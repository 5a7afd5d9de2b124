"""Convolutions that are fast on CPUs as well."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LARGEST = {"products": 25, "multiples": 49}  # pixels of a kernel above which one of them a pixel is no gain
_NHWC = ("NHWC", "HWIO", "NHWC")

_Written: TypeAlias = Callable[["_Form", jax.Array, jax.Array], jax.Array]
"""(form, images, kernel) -> images."""


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
    """`lax.conv_general_dilated` as CPUs like it, with the same values to rounding.

    There XLA computes the gradient of the kernel as a convolution with a kernel as large as the image, for which it
    copies the image once a pixel of the kernel. Here it is a product of two matrices, pixels by columns of the kernel
    and pixels by rows of it; strided, one product a pixel of the kernel. The gradient of the image is a convolution
    with the kernel's axes exchanged; XLA brings them into the order that its fast code wants, but not in the body of a
    loop, so here they are exchanged beforehand. Depthwise convolutions, for which it has no fast code, are sums of
    moved images, each multiplied by one pixel of the kernel. Other back ends get XLA's own, and so do kernels that are
    large, dilated, or grouped otherwise.

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
    depthwise = 1 < feature_group_count == lhs.shape[-1] == rhs.shape[-1]
    plain = (depthwise or feature_group_count == 1) and not options and lhs.ndim == 4
    plain = plain and layout == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    plain = plain and {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} == {1}
    if not plain or math.prod(rhs.shape[:2]) > _LARGEST["multiples" if depthwise else "products"]:
        return whole(lhs, rhs)
    strides = (window_strides[0], window_strides[1])
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding) if isinstance(padding, str) else padding
    form = _Form(strides, tuple(tuple(pair) for pair in pads), precision, feature_group_count)
    return _convolve(form, lhs, rhs)


class _Form(NamedTuple):
    """What a convolution is beside its images and kernel."""

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], ...]
    precision: Any
    groups: int


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolve(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    if form.groups == 1:
        return _whole(form, x, w)
    return _on_cpus(_as_multiples, form, x, w)


@_convolve.defjvp
def _tangent(form: _Form, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, w), (dx, dw) = primals, tangents
    along_x, along_w = (_turned, _as_products) if form.groups == 1 else (_as_multiples, _as_multiples)
    tangent = _on_cpus(along_x, form, dx, w) + _on_cpus(along_w, form, x, dw)
    return _convolve(form, x, w), tangent


def _on_cpus(written: _Written, form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """A form of its own where XLA's is slow, and XLA's elsewhere."""
    return lax.platform_dependent(x, w, cpu=functools.partial(written, form), default=functools.partial(_whole, form))


def _whole(form: _Form, x: jax.Array, w: jax.Array, layout: tuple[str, str, str] = _NHWC) -> jax.Array:
    """As XLA has it."""
    return lax.conv_general_dilated(
        x, w, form.strides, form.pads, dimension_numbers=layout, feature_group_count=form.groups,
        precision=form.precision,
    )  # fmt: skip


def _turned(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution with its kernel's axes exchanged, so that reverse mode has them in their usual order."""
    return _whole(form, x, w.transpose(0, 1, 3, 2), ("NHWC", "HWOI", "NHWC"))


def _as_multiples(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """The depthwise convolution as a sum of moved images, each multiplied by one pixel of the kernel."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    under, w = _Moved(form, x.astype(wide), w), w.astype(wide)
    parts = [under(i, j) * w[i : i + 1, j : j + 1] for i, j in np.ndindex(*w.shape[:2])]
    return functools.reduce(operator.add, parts).astype(x.dtype)


def _as_products(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """The convolution as matrix products, which reverse mode turns into the kernel's gradient."""
    under, (h, _, _, D) = _Moved(form, x, w), w.shape
    product = functools.partial(jnp.dot, precision=form.precision)
    if form.strides == (1, 1):  # columns side by side in x, rows side by side in the result: one product
        columns = jnp.concatenate([under.column(j) for j in range(w.shape[1])], axis=3)
        rows = product(_flat(columns), _flat(w[::-1].transpose(1, 2, 0, 3), 2, 2)).reshape(*columns.shape[:3], h * D)
        # In reverse mode the barrier keeps padding apart from what reads it, and the kernel's last row comes first: or
        # LLVM's vectors read what lies before the images as well, and forget it, and it may be nobody's memory.
        split = enumerate(lax.split(rows, [D] * h, axis=3))
        apart = (jnp.pad(row, ((0, 0), (i, h - 1 - i), (0, 0), (0, 0))) for i, row in split)
        return under.row(h - 1, lax.optimization_barrier(functools.reduce(operator.add, apart)))
    parts = [product(_flat(under(i, j)), w[i, j]) for i, j in np.ndindex(*w.shape[:2])]
    return functools.reduce(operator.add, parts).reshape(x.shape[0], *under.size, D)


class _Moved:
    """What lies under one pixel, row or column of the kernel as it moves over the padded images."""

    def __init__(self, form: _Form, x: jax.Array, w: jax.Array) -> None:
        self._x, self._strides = jnp.pad(x, ((0, 0), *form.pads, (0, 0))), form.strides
        self.size = [1 + (self._x.shape[1 + i] - w.shape[i]) // form.strides[i] for i in (0, 1)]

    def __call__(self, i: int, j: int) -> jax.Array:
        return self.column(j, self.row(i))

    def row(self, i: int, x: jax.Array | None = None) -> jax.Array:
        return self._along(1, i, x)

    def column(self, j: int, x: jax.Array | None = None) -> jax.Array:
        return self._along(2, j, x)

    def _along(self, axis: int, first: int, x: jax.Array | None) -> jax.Array:
        stride, size = self._strides[axis - 1], self.size[axis - 1]
        x = self._x if x is None else x
        return lax.slice_in_dim(x, first, first + stride * (size - 1) + 1, stride, axis)


def _flat(x: jax.Array, left: int = 3, right: int = 1) -> jax.Array:
    """A matrix of the first axes and the last ones."""
    return x.reshape(math.prod(x.shape[:left]), math.prod(x.shape[-right:]))
