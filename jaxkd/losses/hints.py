"""Losses on intermediate features: one value for each example, or a scalar where they couple the batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.testing import (
    BATCH_OF_ONE,
    CLASS_PERMUTATION_INVARIANT,
    COUPLED,
    DISTANCE,
    EXTREME_LOGITS,
    FEATURES,
    JOINT_ROTATION_INVARIANT,
    JOINT_SHIFT_INVARIANT,
    NON_NEGATIVE,
    OF_DIFFERENCES,
    SCALE_INVARIANT,
    SYMMETRIC,
    Draw,
    declare,
)

__all__ = ["cat_kd", "hint", "ickd", "mgd", "pkd_pearson", "review_hcl", "semckd", "simkd", "srd", "srrl"]

_DISTANCE = (*FEATURES, *DISTANCE, SYMMETRIC)


def _queries_and_keys(draw: Draw) -> tuple[np.ndarray, ...]:
    """Queries and keys of three layers on each side, and the loss of each pair of layers."""
    D = draw.sizes.width
    return draw.examples(3, D), draw.examples(3, D), abs(draw.examples(3, 3))


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*_DISTANCE, *OF_DIFFERENCES),
    own="projection, if widths differ: `linear`, `mlp`, `regressor`",
)
def hint(student_feature: ArrayLike, teacher_feature: ArrayLike) -> jax.Array:
    """FitNets' hint: mean squared difference between a (projected) student feature and the teacher's.

    (1/N) sum_i (f_s,i - f_t,i)^2 over the N elements of an example; the paper has half the sum.

    Args:
      student_feature: [B, ...] floating, already projected to the teacher's shape.
      teacher_feature: [B, ...] floating.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, https://arxiv.org/abs/1412.6550
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    numerics.check_same_shape(s, t, "features")
    return jnp.mean(jnp.square(s - t), axis=tuple(range(1, s.ndim)))


