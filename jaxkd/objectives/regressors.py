"""Feature losses whose published form has small networks of its own; their parameters are ordinary arguments."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics

Norm = tuple[ArrayLike, ArrayLike]
"""Scale and bias of a batch norm."""


def fitnet_regressor(
    student_feature: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike,
    norm: Norm | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
) -> jax.Array:
    """FitNets' regressor, a convolution from the student's map to the teacher's shape, for `hint`.

    conv(f_s; kernel) + bias, and with a norm max(BN(...), 0), as in the CIFAR-100 benchmark

    That benchmark has 3 x 3 kernels with stride 2 and padding 1 where the student's map is twice as high, and else the
    paper's: (1 + Hs - Ht) x (1 + Ws - Wt), stride 1, no padding.

    Args:
      student_feature: [B, Hs, Ws, Cs] floating.
      kernel: [h, w, Cs, Ct].
      bias: [Ct].
      norm: Scale and bias [Ct] of a batch norm in training mode, which couples the batch; none by default.
      stride: Of the convolution.
      padding: Zeros on each side.

    Returns:
      [B, Ht, Wt, Ct].

    Raises:
      ValueError: If the channels differ.

    Reference:
      Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550
    """
    x, w, b = numerics.promote(student_feature, kernel, bias)
    _check_channels(x, w)
    y = numerics.conv2d(x, w, b, stride=stride, padding=padding)
    return y if norm is None else jax.nn.relu(_normalised(y, norm))


def ft_factor(
    feature: ArrayLike, kernels: Sequence[ArrayLike], biases: Sequence[ArrayLike], norms: Sequence[Norm] | None = None
) -> jax.Array:
    """Factor transfer's encoder, of the teacher's paraphraser and of the student's translator alike, for `ft`.

    x <- LeakyReLU_0.1(BN(conv(x; kernel_i) + bias_i)) for each i, BN only if there are norms

    Args:
      feature: [B, H, W, C_0] floating.
      kernels: [h, w, C_i, C_i+1] with odd h and w, zero padding; the paper has three of 3 x 3.
      biases: [C_i+1] each.
      norms: Scale and bias [C_i+1] of batch norms in training mode, which couple the batch; none by default.

    Returns:
      The factor, [B, H, W, C_n].

    Raises:
      ValueError: If the numbers of parameters or the channels differ.

    Reference:
      Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
      https://arxiv.org/abs/1802.04977
    """
    n = len(kernels)
    if len(biases) != n or (norms is not None and len(norms) != n):
        raise ValueError(
            f"there are {n} kernels, {len(biases)} biases and {len(norms or ())} norms: give as many biases as "
            "kernels, and as many norms or none."
        )
    x, *parameters = numerics.promote(feature, *kernels, *biases)
    norm_of: Sequence[Norm | None] = [None] * n if norms is None else norms
    for w, b, norm in zip(parameters[:n], parameters[n:], norm_of, strict=True):
        _check_channels(x, w)
        y = numerics.conv2d(x, w, b)
        x = jax.nn.leaky_relu(y if norm is None else _normalised(y, norm), 0.1)
    return x


def ofd_margin(scale: ArrayLike, bias: ArrayLike) -> jax.Array:
    """OFD's margin of each channel: the mean of the teacher's negative responses, from the batch norm before its ReLU.

    m = E[x | x < 0] of x ~ N(b, g^2) with g = |scale|, b = bias
      = b - g phi(b / g) / P,  P = Phi(-b / g);  but -3 g where P <= 0.001

    Args:
      scale: [C] of the teacher's batch norm.
      bias: [C] of the teacher's batch norm.

    Returns:
      [C].

    Reference:
      Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
      https://arxiv.org/abs/1904.01866
    """
    g, b = numerics.promote(scale, bias)
    g = jnp.abs(g)
    z = b / jnp.maximum(g, 1e-12)
    negative = jax.scipy.stats.norm.cdf(-z)
    often = negative > 0.001
    return jnp.where(often, b - g * jax.scipy.stats.norm.pdf(z) / jnp.where(often, negative, 1), -3 * g)


def ofd_connector(student_feature: ArrayLike, kernel: ArrayLike, scale: ArrayLike, bias: ArrayLike) -> jax.Array:
    """OFD's connector from the student's channels to the teacher's, which couples the batch: 1 x 1 convolution and BN.

    Args:
      student_feature: [B, H, W, Cs] floating, before the ReLU.
      kernel: [1, 1, Cs, Ct].
      scale: [Ct] of the batch norm, in training mode.
      bias: [Ct] of the batch norm.

    Returns:
      [B, H, W, Ct].

    Raises:
      ValueError: If the channels differ.

    Reference:
      Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
      https://arxiv.org/abs/1904.01866
    """
    x, w, g, b = numerics.promote(student_feature, kernel, scale, bias)
    _check_channels(x, w)
    return numerics.batch_norm(numerics.conv2d(x, w), g, b)


def vid_mean(student_feature: ArrayLike, kernels: Sequence[ArrayLike]) -> jax.Array:
    """VID's regressor of the teacher's feature: 1 x 1 convolutions without biases, ReLU between them.

    If the maps differ in size, apply `match_resolution` first.

    Args:
      student_feature: [B, H, W, Cs] floating.
      kernels: [1, 1, C_i, C_i+1] each; the CIFAR-100 benchmark has three.

    Returns:
      [B, H, W, Ct].

    Raises:
      ValueError: If the channels differ.

    Reference:
      Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
      https://arxiv.org/abs/1904.05835
    """
    x, *ws = numerics.promote(student_feature, *kernels)
    for i, w in enumerate(ws):
        _check_channels(x, w)
        x = numerics.conv2d(jax.nn.relu(x) if i else x, w)
    return x


def _normalised(x: jax.Array, norm: Norm) -> jax.Array:
    """Batch norm in the dtype of x."""
    scale, bias = (jnp.asarray(parameter, x.dtype) for parameter in norm)
    return numerics.batch_norm(x, scale, bias)


def _check_channels(x: jax.Array, kernel: jax.Array) -> None:
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"a feature of shape {x.shape} does not fit a kernel of shape {kernel.shape}: give a map [B, H, W, C] and "
            "a kernel [h, w, C, D] with the same C."
        )
