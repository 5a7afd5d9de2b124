"""Losses on feature maps [B, H, W, C] of one layer, or summed over several; one value for each example.

Where a loss takes `Maps`, one array stands for one layer and a sequence for several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.testing import (
    CLASS_PERMUTATION_INVARIANT,
    DISTANCE,
    FEATURES,
    FLAT_AT_EQUALITY,
    JOINT_SHIFT_INVARIANT,
    NON_NEGATIVE,
    ROTATION_INVARIANT,
    SCALE_INVARIANT,
    SYMMETRIC,
    ZERO_AT_EQUALITY,
    declare,
)

__all__ = ["ab", "attention_transfer", "ft", "ft_repdistiller", "nst", "ofd", "vid"]

# Norms and absolute values of a difference have a kink at equality, where rounding chooses the gradient.
_KINKED = (NON_NEGATIVE, ZERO_AT_EQUALITY)
_ATTENTION = (*FEATURES, *_KINKED, SYMMETRIC, SCALE_INVARIANT, ROTATION_INVARIANT)

Maps: TypeAlias = ArrayLike | Sequence[ArrayLike]
"""One feature map [B, H, W, C], or one for each layer."""


@declare(lambda draw: (draw.maps(), draw.maps()), _ATTENTION)
def attention_transfer(
    student_features: Maps,
    teacher_features: Maps,
    *,
    p: int = 2,
    weights: Sequence[ArrayLike] | None = None,
    as_released: bool = False,
) -> jax.Array:
    """Attention transfer: distance between the normalised spatial attention maps; numbers of channels may differ.

    sum over layers of w || a_s - a_t ||_2,  a = A / max(||A||_2, 1e-12),  A = vec(sum_c |F_c|^p)

    A larger map is averaged to the size of the smaller one. The paper's factor beta / 2 is left to the caller.

    Args:
      student_features: Floating [B, Hs, Ws, Cs], or a sequence of them.
      teacher_features: Floating [B, Ht, Wt, Ct], or a sequence of them.
      p: Power of the activations, at least 1.
      weights: One w for each layer; 1 by default.
      as_released: Whether a layer counts mean_hw (a_s - a_t)^2 instead of the norm, with A = vec(mean_c F_c^p) (signed
        for odd p), as in the authors' code and in the CIFAR-100 benchmark, whose weight is 1000.

    Returns:
      [B].

    Raises:
      ValueError: If the layers' numbers or the batches differ.

    Reference:
      Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
      Networks via Attention Transfer", ICLR 2017, https://arxiv.org/abs/1612.03928
    """

    def attention(x: jax.Array) -> jax.Array:
        return _direction(jnp.mean(x**p, axis=-1) if as_released else jnp.sum(numerics.safe_abs(x) ** p, axis=-1))

    def layer(s: jax.Array, t: jax.Array) -> jax.Array:
        s, t = numerics.match_resolution(s, t)
        difference = numerics.difference(attention(s), attention(t))
        return jnp.mean(difference**2, axis=-1) if as_released else numerics.safe_norm(difference, axis=-1)

    return _over_layers(layer, student_features, teacher_features, weights)


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, *DISTANCE, SYMMETRIC, SCALE_INVARIANT, CLASS_PERMUTATION_INVARIANT),
)
def nst(student_features: Maps, teacher_features: Maps) -> jax.Array:
    """Neuron selectivity transfer: squared MMD between the channels' normalised activation patterns.

    sum over layers of k(t, t) + k(s, s) - 2 k(s, t),  k(x, y) = mean_ij <x_i, y_j>^2 over pairs of channels

    The polynomial kernel with d = 2 and c = 0; x_i is channel i over the positions, divided by max(||x_i||_2, 1e-12).
    A larger map is averaged to the size of the smaller one. The paper's factor lambda / 2 is left to the caller.

    Args:
      student_features: Floating [B, Hs, Ws, Cs], or a sequence of them.
      teacher_features: Floating [B, Ht, Wt, Ct], or a sequence of them.

    Returns:
      [B].

    Raises:
      ValueError: If the layers' numbers or the batches differ.

    Reference:
      Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
      https://arxiv.org/abs/1707.01219
    """

    def kernel(x: jax.Array, y: jax.Array) -> jax.Array:
        products = jnp.einsum("bhwi,bhwj->bij", x, y, precision="highest")
        return jnp.mean(products**2, axis=(1, 2))

    def layer(s: jax.Array, t: jax.Array) -> jax.Array:
        s, t = (numerics.unit(x, axis=(1, 2)) for x in numerics.match_resolution(s, t))
        return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)

    return _over_layers(layer, student_features, teacher_features)


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, NON_NEGATIVE, CLASS_PERMUTATION_INVARIANT),
    own="connectors: `objectives.ab`",
)
def ab(
    student_features: Maps,
    teacher_features: Maps,
    *,
    margin: ArrayLike = 1.0,
    as_released: bool = False,
) -> jax.Array:
    """Activation boundary transfer: squared hinge that gives every neuron of the student the teacher's sign.

    sum over layers of sum_i ([t_i > 0] max(m - s_i, 0)^2 + [t_i <= 0] max(m + s_i, 0)^2)

    Positive even at s = t, where a response stays within the margin.

    Args:
      student_features: Floating [B, ...] before the activation, in the teacher's shape, or a sequence of them.
      teacher_features: Floating [B, ...] before the activation, or a sequence of them.
      margin: m > 0.
      as_released: Whether layer i of n is scaled by 3/1000 2^(i - n + 1), i = 0..n-1, as in the CIFAR-100
        benchmark; the powers of two are those of the authors' code.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes or the layers' numbers differ.

    Reference:
      Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons",
      AAAI 2019, https://arxiv.org/abs/1811.03233
    """

    def layer(s: jax.Array, t: jax.Array) -> jax.Array:
        numerics.check_same_shape(s, t, "features")
        m = jnp.asarray(margin, s.dtype)
        hinge = jax.nn.relu(jnp.where(t > 0, m - s, m + s))
        return jnp.sum(hinge**2, axis=tuple(range(1, s.ndim)))

    n = len(_layers(student_features))
    weights = [3 / 1000 * 2.0 ** (i - n + 1) for i in range(n)] if as_released else None
    return _over_layers(layer, student_features, teacher_features, weights)


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, *_KINKED, SYMMETRIC, SCALE_INVARIANT, CLASS_PERMUTATION_INVARIANT),
    own="paraphraser (teacher), translator: `objectives.paraphrase`, `objectives.ft`",
)
def ft(student_factor: ArrayLike, teacher_factor: ArrayLike, *, p: int = 1) -> jax.Array:
    """Factor transfer: mean absolute difference of the normalised factors of translator and paraphraser.

    mean_i |f_s,i - f_t,i|^p,  f = F / max(||F||_2, 1e-12) over all elements of an example

    The paper writes an Lp norm and leaves its reduction open; the mean is what its ports have. The
    factors are those of `networks.translator`.

    Args:
      student_factor: [B, ...] floating, output of the translator.
      teacher_factor: [B, ...] floating, output of the paraphraser, in the same shape.
      p: Exponent, at least 1.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
      https://arxiv.org/abs/1802.04977
    """
    s, t = numerics.promote(student_factor, teacher_factor)
    numerics.check_same_shape(s, t, "features")
    return jnp.mean(numerics.safe_abs(numerics.difference(_direction(s), _direction(t))) ** p, axis=-1)


@declare(lambda draw: (draw.maps(), draw.maps()), _ATTENTION)
def ft_repdistiller(student_feature: ArrayLike, teacher_feature: ArrayLike, *, p1: int = 2, p2: int = 1) -> jax.Array:
    """Factor transfer on attention maps, as in the CIFAR-100 benchmark; the paper's loss is `ft`.

    mean_hw |a_s - a_t|^p2,  a = A / max(||A||_2, 1e-12),  A = vec(mean_c F_c^p1)

    The benchmark's published numbers were made with this form, with weight 200. A larger map is averaged to the size of
    the smaller one.

    Args:
      student_feature: [B, Hs, Ws, Cs] floating.
      teacher_feature: [B, Ht, Wt, Ct] floating.
      p1: Power of the activations, signed if odd.
      p2: Exponent of the difference; signed if odd and not 1, as in the benchmark.

    Returns:
      [B].

    Raises:
      ValueError: If the batches differ.

    Reference:
      Tian, Krishnan, Isola, "Contrastive Representation Distillation" (the benchmark), ICLR 2020,
      https://arxiv.org/abs/1910.10699
    """

    def layer(s: jax.Array, t: jax.Array) -> jax.Array:
        s, t = numerics.match_resolution(s, t)
        a_s, a_t = (_direction(jnp.mean(x**p1, axis=-1)) for x in (s, t))
        difference = numerics.difference(a_s, a_t)
        return jnp.mean(numerics.safe_abs(difference) if p2 == 1 else difference**p2, axis=-1)

    return _over_layers(layer, student_feature, teacher_feature)


def _direction(x: jax.Array) -> jax.Array:
    """x [B, ...] as [B, N], each row divided by its norm."""
    return numerics.unit(x.reshape(len(x), -1))


def _layers(features: Maps) -> list[ArrayLike]:
    """The maps of all layers; one array is one layer."""
    return list(features) if isinstance(features, (list, tuple)) else [features]  # type: ignore[list-item]


def _over_layers(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    student: Maps,
    teacher: Maps,
    weights: Sequence[ArrayLike] | None = None,
) -> jax.Array:
    """Weighted sum of a loss [B] over the layers, promoted to one dtype."""
    s, t = _layers(student), _layers(teacher)
    w = [1.0] * len(s) if weights is None else list(weights)
    if not len(s) == len(t) == len(w) > 0:
        raise ValueError(
            f"there are {len(s)} layers of the student, {len(t)} of the teacher and {len(w)} weights: give one of each "
            "for every pair of layers."
        )
    maps = numerics.promote(*s, *t)
    values = (loss(*pair) for pair in zip(maps[: len(s)], maps[len(s) :], strict=True))
    return reduce(add, (jnp.asarray(scale, value.dtype) * value for scale, value in zip(w, values, strict=True)))


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, *DISTANCE),
    fixed=lambda draw: {"margin": -abs(draw.normal(draw.sizes.width))},
    own="connectors: `objectives.ofd`",
)
def ofd(student_feature: ArrayLike, teacher_feature: ArrayLike, margin: ArrayLike) -> jax.Array:
    """Overhaul of feature distillation: partial L2 distance to the teacher's response after a margin ReLU.

    sum_i (s_i - t_i)^2 [s_i > t_i or t_i > 0],  t = max(teacher_feature, margin)

    The authors weigh layer i of n by 2^-(n-1-i) and divide the batch mean by 1000 (CIFAR) or 10000 (ImageNet).

    Args:
      student_feature: [B, ..., C] floating, after a connector (`objectives.connector`).
      teacher_feature: [B, ..., C] floating, before the ReLU.
      margin: [C] from `ofd_margin`, negative.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes differ, or the margin has not one value for each channel.

    Reference:
      Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
      https://arxiv.org/abs/1904.01866
    """
    s, t, m = numerics.promote(student_feature, teacher_feature, margin)
    numerics.check_same_shape(s, t, "features")
    _check_per_channel(m, t, "margin")
    t = jnp.maximum(t, _channels(m, t))
    return jnp.sum(jnp.where((s > t) | (t > 0), (s - t) ** 2, 0), axis=tuple(range(1, s.ndim)))


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, FLAT_AT_EQUALITY, SYMMETRIC, JOINT_SHIFT_INVARIANT),
    fixed=lambda draw: {"log_scale": -abs(draw.normal(draw.sizes.width))},
    own="mean network, variances: `objectives.vid`",
)
def vid(
    student_mean: ArrayLike, teacher_feature: ArrayLike, log_scale: ArrayLike, *, eps: ArrayLike = 1e-5
) -> jax.Array:
    """Variational information distillation: Gaussian negative log-likelihood of the teacher's feature.

    mean_i of ((t_i - mu_i)^2 / var_c + log var_c) / 2,  var_c = log(1 + exp(log_scale_c)) + eps

    A bound on the mutual information, less the constant log(2 pi) / 2, averaged over an example's elements, where the
    paper sums. The usual initial variance of 5 is log_scale = log(exp(5 - eps) - 1).

    Args:
      student_mean: [B, ..., C] floating, mu as predicted from the student (`networks.pointwise`).
      teacher_feature: [B, ..., C] floating.
      log_scale: [C], trained.
      eps: Least variance.

    Returns:
      [B], may be negative.

    Raises:
      ValueError: If the shapes differ, or log_scale has not one value for each channel.

    Reference:
      Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
      https://arxiv.org/abs/1904.05835
    """
    mu, t, a = numerics.promote(student_mean, teacher_feature, log_scale)
    numerics.check_same_shape(mu, t, "features")
    _check_per_channel(a, t, "log_scale")
    variance = _channels(jax.nn.softplus(a) + jnp.asarray(eps, a.dtype), t)
    return jnp.mean((t - mu) ** 2 / variance + jnp.log(variance), axis=tuple(range(1, t.ndim))) / 2


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


def _check_per_channel(values: jax.Array, feature: jax.Array, what: str) -> None:
    if values.shape != feature.shape[-1:]:
        raise ValueError(
            f"{what} has shape {values.shape} but the features have shape {feature.shape}: give one value for each of "
            f"the {feature.shape[-1]} channels."
        )


def _channels(values: jax.Array, like: jax.Array) -> jax.Array:
    """[C] with the rank of `like`."""
    return jnp.expand_dims(values, tuple(range(like.ndim - 1)))
