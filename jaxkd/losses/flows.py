"""Losses on relations between the feature maps of neighbouring layers; one value for each example."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from itertools import pairwise
from operator import add

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.testing import (
    CLASS_PERMUTATION_INVARIANT,
    DISTANCE,
    FEATURES,
    JOINT_ROTATION_INVARIANT,
    SCALE_INVARIANT,
    SYMMETRIC,
    declare,
)

__all__ = ["fsp", "kdsvd"]


@declare(
    lambda draw: ([draw.maps(), draw.maps()], [draw.maps(), draw.maps()]),
    (*FEATURES, *DISTANCE, SYMMETRIC, JOINT_ROTATION_INVARIANT),
)
def fsp(
    student_features: Sequence[ArrayLike], teacher_features: Sequence[ArrayLike], *, max_pool: bool = True
) -> jax.Array:
    """Flow of solution procedure: squared difference of the Gram matrices between neighbouring layers.

    sum_i mean_mn (G_s - G_t)^2,  G[m, n] = (1 / HW) sum_hw F_i[h, w, m] F_i+1[h, w, n]

    The larger map of two neighbours is pooled to the size of the smaller one. The paper sums over m and n.

    Args:
      student_features: At least two floating [B, H_i, W_i, C_i].
      teacher_features: As many, with the student's channel numbers; the sizes may differ.
      max_pool: Whether pooling takes the maximum, as in the paper, or the mean, as in the CIFAR-100 benchmark.

    Returns:
      [B].

    Raises:
      ValueError: If there are fewer than two layers, or their numbers, batches or channels differ.

    Reference:
      Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
      Learning", CVPR 2017,
      https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html
    """
    pool = _adaptive_max_pool if max_pool else numerics.adaptive_average_pool

    def flow(bottom: jax.Array, top: jax.Array) -> jax.Array:
        x, y = numerics.match_resolution(bottom, top, pool)
        return jnp.einsum("bhwm,bhwn->bmn", x, y, precision="highest") / (x.shape[1] * x.shape[2])

    student, teacher = _layers_of_one_width(student_features, teacher_features)
    neighbours = zip(pairwise(student), pairwise(teacher), strict=True)
    return reduce(add, (jnp.mean((flow(*s) - flow(*t)) ** 2, axis=(1, 2)) for s, t in neighbours))


@declare(
    lambda draw: ([draw.maps(), draw.maps()], [draw.maps(), draw.maps()]),
    (*FEATURES, *DISTANCE, SCALE_INVARIANT, CLASS_PERMUTATION_INVARIANT),
)
def kdsvd(student_features: Sequence[ArrayLike], teacher_features: Sequence[ArrayLike], *, k: int = 1) -> jax.Array:
    """KD by singular value decomposition: relations between the main channel directions of neighbouring layers.

    sum over layers i > 0 and m, n, j of (R_s - R_t)^2,  R[m, n, j] = exp(-(v_j^i[m] - v_j^(i-1)[n])^2 / 8)

    v_j is the j-th right singular vector of the map as a matrix [HW, C]. The teacher's have a positive entry of largest
    magnitude (the loss depends on their sign). Of the student's first k + 3, each takes the one closest to it in angle,
    with the sign that makes their product positive. Both are scaled by g_j, the teacher's singular values sigma_j over
    the norm of the first k.

    Args:
      student_features: At least two floating [B, H_i, W_i, C_i].
      teacher_features: As many, with the student's channel numbers; the sizes may differ.
      k: Number of the teacher's vectors, at most min(H W, C) of its smallest map.

    Returns:
      [B]. Derivatives between numerically equal singular values, whose vectors are arbitrary, count as 0.

    Raises:
      ValueError: If there are fewer than two layers, their numbers, batches or channels differ, or k is too large.

    Reference:
      Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
      https://arxiv.org/abs/1807.06819
    """
    student, teacher = _layers_of_one_width(student_features, teacher_features)
    _check_rank(teacher, k)
    sides = zip(*(_aligned_vectors(s, t, k) for s, t in zip(student, teacher, strict=True)), strict=True)

    def relation(bottom: jax.Array, top: jax.Array) -> jax.Array:
        return jnp.exp(-((top[:, :, None] - bottom[:, None]) ** 2) / 8)

    neighbours = zip(*(pairwise(side) for side in sides), strict=True)
    return reduce(add, (jnp.sum((relation(*s) - relation(*t)) ** 2, axis=(1, 2, 3)) for s, t in neighbours))


def _check_rank(maps: Sequence[jax.Array], k: int) -> None:
    for height, width, channels in (m.shape[1:] for m in maps):
        if not 1 <= k <= min(height * width, channels):
            raise ValueError(
                f"k is {k}, but a teacher's map of {height} x {width} positions and {channels} channels has "
                f"{min(height * width, channels)} singular vectors: choose k from 1 to that number."
            )


def _aligned_vectors(student: jax.Array, teacher: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The teacher's first k right singular vectors and the student's closest ones, all scaled by g: [B, C, k]."""
    sigma, v_t = _right_singular_vectors(_matrix(teacher), k)
    _, v_s = _right_singular_vectors(_matrix(student), min(k + 3, *_matrix(student).shape[1:]))
    largest = jnp.argmax(jnp.abs(v_t), axis=1, keepdims=True)
    v_t = v_t * jnp.sign(jnp.take_along_axis(v_t, largest, axis=1))
    cosine = jnp.einsum("bca,bcj->baj", v_s, v_t, precision="highest")
    closest = jnp.argmax(jnp.abs(cosine), axis=1, keepdims=True)
    v_s = jnp.take_along_axis(v_s, closest, axis=2) * jnp.sign(jnp.take_along_axis(cosine, closest, axis=1))
    g = numerics.unit(sigma)[:, None]
    return v_s * g, v_t * g


