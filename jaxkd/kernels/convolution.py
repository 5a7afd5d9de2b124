"""Convolutions with gradients that are fast on CPUs as well as on accelerators."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxkd.kernels.switch import is_plain

_LARGEST = {"products": 25, "multiples": 49}  # pixels of a kernel up to which a product or multiple for each is a gain
_GROUPS = 64  # groups up to which one convolution for each compiles in reasonable time
_WIDE = 32  # channels up to which several groups in one convolution cost no more than one group
_FEW = 4  # pixels of a result up to which one product of matrices is faster than XLA's form, however few the channels
_MANY = 2**14  # weights for each pixel of a result from which one product of matrices is faster too
_NHWC = ("NHWC", "HWIO", "NHWC")

_Shaped: TypeAlias = jax.Array | jax.ShapeDtypeStruct
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
    """Convolution with the values of `lax.conv_general_dilated` up to rounding, in other forms where CPUs are slow.

    On CPUs XLA's own forms are slow in five places, and these replace them:

    - Gradient of the kernel: XLA convolves with a kernel as large as the image and copies the image once for each pixel
      of the kernel. Here it is a product of two matrices (with strides, one product for each pixel of the kernel).
    - Gradient of the image: XLA exchanges the kernel's axes into the order that its fast code needs, but not in the
      body of a loop. Here they are exchanged beforehand.
    - Depthwise convolutions: XLA has no fast code. Here they are sums of shifted images, each multiplied by one pixel
      of the kernel.
    - Gradients of other groups: here one convolution for each group; narrow groups are put together, with zeros
      between them in the kernel.
    - Results with few pixels and many channels, as in a network's last stage: here value and gradients are one product
      of matrices, the pixels under the kernel by the whole kernel.

    Other back ends use XLA's form, and so do kernels that are large, dilated, or of very many groups, and everything
    inside `kernels.plain()`.

    Args:
      lhs: Images [N, H, W, C].
      rhs: Kernel [h, w, C, D].
      window_strides: Strides along H and W.
      padding: "SAME", "VALID", or pairs of rows and columns to add.
      lhs_dilation: As `lax.conv_general_dilated` takes it.
      rhs_dilation: As `lax.conv_general_dilated` takes it.
      dimension_numbers: As `lax.conv_general_dilated` takes it.
      feature_group_count: As `lax.conv_general_dilated` takes it.
      precision: As `lax.conv_general_dilated` takes it.
      **options: Further options of `lax.conv_general_dilated`, with which its own form is used.

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
    if is_plain():
        return whole(lhs, rhs)
    depthwise = _is_depthwise(feature_group_count, lhs, rhs)
    usual = (depthwise or _apart(feature_group_count, lhs, rhs) <= _GROUPS) and not options and lhs.ndim == 4
    usual = usual and layout == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _NHWC)
    usual = usual and {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))} == {1}
    if not usual or math.prod(rhs.shape[:2]) > _LARGEST["multiples" if depthwise else "products"]:
        return whole(lhs, rhs)
    strides = (window_strides[0], window_strides[1])
    pads = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding) if isinstance(padding, str) else padding
    form = _Form(strides, tuple(tuple(pair) for pair in pads), precision, feature_group_count)
    return _convolve(form, lhs, rhs)


