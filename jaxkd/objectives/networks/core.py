"""Type of the small networks that methods own, and the parameters that they are made of.

Feature maps are [B, H, W, C], convolution kernels [h, w, C, D], kernels of linear maps [C, D]. A batch norm here always
normalises with the statistics of the batch, so a network that holds one couples the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import PyTree

Shape = tuple[int, ...]


class Network(NamedTuple):
    """A small network that a term trains with the student, such as a projection of one side's feature.

    init:  (key, own_shape, other_shape) -> params
    apply: (params, x) -> result; networks that take or return more say so themselves

    Attributes:
      init: Makes the parameters from the shape of the feature that the network reads and the shape that its result is
        compared with.
      apply: Computes the result.
      couples: Whether a batch norm makes one example's result depend on the others.
    """

    init: Callable[[jax.Array, Shape, Shape], PyTree]
    apply: Callable[..., Any]
    couples: bool = False


def width_or(given: int | None, usual: int, name: str) -> int:
    """A width that was given, or else the usual one; an error for a width below 1, whose name it says."""
    if given is None:
        return usual
    if given < 1:
        raise ValueError(f"{name} is {given}: give at least 1, or None for {usual} here.")
    return given


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
    """Parameters of a batch norm: `scale` of ones and `bias` of zeros."""
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}


def check_channels(x: jax.Array, kernel: jax.Array) -> None:
    """Refuses a feature whose channels are not those of a convolution's kernel.

    Args:
      x: The feature, which should be [B, H, W, C].
      kernel: The kernel, which should be [h, w, C, D].

    Raises:
      ValueError: If the ranks or the channels differ.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"a feature of shape {x.shape} does not fit a kernel of shape {kernel.shape}: give a map [B, H, W, C] and "
            "a kernel [h, w, C, D] with the same C."
        )