def _matrix(feature: jax.Array) -> jax.Array:
    """[B, H, W, C] as [B, HW, C]."""
    return feature.reshape(len(feature), -1, feature.shape[-1])


def _right_singular_vectors(x: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """The n largest singular values [B, n] over the largest entry of x, and their right singular vectors [B, C, n]."""
    # Vectors and ratios of values do not see a factor, and without one no square over- or underflows.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True))
    sigma, v = _svd(x / jnp.where(largest > 0, largest, 1))
    return sigma[:, :n], v[:, :, :n]


@jax.custom_jvp
def _svd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Singular values [B, r] and right singular vectors [B, C, r], r = min(N, C)."""
    _, sigma, v = jnp.linalg.svd(x, full_matrices=False)
    return sigma, jnp.swapaxes(v, 1, 2)


@_svd.defjvp
def _svd_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Perturbation of x^T x: dv_a = sum_b v_b (v_b^T d(x^T x) v_a) / (sigma_a^2 - sigma_b^2) over all b in R^C."""
    (x,), (dx,) = primals, tangents
    sigma, v = _svd(x)
    noise = jnp.finfo(x.dtype).eps * max(x.shape[1:]) * sigma[:, None, :1]
    own, other = sigma[:, None, :], sigma[:, :, None]
    xv = _matmul(x, v)
    half = _matmul(jnp.swapaxes(_matmul(dx, v), 1, 2), xv)  # [b, a]: v_b^T dx^T x v_a
    dv = _matmul(
        v, _ratio(half + jnp.swapaxes(half, 1, 2), (own - other) * (own + other), jnp.abs(own - other) > noise)
    )
    if x.shape[1] < x.shape[2]:  # all b with sigma_b = 0 at once
        rest = _matmul(jnp.swapaxes(dx, 1, 2), xv) - _matmul(v, half)
        dv = dv + _ratio(rest, own**2, own > noise)
    dsigma = _ratio(jnp.diagonal(half, axis1=1, axis2=2), sigma, sigma > noise[:, 0])
    return (sigma, v), (dsigma, dv)


_matmul = partial(jnp.matmul, precision="highest")


def _ratio(x: jax.Array, y: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.where(where, x / jnp.where(where, y, 1), 0)


def _layers_of_one_width(
    student: Sequence[ArrayLike], teacher: Sequence[ArrayLike]
) -> tuple[Sequence[jax.Array], Sequence[jax.Array]]:
    """Promotes two or more maps of each side, which must have the same batch and channels, to one dtype."""
    maps = numerics.promote(*student, *teacher)
    sides = maps[: len(student)], maps[len(student) :]
    shapes = [[m.shape for m in side] for side in sides]
    kept = [[(len(shape), shape[:1], shape[-1:]) for shape in side] for side in shapes]
    if len(student) < 2 or kept[0] != kept[1] or any(rank != 4 for rank, *_ in kept[0]):
        raise ValueError(
            f"student feature maps have shapes {shapes[0]} and teacher feature maps {shapes[1]}: give at least two "
            "layers [B, H, W, C], with the same batch and channels on both sides."
        )
    return sides


def _adaptive_max_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Maximum over the windows of `numerics.adaptive_average_pool`, rows first, then columns."""
    for axis, r in zip((1, 2), size, strict=True):
        if r == (n := x.shape[axis]):
            continue
        windows = [jax.lax.slice_in_dim(x, i * n // r, -(-(i + 1) * n // r), axis=axis) for i in range(r)]
        x = jnp.stack([jnp.max(window, axis=axis) for window in windows], axis=axis)
    return x