class _Form(NamedTuple):
    """Static description of a convolution: everything but its images and kernel."""

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], ...]
    precision: Any
    groups: int

    def size(self, x: _Shaped, w: _Shaped) -> tuple[int, int]:
        """Height and width of the result."""
        high, wide = (
            1 + (x.shape[1 + axis] + sum(self.pads[axis]) - w.shape[axis]) // self.strides[axis] for axis in (0, 1)
        )
        return high, wide


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolve(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    return _on_cpus(_forms(form, x, w)[0], form, x, w)


@_convolve.defjvp
def _tangent(form: _Form, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, w), (dx, dw) = primals, tangents
    _, along_x, along_w = _forms(form, x, w)
    tangent = _on_cpus(along_x, form, dx, w) + _on_cpus(along_w, form, x, dw)
    return _convolve(form, x, w), tangent


def _forms(form: _Form, x: _Shaped, w: _Shaped) -> tuple[_Written, _Written, _Written]:
    """Forms on CPUs of the convolution, of its tangent along images, and of its tangent along kernels."""
    if _is_depthwise(form.groups, x, w):
        return _as_multiples, _as_multiples, _as_multiples
    if form.groups > 1:
        own = jax.eval_shape(lambda *sides: next(_groups(form, *sides))[1:], x, w)
        _, along_x, along_w = _forms(form._replace(groups=1), *own)
        return _whole, _by_group(along_x), _by_group(along_w)
    pixels, weights = math.prod(form.size(x, w)), w.shape[2] * w.shape[3]
    if math.prod(w.shape[:2]) > 1 and (pixels <= _FEW or weights >= _MANY * pixels):
        return _as_columns, _as_chosen, _as_columns
    return _whole, _turned, _as_products


def _on_cpus(written: _Written, form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """The given form on CPUs, XLA's on other back ends."""
    if written is _whole:
        return _whole(form, x, w)
    return lax.platform_dependent(x, w, cpu=functools.partial(written, form), default=functools.partial(_whole, form))


def _whole(form: _Form, x: jax.Array, w: jax.Array, layout: tuple[str, str, str] = _NHWC) -> jax.Array:
    """XLA's own form."""
    return lax.conv_general_dilated(
        x,
        w,
        form.strides,
        form.pads,
        dimension_numbers=layout,
        feature_group_count=form.groups,
        precision=form.precision,
    )


def _is_depthwise(groups: int, x: _Shaped, w: _Shaped) -> bool:
    """Tells whether each channel is a group with one output channel."""
    return 1 < groups == x.shape[-1] == w.shape[-1]


def _apart(groups: int, x: jax.Array, w: jax.Array) -> int:
    """Number of convolutions that all groups take when narrow ones are put together."""
    each = max(x.shape[-1], w.shape[-1]) / groups
    return next(n for n in range(groups, 0, -1) if groups % n == 0 and (n == 1 or each * groups / n >= _WIDE))


def _groups(form: _Form, x: jax.Array, w: jax.Array) -> Iterator[tuple[_Form, jax.Array, jax.Array]]:
    """Convolutions of each group, or of a few narrow groups with zeros between them in the kernel."""
    (h, v, C, D), n = w.shape, _apart(form.groups, x, w)
    together = form.groups // n
    own = np.eye(together, dtype=bool)[:, None, None, :, None]  # [of which group channels are, C, n, and features, D]
    apart = jnp.where(own, w.reshape(h, v, 1, C, n, together, D // form.groups), 0)
    sides = (jnp.split(side, n, axis=3) for side in (x, apart.reshape(h, v, together * C, D)))
    return ((form._replace(groups=1), *some) for some in zip(*sides, strict=True))


def _by_group(written: _Written) -> _Written:
    """The given form, applied to each group."""
    return lambda form, x, w: jnp.concatenate([written(*own) for own in _groups(form, x, w)], axis=3)


def _turned(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolution with its kernel's axes exchanged, so that reverse mode has them in their usual order."""
    return _whole(form, x, w.transpose(0, 1, 3, 2), ("NHWC", "HWOI", "NHWC"))


def _as_multiples(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """Depthwise convolution as a sum of shifted images, each multiplied by one pixel of the kernel."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    under, w = _Moved(form, x.astype(wide), w), w.astype(wide)
    parts = [under(i, j) * w[i : i + 1, j : j + 1] for i, j in np.ndindex(*w.shape[:2])]
    return functools.reduce(operator.add, parts).astype(x.dtype)


def _as_products(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolution as matrix products, which reverse mode turns into the kernel's gradient."""
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


def _as_columns(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolution as one product: all pixels under the kernel by the kernel."""
    under = _Moved(form, x, w)
    columns = jnp.concatenate([under(i, j) for i, j in np.ndindex(*w.shape[:2])], axis=3)
    product = jnp.dot(_flat(columns), _flat(w, 3), precision=form.precision)
    return product.reshape(x.shape[0], *under.size, w.shape[3])


def _as_chosen(form: _Form, x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolution as in `_as_columns`, with a product that selects the pixels, so that reverse mode pads nothing."""
    (N, H, W, C), size = x.shape, form.size(x, w)
    rows, columns = (
        np.arange(size[axis])[:, None] * form.strides[axis] + np.arange(w.shape[axis]) - form.pads[axis][0]
        for axis in (0, 1)
    )  # [H', h] and [W', w], each a row or column of the images that lies there
    chosen = np.einsum("yip,xjq->yxijpq", rows[..., None] == np.arange(H), columns[..., None] == np.arange(W))
    under = jnp.einsum("kp,npc->nkc", jnp.asarray(chosen.reshape(-1, H * W), x.dtype), x.reshape(N, H * W, C))
    product = jnp.dot(under.reshape(N * math.prod(size), -1), _flat(w, 3), precision=form.precision)
    return product.reshape(N, *size, w.shape[3])


class _Moved:
    """Pixels of the padded images under one pixel, row or column of the kernel as it moves."""

    def __init__(self, form: _Form, x: jax.Array, w: jax.Array) -> None:
        self._x, self._strides = jnp.pad(x, ((0, 0), *form.pads, (0, 0))), form.strides
        self.size = form.size(x, w)

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
    """Array as a matrix: the first axes by the last ones."""
    return x.reshape(math.prod(x.shape[:left]), math.prod(x.shape[-right:]))