@declare(
    lambda draw: (draw.maps(), draw.maps()), (*_DISTANCE, *OF_DIFFERENCES), own="fusion modules: `objectives.review`"
)
def review_hcl(
    student_feature: ArrayLike, teacher_feature: ArrayLike, *, levels: Sequence[int] = (4, 2, 1)
) -> jax.Array:
    """ReviewKD's hierarchical context loss of one pair of layers: hints at several resolutions.

    sum_k 2^-k hint(pool_k(f_s), pool_k(f_t)) / sum_k 2^-k, where k = 0 is the map itself and k = 1, 2, ... are the
    levels l < H, average-pooled to l x l

    Args:
      student_feature: [B, H, W, C] floating, the fused student map projected to the teacher's shape.
      teacher_feature: [B, H, W, C] floating.
      levels: Sizes l of the pooled maps; those not below H are left out.

    Returns:
      [B]; the paper adds up all pairs of layers.

    Raises:
      ValueError: If the shapes differ or are no maps.

    Reference:
      Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, https://arxiv.org/abs/2104.09044
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    numerics.check_same_shape(s, t, "features")
    _check_maps(s, t)
    H, W = s.shape[1:3]
    sizes = [(H, W), *((level, level) for level in levels if level < H)]
    weights = [2.0**-k for k in range(len(sizes))]
    hints = (hint(*(numerics.adaptive_average_pool(x, size) for x in (s, t))) for size in sizes)
    return sum((w * h for w, h in zip(weights, hints, strict=True)), jnp.zeros((), s.dtype)) / sum(weights)


@declare(lambda draw: (draw.maps(), draw.maps()), (*_DISTANCE, *OF_DIFFERENCES), own="generator: `objectives.mgd`")
def mgd(student_feature: ArrayLike, teacher_feature: ArrayLike, *, alpha: ArrayLike = 7e-5) -> jax.Array:
    """Masked generative distillation: squared distance to the teacher's map of one generated from the masked student's.

    alpha * sum (G(f_s * mask) - f_t)^2

    Args:
      student_feature: G(f_s * mask) [B, H, W, C] floating, made by `networks.generator`.
      teacher_feature: [B, H, W, C] floating.
      alpha: Weight; the paper has 7e-5 for classification (mask ratio 0.15, channels) and 2e-5 for detection with two
        stages (0.65, positions).

    Returns:
      [B]; a sum over elements, so it grows with the map.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Yang et al., "Masked Generative Distillation", ECCV 2022, https://arxiv.org/abs/2205.01529
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    numerics.check_same_shape(s, t, "features")
    return jnp.asarray(alpha, s.dtype) * jnp.sum(jnp.square(s - t), axis=tuple(range(1, s.ndim)))


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*_DISTANCE, JOINT_ROTATION_INVARIANT, CLASS_PERMUTATION_INVARIANT),
    own="embedding: `connector`",
)
def ickd(student_feature: ArrayLike, teacher_feature: ArrayLike, *, normalize: bool = False) -> jax.Array:
    """Inter-channel correlation: squared difference of the Gram matrices of the channels.

    (1/C) sum_ij (G_s,ij - G_t,ij)^2,  G = F^T F with F [H W, C]

    Args:
      student_feature: [B, ..., C] floating, embedded in the teacher's channels (`objectives.connector`).
      teacher_feature: [B, ..., C] floating; may have another resolution.
      normalize: Whether each row of G is divided by its L2 norm. The paper does not; the released code, which made the
        published numbers, does.

    Returns:
      [B].

    Raises:
      ValueError: If batches or channels differ.

    Reference:
      Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021,
      https://arxiv.org/abs/2202.03680
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    _check_batch_and_channels(s, t)

    def correlation(x: jax.Array) -> jax.Array:
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        G = jnp.einsum("bpi,bpj->bij", flat, flat, precision="highest")
        return numerics.unit(G) if normalize else G

    return jnp.sum(jnp.square(correlation(s) - correlation(t)), axis=(1, 2)) / s.shape[-1]


@declare(
    lambda draw: (draw.maps(), draw.maps(), draw.logits(), draw.logits()),
    (*FEATURES, NON_NEGATIVE, EXTREME_LOGITS, *OF_DIFFERENCES),
    fixed=lambda draw: {"beta": 0.1},  # with 1 the logits hide the features
    own="connector: `objectives.srrl`",
)
def srrl(
    student_feature: ArrayLike,
    teacher_feature: ArrayLike,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
) -> jax.Array:
    """Softmax regression representation learning: distances of features and of the teacher's classifier on them.

    (1/C) ||mean_hw f_s - mean_hw f_t||^2 + beta (1/K) ||z_s - z_t||^2; the paper has no 1/C, its code has.

    Args:
      student_feature: [B, ..., C] floating, in the teacher's channels (`objectives.connector`).
      teacher_feature: [B, ..., C] floating; may have another resolution.
      student_logits: z_s [B, K], the teacher's classifier on the student's feature (`reused_classifier`).
      teacher_logits: z_t [B, K].
      beta: Weight of the second part.

    Returns:
      [B].

    Raises:
      ValueError: If shapes do not fit.

    Reference:
      Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021,
      https://openreview.net/forum?id=ZzwDy_wiWv
    """
    s, t, z_s, z_t = numerics.promote(student_feature, teacher_feature, student_logits, teacher_logits)
    _check_batch_and_channels(s, t)
    numerics.check_same_shape(z_s, z_t, "outputs")
    pooled = (jnp.mean(x, axis=tuple(range(1, x.ndim - 1))) for x in (s, t))
    return hint(*pooled) + jnp.asarray(beta, s.dtype) * hint(z_s, z_t)


@declare(
    lambda draw: (draw.maps(), draw.maps()), (*_DISTANCE, *OF_DIFFERENCES), own="network: `models.reuse_classifier`"
)
def simkd(student_feature: ArrayLike, teacher_feature: ArrayLike) -> jax.Array:
    """SimKD: a hint at the last map before the classifier; the student then uses the teacher's classifier.

    (1/N) sum_i (P(f_s)_i - f_t,i)^2

    Args:
      student_feature: P(f_s) [B, H, W, C] floating: after `numerics.match_resolution` and `models.reused.Projector`.
      teacher_feature: [B, H, W, C] floating, after `numerics.match_resolution`.

    Returns:
      [B]; predictions are `reused_classifier(P(f_s), ...)`.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
      https://arxiv.org/abs/2203.14001
    """
    return hint(student_feature, teacher_feature)


@declare(lambda draw: (draw.maps(), draw.maps()), (*_DISTANCE, SCALE_INVARIANT, CLASS_PERMUTATION_INVARIANT))
def cat_kd(
    student_feature: ArrayLike, teacher_feature: ArrayLike, *, resolution: int = 2, normalize: bool = True
) -> jax.Array:
    """Class attention transfer: mean squared difference of pooled, normalised class activation maps.

    mean (u(pool(f_s)) - u(pool(f_t)))^2, u dividing the map of each class by its L2 norm over positions

    Args:
      student_feature: [B, Hs, Ws, K] floating, one map a class: what a 1x1 convolution gives that, averaged over
        positions, is the logits.
      teacher_feature: [B, Ht, Wt, K] floating; may have another resolution.
      resolution: r, the maps are average-pooled to r x r.
      normalize: Whether the maps are normalised.

    Returns:
      [B].

    Raises:
      ValueError: If batches or classes differ, or they are no maps.

    Reference:
      Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, https://arxiv.org/abs/2304.12777
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    _check_maps(s, t)
    _check_batch_and_channels(s, t)
    s, t = (numerics.adaptive_average_pool(x, (resolution, resolution)) for x in (s, t))
    return hint(*(numerics.unit(x, axis=(1, 2)) for x in (s, t))) if normalize else hint(s, t)


