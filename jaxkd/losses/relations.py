"""Losses on relations between the examples of a batch; all couple the batch, and most allow different widths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.testing import (
    BATCH_OF_ONE,
    BATCH_PERMUTATION,
    COUPLED,
    DISTANCE,
    FLAT_AT_EQUALITY,
    NON_NEGATIVE,
    ROTATION_INVARIANT,
    SCALE_INVARIANT,
    SYMMETRIC,
    ZERO_AT_EQUALITY,
    declare,
)

__all__ = ["cc", "cc_neighbours", "dark_rank_hard", "dark_rank_soft", "pkt", "rkd", "rkd_angle", "rkd_distance", "sp"]

_COUPLED = (*COUPLED, BATCH_OF_ONE, NON_NEGATIVE)
_RELATIONS = (*_COUPLED, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY, SYMMETRIC, ROTATION_INVARIANT)


@declare(lambda draw: (draw.maps(), draw.maps()), (*_RELATIONS, SCALE_INVARIANT))
def sp(student_feature: ArrayLike, teacher_feature: ArrayLike) -> jax.Array:
    """Similarity-preserving distillation: squared difference of the row-normalised Gram matrices; couples the batch.

    (1/B^2) ||G_s - G_t||_F^2,  G = rows of Q Q^T divided by their L2 norm,  Q = features flattened to [B, D]

    Args:
      student_feature: [B, ...] floating.
      teacher_feature: [B, ...] floating, any other axes.

    Returns:
      Scalar; 0 for a batch of one.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, https://arxiv.org/abs/1907.09682
    """
    s, t = _batches(student_feature, teacher_feature)
    return jnp.mean(jnp.square(numerics.unit(_gram(s)) - numerics.unit(_gram(t))))


@declare(lambda draw: (draw.vectors(), draw.vectors()), (*_RELATIONS, SCALE_INVARIANT))
def rkd_distance(student_embedding: ArrayLike, teacher_embedding: ArrayLike) -> jax.Array:
    """RKD's distance-wise loss: Huber difference of the relative pairwise distances; couples the batch.

    (1/B^2) sum_ij huber(d_s,ij / mu_s - d_t,ij / mu_t),  d_ij = ||x_i - x_j||,  mu = mean of d_ij over i != j

    The paper sums; this is the mean over all ordered pairs, the diagonal's zeros included, of the authors' code.

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width.

    Returns:
      Scalar; 0 for a batch of one.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068
    """
    s, t = _batches(student_embedding, teacher_embedding)

    def relative(x: jax.Array) -> jax.Array:
        d, pairs = _distances(x), len(x) * (len(x) - 1)
        return d * pairs / jnp.sum(d) if pairs else d

    return jnp.mean(optax.huber_loss(relative(s), relative(t)))


@declare(lambda draw: (draw.vectors(), draw.vectors()), (*_RELATIONS, SCALE_INVARIANT))
def rkd_angle(student_embedding: ArrayLike, teacher_embedding: ArrayLike) -> jax.Array:
    """RKD's angle-wise loss: Huber difference of the cosines of all triangles' angles; couples the batch.

    (1/B^3) sum_ijk huber(A_s,ijk - A_t,ijk),  A_ijk = <e_ij, e_ik>,  e_ij = (x_j - x_i) / ||x_j - x_i||

    The paper sums; this is the mean over all ordered triples, degenerate ones included, of the authors' code.

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width.

    Returns:
      Scalar; 0 for fewer than three examples. Memory grows as B^3 + B^2 D.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068
    """
    s, t = _batches(student_embedding, teacher_embedding)

    def angles(x: jax.Array) -> jax.Array:
        e = numerics.pairwise_directions(x)
        return jnp.einsum("ijd,ikd->ijk", e, e, precision="highest")

    return jnp.mean(optax.huber_loss(angles(s), angles(t)))


@declare(lambda draw: (draw.vectors(), draw.vectors()), (*_RELATIONS, SCALE_INVARIANT))
def rkd(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    *,
    distance_weight: ArrayLike = 25.0,
    angle_weight: ArrayLike = 50.0,
) -> jax.Array:
    """RKD's two losses together, with the weights of the paper's classification experiments; couples the batch.

    distance_weight * rkd_distance + angle_weight * rkd_angle

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width.
      distance_weight: Weight of `rkd_distance`; 1 in the paper's metric learning.
      angle_weight: Weight of `rkd_angle`; 2 in the paper's metric learning.

    Returns:
      Scalar.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068
    """
    distance = rkd_distance(student_embedding, teacher_embedding)
    angle = rkd_angle(student_embedding, teacher_embedding)
    return (
        numerics.per_example(distance_weight, distance) * distance + numerics.per_example(angle_weight, angle) * angle
    )


def bilinear_kernel(x: jax.Array) -> jax.Array:
    """Inner products of all pairs of rows, a kernel for `cc`.

    Args:
      x: [B, D].

    Returns:
      [B, B].
    """
    return _gram(x)


def gaussian_kernel(x: jax.Array, *, gamma: ArrayLike = 0.4, order: int = 2) -> jax.Array:
    """Gaussian kernel of rows of unit length, as a Taylor series of their inner products, a kernel for `cc`.

    exp(-gamma ||x_i - x_j||^2) = exp(-2 gamma) exp(2 gamma <x_i, x_j>)
                               ~= exp(-2 gamma) sum_{p=0..P} (2 gamma)^p / p! <x_i, x_j>^p

    Args:
      x: [B, D], rows of unit length; other rows are not normalised here, and the expansion does not hold for them.
      gamma: Inverse width.
      order: P, the last power that is kept.

    Returns:
      [B, B].
    """
    exponent = 2 * numerics.per_example(gamma, x)
    products = exponent * _gram(x)
    return jnp.exp(-exponent) * sum(
        (products**p / math.factorial(p) for p in range(1, order + 1)), jnp.ones_like(products)
    )


@declare(lambda draw: (draw.vectors(scale=0.5), draw.vectors(scale=0.5)), _RELATIONS)
def cc(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    *,
    kernel: Callable[[jax.Array], jax.Array] = gaussian_kernel,
    squared: bool = True,
) -> jax.Array:
    """Correlation congruence: difference of the kernel matrices of all pairs of examples; couples the batch.

    (1/B^2) ||K(x_s) - K(x_t)||_F^2

    Args:
      student_embedding: [B, ...] floating; of unit length for the default kernel.
      teacher_embedding: [B, ...] floating, any width; of unit length for the default kernel.
      kernel: [B, D] -> [B, B]; `gaussian_kernel` or `bilinear_kernel`, other parameters bound with functools.partial.
      squared: Whether the norm is squared, as in the paper; torchdistill's code leaves it unsquared.

    Returns:
      Scalar.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, https://arxiv.org/abs/1904.01802
    """
    s, t = _batches(student_embedding, teacher_embedding)
    difference = numerics.difference(kernel(s), kernel(t), axis=(0, 1))
    norm = jnp.sum(jnp.square(difference)) if squared else numerics.safe_norm(difference)
    return norm / len(s) ** 2


@declare(
    lambda draw: (draw.vectors(), draw.vectors()),
    (*(p for p in COUPLED if p is not BATCH_PERMUTATION), BATCH_OF_ONE, *DISTANCE, SYMMETRIC),
)
def cc_neighbours(student_embedding: ArrayLike, teacher_embedding: ArrayLike) -> jax.Array:
    """Correlation congruence as in the CIFAR-100 benchmark: products of neighbours' errors; couples the batch.

    (1/(B-1)) sum_{b<B} <d_b, d_{b+1}>,  d_b = |x_s,b - x_t,b| elementwise

    Unlike the paper's kernel matrices (see `cc`), only neighbours are paired, so the order of the batch matters.

    Args:
      student_embedding: [B, ...] floating, already projected to the teacher's width.
      teacher_embedding: [B, ...] floating.

    Returns:
      Scalar; 0 for a batch of one.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, https://arxiv.org/abs/1904.01802
      (form: Tian et al., "Contrastive Representation Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699)
    """
    s, t = _batches(student_embedding, teacher_embedding)
    numerics.check_same_shape(s, t, "features")
    d = jnp.abs(numerics.difference(s, t))
    return jnp.sum(d[:-1] * d[1:]) / max(len(d) - 1, 1)


@declare(lambda draw: (draw.vectors(), draw.vectors()), (*_COUPLED, ZERO_AT_EQUALITY, ROTATION_INVARIANT))
def pkt(student_embedding: ArrayLike, teacher_embedding: ArrayLike, *, keep_diagonal: bool = False) -> jax.Array:
    """Probabilistic knowledge transfer: KL between the distributions over an example's neighbours; couples the batch.

    (1/B^2) sum_ij P_t,ij log((P_t,ij + e) / (P_s,ij + e)),  P_ij = K_ij / sum_k K_ik,  K_ij = (1 + cos(x_i, x_j)) / 2

    with e = 1e-7. The paper sums over the pairs; this is the mean over B^2 of the code behind the published numbers.

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width.
      keep_diagonal: Whether an example is its own neighbour, as in the authors' code and against the paper's i != j.

    Returns:
      Scalar; 0 for a batch of one.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
      https://arxiv.org/abs/1803.10837
    """
    s, t = _batches(student_embedding, teacher_embedding)
    eps = 1e-7

    def log_neighbours(x: jax.Array) -> jax.Array:
        unit = x / (numerics.safe_norm(x, axis=1, keepdims=True) + eps)
        # Rounding may put the kernel of opposite examples below 0.
        kernel = jnp.maximum((_gram(unit) + 1) / 2, 0)
        kernel = kernel if keep_diagonal else jnp.where(_diagonal(x), 0, kernel)
        total = jnp.sum(kernel, axis=1, keepdims=True)
        return jnp.log(kernel / jnp.where(total > 0, total, 1) + eps)

    log_t, log_s = log_neighbours(t), log_neighbours(s)
    # KL weighs with P_t + e, the formula with P_t.
    rows = numerics.kl_divergence(log_t, log_s) - eps * jnp.sum(log_t - log_s, axis=1)
    return jnp.sum(rows) / len(s) ** 2


@declare(lambda draw: (draw.vectors(scale=0.3), draw.vectors(scale=0.3)), (*_COUPLED, ROTATION_INVARIANT))
def dark_rank_hard(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    *,
    alpha: ArrayLike = 3.0,
    beta: ArrayLike = 3.0,
    length: int = 4,
) -> jax.Array:
    """Hard DarkRank: negative log-likelihood of the teacher's ranking of the nearest examples; couples the batch.

    -(1/B) sum_i sum_{n=1..L} log( exp S_i(o_n) / sum_{m=n..L} exp S_i(o_m) ),  S_i(j) = -alpha ||x_i - x_j||^beta

    where o_1..o_L are the examples nearest to x_i for the teacher, nearest first, and S is the student's.

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width; only its order counts, so that no gradient reaches it.
      alpha: Scale of the scores.
      beta: Power of the distance.
      length: L, the number of examples that are ranked, at most B - 1.

    Returns:
      Scalar in nats; 0 for a batch of one.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Chen, Wang, Zhang, "DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer",
      AAAI 2018, https://arxiv.org/abs/1707.01220
    """
    s_scores, _ = _scores_of_nearest(student_embedding, teacher_embedding, alpha, beta, length)
    return -jnp.mean(_log_likelihood(s_scores))


@declare(
    lambda draw: (draw.vectors(scale=0.3), draw.vectors(scale=0.3)),
    (*_COUPLED, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY, ROTATION_INVARIANT),
)
def dark_rank_soft(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    *,
    alpha: ArrayLike = 3.0,
    beta: ArrayLike = 3.0,
    length: int = 4,
) -> jax.Array:
    """Soft DarkRank: KL between the distributions over all rankings of the nearest examples; couples the batch.

    (1/B) sum_i KL( P_t(pi | i) || P_s(pi | i) ) over all permutations pi of the L examples nearest for the teacher,
    P(pi | i) = prod_{n=1..L} exp S_i(pi_n) / sum_{m=n..L} exp S_i(pi_m),  S_i(j) = -alpha ||x_i - x_j||^beta

    Args:
      student_embedding: [B, ...] floating.
      teacher_embedding: [B, ...] floating, any width.
      alpha: Scale of the scores.
      beta: Power of the distance.
      length: L, the number of examples that are ranked, at most B - 1; work and memory grow as L!, so keep it small.

    Returns:
      Scalar in nats; 0 for fewer than three examples.

    Raises:
      ValueError: If the batches differ.

    Reference:
      Chen, Wang, Zhang, "DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer",
      AAAI 2018, https://arxiv.org/abs/1707.01220
    """
    s_scores, t_scores = _scores_of_nearest(student_embedding, teacher_embedding, alpha, beta, length)
    rankings = jnp.array(list(itertools.permutations(range(s_scores.shape[1]))), jnp.int32)
    log_s, log_t = _log_likelihood(s_scores[:, rankings]), _log_likelihood(t_scores[:, rankings])
    return jnp.mean(numerics.kl_divergence(log_t, log_s))


def _batches(student: ArrayLike, teacher: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both sides promoted and flattened to [B, D]."""
    s, t = numerics.promote(student, teacher)
    if min(s.ndim, t.ndim) < 2 or len(s) != len(t):
        raise ValueError(
            f"student features have shape {s.shape} but teacher features have shape {t.shape}: relations are compared "
            "example by example, so give both [B, ...] with the same batch."
        )
    return s.reshape(len(s), -1), t.reshape(len(t), -1)


def _gram(x: jax.Array) -> jax.Array:
    """Inner products of the rows, [B, B]."""
    return jnp.einsum("id,jd->ij", x, x, precision="highest")


def _diagonal(x: jax.Array) -> jax.Array:
    """Mask [B, B] of the pairs of an example with itself."""
    return jnp.eye(len(x), dtype=bool)


def _distances(x: jax.Array) -> jax.Array:
    """Distances of all pairs of rows [B, B]: 0 on the diagonal, else at least 1e-6, so that powers have gradients."""
    squared = jnp.maximum(numerics.pairwise_squared_distances(x), 1e-12)
    return jnp.where(_diagonal(x), 0, jnp.sqrt(squared))


def _scores_of_nearest(
    student: ArrayLike, teacher: ArrayLike, alpha: ArrayLike, beta: ArrayLike, length: int
) -> tuple[jax.Array, jax.Array]:
    """Both sides' DarkRank scores [B, L] of each example's nearest others, in the teacher's order."""
    s, t = _batches(student, teacher)
    d_s, d_t = _distances(s), _distances(t)
    others_first = jnp.argsort(jnp.where(_diagonal(t), jnp.inf, d_t), axis=1)
    nearest = others_first[:, : min(length, len(t) - 1)]

    def scores(d: jax.Array) -> jax.Array:
        near = jnp.take_along_axis(d, nearest, axis=1)
        return -numerics.per_example(alpha, d) * near ** numerics.per_example(beta, d)

    return scores(d_s), scores(d_t)


def _log_likelihood(scores: jax.Array) -> jax.Array:
    """Log-probability of the ranking in which the scores [..., L] stand (Plackett and Luce's model), [...]."""
    return jnp.sum(scores - jax.lax.cumlogsumexp(scores, axis=scores.ndim - 1, reverse=True), axis=-1)
