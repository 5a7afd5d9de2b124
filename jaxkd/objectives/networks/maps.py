"""Networks of the methods that compare one map of each side: VID, factor transfer, MGD, ViTKD, FGD."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.losses import dense
from jaxkd.objectives.networks.core import (
    Network,
    Shape,
    check_channels,
    conv_chain,
    conv_kernel,
    dense_params,
    norm_params,
    width_or,
)
from jaxkd.types import PyTree


def pointwise(*, hidden: int | None = None) -> Network:
    """VID's regressor of the teacher's map: three 1x1 convolutions without biases, ReLU between them.

    Args:
      hidden: Channels between the convolutions; those of the result if None, as in the CIFAR-100 benchmark.

    Returns:
      A network whose parameters are a list of kernels [1, 1, C, D] and that turns maps [B, H, W, Cs] into
      [B, H, W, Ct]; it raises ValueError if the channels differ.

    Reference:
      Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
      https://arxiv.org/abs/1904.05835
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        width = width_or(hidden, other[-1], "hidden")
        return conv_chain(key, 1, (own[-1], width, width, other[-1]))

    def apply(params: PyTree, x: ArrayLike) -> jax.Array:
        y, *kernels = numerics.promote(x, *params)
        for i, kernel in enumerate(kernels):
            check_channels(y, kernel)
            y = numerics.conv2d(jax.nn.relu(y) if i else y, kernel)
        return y

    return Network(init, apply)


def translator(*, norm: bool = False, linear_end: bool = False) -> Network:
    """Factor transfer's three 3x3 convolutions: the student's translator, the teacher's encoder, and its decoder.

    x <- LeakyReLU_0.1(BN(conv(x; kernel_i) + bias_i)) for each i, BN only with norms

    Args:
      norm: Whether each convolution has a batch norm, as the CIFAR-100 benchmark's translator; the network then
        couples the batch.
      linear_end: Whether the last convolution has no activation, so that a decoder can give negative values.

    Returns:
      A network with lists of parameters `kernels` [3, 3, C, D], `biases` [D] and, with norms, `norms` (each of `scale`
      and `bias`) that turns maps [B, H, W, C_0] into [B, H, W, C_3]; it raises ValueError if the numbers of
      parameters or the channels differ.

    Reference:
      Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
      https://arxiv.org/abs/1802.04977
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        widths = (own[-1], own[-1], other[-1], other[-1])
        params = {"kernels": conv_chain(key, 3, widths), "biases": [jnp.zeros(width) for width in widths[1:]]}
        return {**params, "norms": [norm_params(width) for width in widths[1:]]} if norm else params

    def apply(params: PyTree, x: ArrayLike) -> jax.Array:
        kernels, biases, n = params["kernels"], params["biases"], len(params["kernels"])
        norms = params.get("norms", [])
        if len(biases) != n or len(norms) not in (0, n):
            raise ValueError(
                f"there are {n} kernels, {len(biases)} biases and {len(norms)} norms: give as many biases as kernels, "
                "and as many norms or none."
            )
        scales, shifts = ([norm[name] for norm in norms] for name in ("scale", "bias"))
        y, *arrays = numerics.promote(x, *kernels, *biases, *scales, *shifts)
        for i, (kernel, bias) in enumerate(zip(arrays[:n], arrays[n : 2 * n], strict=True)):
            check_channels(y, kernel)
            y = numerics.conv2d(y, kernel, bias)
            y = numerics.batch_norm(y, arrays[2 * n + i], arrays[3 * n + i]) if norms else y
            y = y if linear_end and i == n - 1 else jax.nn.leaky_relu(y, 0.1)
        return y

    return Network(init, apply, couples=norm)


def generator() -> Network:
    """MGD's generator of a teacher's map from a masked map of the student's.

    conv3x3(relu(conv3x3(mask * f)))

    Returns:
      A network with parameters `kernel1`, `kernel2` [3, 3, C, C] and `bias1`, `bias2` [C]. Its `apply` takes the
      params, a map [B, H, W, C] with the teacher's channels, and a mask in which 1 keeps and 0 hides, [B, 1, 1, C]
      (classification) or [B, H, W, 1] (detection); it returns [B, H, W, C].

    Reference:
      Yang et al., "Masked Generative Distillation", ECCV 2022, https://arxiv.org/abs/2205.01529
    """

    def apply(params: PyTree, x: ArrayLike, mask: ArrayLike) -> jax.Array:
        x, m, *arrays = numerics.promote(x, mask, *(params[name] for name in _TWO_LAYERS))
        return _generate(x * m, *arrays)

    return Network(_generator_params, apply)


def token_generator() -> Network:
    """ViTKD's generator of a teacher's last tokens from a student's, some of which one trained token replaces.

    conv3x3(relu(conv3x3(f, with f = token where mask = 1))), on tokens laid out as a square map

    Returns:
      A network with the parameters of `generator`. Its `apply` takes the params, tokens [B, N, D] (N a square, no class
      token) with the teacher's width, a mask [B, N] that is 1 (or True) where a token is hidden, and the token [D]; it
      returns [B, N, D], and raises ValueError if N is not a square.

    Reference:
      Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", 2022,
      https://arxiv.org/abs/2209.02432
    """

    def apply(params: PyTree, tokens: ArrayLike, mask: ArrayLike, token: ArrayLike) -> jax.Array:
        x, new, *arrays = numerics.promote(tokens, token, *(params[name] for name in _TWO_LAYERS))
        batch, count, width = x.shape
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(
                f"tokens have shape {x.shape}, {count} of them are not a square map: drop the class token."
            )
        hidden = jnp.asarray(mask).astype(bool)[..., None]
        x = jnp.where(hidden, jnp.expand_dims(new, (0, 1)), x)
        return _generate(x.reshape(batch, side, side, width), *arrays).reshape(x.shape)

    return Network(_generator_params, apply)


_TWO_LAYERS = ("kernel1", "bias1", "kernel2", "bias2")


def _generator_params(key: jax.Array, own: Shape, other: Shape) -> PyTree:
    """Parameters of two 3x3 convolutions that keep the channels of the result."""
    channels = other[-1]
    first, second = (conv_kernel(k, 3, channels, channels) for k in jax.random.split(key))
    return dict(zip(_TWO_LAYERS, (first, jnp.zeros(channels), second, jnp.zeros(channels)), strict=True))


def _generate(x: jax.Array, kernel1: jax.Array, bias1: jax.Array, kernel2: jax.Array, bias2: jax.Array) -> jax.Array:
    """Two convolutions with a ReLU between them."""
    return numerics.conv2d(jax.nn.relu(numerics.conv2d(x, kernel1, bias1)), kernel2, bias2)


def context_block() -> Network:
    """FGD's global context block, which starts as the identity.

    Returns:
      A network whose parameters are a `losses.dense.Context` and that turns maps [B, H, W, C] into maps of that shape
      (`losses.dense.fgd_context`).

    Reference:
      Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022,
      https://arxiv.org/abs/2111.11837
    """

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        mask, squeeze = jax.random.split(key)
        channels, width = own[-1], max(1, own[-1] // 2)
        kernel = dense_params(mask, channels, 1)["kernel"][:, 0]
        zeros = (jnp.zeros((width, channels)), jnp.zeros(channels))
        fc1 = (dense_params(squeeze, channels, width)["kernel"], jnp.zeros(width))
        return dense.Context(kernel, jnp.zeros(()), *fc1, jnp.ones(width), jnp.zeros(width), *zeros)

    def apply(params: PyTree, x: ArrayLike) -> jax.Array:
        return dense.fgd_context(x, params)

    return Network(init, apply)