@declare(
    _queries_and_keys,
    (*FEATURES, NON_NEGATIVE, EXTREME_LOGITS, JOINT_ROTATION_INVARIANT),
    kinds={"pair_losses": "other"},
    own="queries, keys, projections: `objectives.semckd`",
)
def semckd(
    student_queries: ArrayLike, teacher_keys: ArrayLike, pair_losses: ArrayLike, *, soft: ArrayLike = 1.0
) -> jax.Array:
    """SemCKD: hints between all pairs of layers, weighted by attention of each student layer to the teacher's layers.

    (1/S) sum_ij a_ij hint_ij,  a_i = softmax_j(<query_i, key_j> / soft)

    Args:
      student_queries: [B, S, d] floating, `networks.embedding` of the S student layers.
      teacher_keys: [B, N, d] floating, `networks.embedding` of the N teacher layers.
      pair_losses: [B, S, N] floating, `hint(bottleneck(f_s,i), f_t,j)` after `numerics.match_resolution`.
      soft: Temperature of the attention.

    Returns:
      [B].

    Raises:
      ValueError: If shapes do not fit.

    Reference:
      Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021, https://arxiv.org/abs/2012.03236
    """
    q, k, losses = numerics.promote(student_queries, teacher_keys, pair_losses)
    _check_batch_and_channels(q, k)
    if losses.shape != (*q.shape[:2], k.shape[1]):
        raise ValueError(
            f"pair losses have shape {losses.shape} but queries {q.shape} and keys {k.shape} need "
            f"{(*q.shape[:2], k.shape[1])}: give one for each pair of layers."
        )
    similarity = jnp.einsum("bid,bjd->bij", q, k, precision="highest")
    attention = jax.nn.softmax(similarity / jnp.asarray(soft, q.dtype), axis=-1)
    return jnp.mean(jnp.sum(attention * losses, axis=-1), axis=-1)


@declare(
    lambda draw: (draw.vectors(), draw.vectors(), draw.logits(), draw.logits()),
    (*COUPLED, BATCH_OF_ONE, EXTREME_LOGITS, JOINT_SHIFT_INVARIANT, CLASS_PERMUTATION_INVARIANT),
    own="projector: `objectives.srd`",
)
def srd(
    student_feature: ArrayLike,
    teacher_feature: ArrayLike,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    exponent: ArrayLike = 4.0,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    """SRD: logarithm of a power sum of batch-normalised features' differences, and KL; couples the batch.

    2 log sum_bi |f_s - f_t|^e + (1/B) sum_b KL(softmax(z_t / T) || softmax(z_s / T)), without T^2

    Args:
      student_feature: [B, D] floating, projected and batch-normalised.
      teacher_feature: [B, D] floating, batch-normalised.
      student_logits: [B, K] floating.
      teacher_logits: [B, K] floating.
      exponent: e >= 1.
      temperature: T > 0.

    Returns:
      Scalar, may be negative. For equal features, where the logarithm is not defined, the largest difference counts as
      the smallest positive normal number, and the gradient is 0.

    Raises:
      ValueError: If shapes differ.

    Reference:
      Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
      https://arxiv.org/abs/2303.11098
    """
    s, t, z_s, z_t = numerics.promote(student_feature, teacher_feature, student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "features")
    numerics.check_same_shape(z_s, z_t, "logits")
    numerics.check_temperature(temperature)
    e, T = jnp.asarray(exponent, s.dtype), jnp.asarray(temperature, s.dtype)
    difference = jnp.abs(numerics.difference(s, t, axis=(0, 1)))
    # In units of the largest difference nothing over- or underflows; the unit cancels, and so does its gradient.
    largest = jnp.maximum(jax.lax.stop_gradient(jnp.max(difference)), jnp.finfo(s.dtype).tiny)
    power = jnp.sum((difference / largest) ** e)
    distance = e * jnp.log(largest) + jnp.log(jnp.where(power > 0, power, 1))
    kl = numerics.kl_divergence(numerics.log_softmax(z_t, T), numerics.log_softmax(z_s, T))
    return 2 * distance + jnp.mean(kl)


@declare(
    lambda draw: (draw.maps(), draw.maps()), (*COUPLED, BATCH_OF_ONE, *DISTANCE, SYMMETRIC, CLASS_PERMUTATION_INVARIANT)
)
def pkd_pearson(student_feature: ArrayLike, teacher_feature: ArrayLike, *, loss_weight: ArrayLike = 1.0) -> jax.Array:
    """PKD: squared difference of maps standardised per channel over batch and positions; couples the batch.

    (1/2) mean (x_s - x_t)^2,  x = (f - mean f) / (std f + 1e-6), which is 1 - Pearson's r (times (n - 1) / n)

    Args:
      student_feature: [B, ..., C] floating.
      teacher_feature: [B, ..., C] floating.
      loss_weight: Factor.

    Returns:
      Scalar; the paper adds up all layers. A channel that is constant counts as 0.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient",
      NeurIPS 2022, https://arxiv.org/abs/2207.02039
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    numerics.check_same_shape(s, t, "features")
    axes = tuple(range(s.ndim - 1))

    def standardise(x: jax.Array) -> jax.Array:
        centred = numerics.centred(x, axes)
        variance = jnp.sum(jnp.square(centred), axis=axes, keepdims=True) / max(x.size // x.shape[-1] - 1, 1)
        return centred / (numerics.safe_sqrt(variance) + 1e-6)

    return jnp.asarray(loss_weight, s.dtype) * jnp.mean(jnp.square(standardise(s) - standardise(t))) / 2


def _check_maps(student: jax.Array, teacher: jax.Array) -> None:
    """Raises unless both are [B, H, W, C]."""
    if student.ndim != 4 or teacher.ndim != 4:
        raise ValueError(
            f"features have shapes {student.shape} and {teacher.shape}: give maps [B, H, W, C] to both sides."
        )


def _check_batch_and_channels(student: jax.Array, teacher: jax.Array) -> None:
    """Raises unless the first axes and the last axes are equal."""
    if (student.shape[0], student.shape[-1]) != (teacher.shape[0], teacher.shape[-1]):
        raise ValueError(
            f"student features have shape {student.shape} but teacher features have shape {teacher.shape}: give both "
            "one batch and one number of channels, by a projection."
        )
