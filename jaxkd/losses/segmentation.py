"""Losses for segmentation: the overlap with the labels, and relations between pixels of an image and of several."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_labels, of_classes
from jaxkd.losses.dense import nearest_labels
from jaxkd.testing import (
    BATCH_OF_ONE,
    COUPLED,
    DISTANCE,
    EXTREME_LOGITS,
    FEATURES,
    MASKED_CLASSES,
    NON_NEGATIVE,
    OF_PROBABILITIES,
    ROTATION_INVARIANT,
    SCALE_INVARIANT,
    SYMMETRIC,
    Draw,
    declare,
)

__all__ = ["cirkd_memory", "cirkd_pixels", "dice", "skd_pairwise"]


class CIRKDMemory(NamedTuple):
    """Embeddings of the teacher from earlier images, a ring of rows of unit length for each class.

    Attributes:
      pixels: [K, N, D], pixels that were drawn from each class of each image.
      regions: [K, M, D], means of the pixels of a class in an image.
      next_pixel: [K] int32, the row of each class that is overwritten next.
      next_region: [K] int32, the same of the regions.
    """

    pixels: jax.Array
    regions: jax.Array
    next_pixel: jax.Array
    next_region: jax.Array


def _segmented(draw: Draw) -> tuple[np.ndarray, ...]:
    """Logits of pixels, and a class for each."""
    return draw.maps(), draw.integers(draw.sizes.width, draw.sizes.rows, draw.sizes.columns)


@declare(
    _segmented,
    (*FEATURES, NON_NEGATIVE, EXTREME_LOGITS, MASKED_CLASSES, *OF_PROBABILITIES),
    needs="a class for each pixel",
)
def dice(logits: ArrayLike, labels: ArrayLike, *, smooth: ArrayLike = 1.0, ignore: int | None = None) -> jax.Array:
    """Dice loss: one minus the overlap of the probabilities with the labels, the mean over the classes.

    1 - (1/K) sum_k (2 sum_i p_ik y_ik + e) / (sum_i p_ik + sum_i y_ik + e),  p = softmax(logits), y one-hot

    The paper has one class, squares in the denominator, and no e. With e, a class that neither side has costs nothing.

    Args:
      logits: [B, ..., K] floating, K >= 2.
      labels: [B, ...] integers in 0..K-1.
      smooth: e > 0, in pixels.
      ignore: Label of pixels that count on neither side; none if None.

    Returns:
      [B] in 0..1.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Milletari, Navab, Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation",
      3DV 2016, https://arxiv.org/abs/1606.04797
    """
    (z,) = numerics.promote(logits)
    y = check_labels(z, labels, ignore)
    if z.ndim < 3:
        raise ValueError(f"logits have shape {z.shape}, which are not of pixels: give [B, ..., K].")
    p = jnp.exp(numerics.log_softmax(*y.select(z)))
    e = jnp.asarray(smooth, p.dtype)
    one_hot = y.mark(jnp.ones(y.values.shape, p.dtype))[..., None] * jax.nn.one_hot(
        y.values, z.shape[-1], dtype=p.dtype
    )
    p = p * y.counts[..., None].astype(p.dtype)
    pixels = tuple(range(1, z.ndim - 1))
    both, either = jnp.sum(p * one_hot, axis=pixels), jnp.sum(p + one_hot, axis=pixels)
    return 1 - jnp.mean((2 * both + e) / (either + e), axis=-1)


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, *DISTANCE, SYMMETRIC, SCALE_INVARIANT, ROTATION_INVARIANT),
    needs="a class for each pixel",
)
def skd_pairwise(student_feature: ArrayLike, teacher_feature: ArrayLike) -> jax.Array:
    """Pair-wise distillation: squared difference of the cosines between all positions of an image.

    (1/A^2) sum_ij ( cos(f_s,i, f_s,j) - cos(f_t,i, f_t,j) )^2,  A = H W positions

    The paper takes the maximum of each block of positions first: pool large maps before.

    Args:
      student_feature: [B, H, W, Cs] floating.
      teacher_feature: [B, H, W, Ct] floating, any number of channels.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019,
      https://arxiv.org/abs/1903.04197
    """
    s, t = (_unit_positions(x) for x in _maps(student_feature, teacher_feature))
    between = jnp.einsum("bic,bjc->bij", s, s, precision="highest")
    between -= jnp.einsum("bic,bjc->bij", t, t, precision="highest")
    itself = jnp.eye(between.shape[1], dtype=bool)
    return jnp.mean(jnp.square(jnp.where(itself, 0, between)), axis=(1, 2))


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*COUPLED, BATCH_OF_ONE, *DISTANCE, SCALE_INVARIANT, ROTATION_INVARIANT),
    needs="a class for each pixel",
)
def cirkd_pixels(student_feature: ArrayLike, teacher_feature: ArrayLike, *, temperature: ArrayLike = 0.1) -> jax.Array:
    """CIRKD within a batch: KL between the similarities of each pixel to those of every image; couples the batch.

    (1/B^2) sum_ij (1/A) sum_a KL(softmax(S_t,ij[a] / T) || softmax(S_s,ij[a] / T)),  S_ij[a, b] = cos(f_i,a, f_j,b)

    A = H W pixels of an image. The paper writes the KL's arguments the other way round; this is the authors' code.
    Time and memory grow with (B A)^2: choose a coarse map.

    Args:
      student_feature: [B, H, W, Cs] floating.
      teacher_feature: [B, H, W, Ct] floating, any number of channels.
      temperature: T > 0.

    Returns:
      Scalar in nats.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022,
      https://arxiv.org/abs/2204.06986
    """
    sides = (_unit_positions(x) for x in _maps(student_feature, teacher_feature))
    log_s, log_t = (
        numerics.log_softmax(jnp.einsum("iac,jbc->iajb", x, x, precision="highest"), temperature) for x in sides
    )
    return jnp.mean(numerics.kl_divergence(log_t, log_s))


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, *DISTANCE, SCALE_INVARIANT),
    fixed=lambda draw: {"memory": draw.normal(8, draw.sizes.width)},
    own="perceptron, memories of pixels and regions as state: `objectives.cirkd_memory`",
    needs="a class for each pixel",
)
def cirkd_memory(
    student_embedding: ArrayLike,
    teacher_embedding: ArrayLike,
    memory: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    kd_temperature: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """CIRKD with a memory: KL between the similarities of each pixel to embeddings of the teacher from other images.

    (T^2/|M|) sum_{a in M} KL(softmax(P_t[a] / T) || softmax(P_s[a] / T)),  P[a, v] = <f_a, v> / tau

    f and v have unit length; v are pixels, or means of regions, that `cirkd_push` keeps. T is 1 in the paper.

    Args:
      student_embedding: [B, ..., D] floating, already projected to the teacher's channels.
      teacher_embedding: [B, ..., D] floating.
      memory: [V, D], rows of the teacher's, of any length.
      temperature: tau > 0 of the similarities.
      kd_temperature: T > 0 of the distributions.
      mask: [B, ...], booleans or non-negative weights of the pixels, or None for all of them.

    Returns:
      [B] in nats, times T^2; 0 where no pixel is kept.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022,
      https://arxiv.org/abs/2204.06986
    """
    s, t, v = numerics.promote(student_embedding, teacher_embedding, memory)
    numerics.check_same_shape(s, t, "embeddings")
    if v.ndim != 2 or s.ndim < 3 or v.shape[1] != s.shape[-1]:
        raise ValueError(
            f"the memory has shape {v.shape} but embeddings have {s.shape}: give [B, ..., D] of pixels and [V, D]."
        )
    weights = jnp.ones(s.shape[:-1], s.dtype) if mask is None else jnp.asarray(mask, s.dtype)
    if weights.shape != s.shape[:-1]:
        raise ValueError(f"the mask has shape {weights.shape} but embeddings have {s.shape}: give {s.shape[:-1]}.")
    numerics.check_temperature(temperature)
    numerics.check_temperature(kd_temperature, "kd_temperature")
    T = jnp.asarray(kd_temperature, s.dtype)
    both = T * jnp.asarray(temperature, s.dtype)
    log_s, log_t = (
        numerics.log_softmax(jnp.einsum("...d,vd->...v", numerics.unit(x), numerics.unit(v), precision="highest"), both)
        for x in numerics.masked(weights, s, t)
    )
    return jax.vmap(numerics.masked_mean)(T**2 * numerics.kl_divergence(log_t, log_s), weights)


def cirkd_init(key: jax.Array, *, num_classes: int, pixels: int, regions: int, width: int) -> CIRKDMemory:
    """A memory before the first step: rows of unit length in random directions.

    Args:
      key: Typed PRNG key.
      num_classes: K.
      pixels: N, pixels of each class.
      regions: M, regions of each class.
      width: D, the teacher's channels.

    Returns:
      The memory, in float32.
    """
    kp, kr = jax.random.split(key)
    rows = (jax.random.normal(k, (num_classes, n, width), jnp.float32) for k, n in ((kp, pixels), (kr, regions)))
    return CIRKDMemory(*(numerics.unit(x) for x in rows), *jnp.zeros((2, num_classes), jnp.int32))


def cirkd_push(
    memory: CIRKDMemory,
    teacher_embedding: ArrayLike,
    labels: ArrayLike,
    key: jax.Array,
    *,
    each: int = 16,
    ignore: int | None = 255,
) -> CIRKDMemory:
    """The memory after a batch: of each class in each image, the mean of its pixels and some of them come in.

    The oldest rows of a class leave. Where the authors' code starts a ring anew at its end, this one goes on.

    Args:
      memory: The memory before.
      teacher_embedding: [B, H, W, D].
      labels: [B, Hl, Wl] integers in 0..K-1, resized to the map by nearest neighbour; others come into no ring.
      key: Typed PRNG key, for the choice of pixels.
      each: Pixels of each class in each image, at most.
      ignore: Label of pixels that come into no ring; none if None.

    Returns:
      The memory after, in the dtypes of the old one.

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Yang et al., "Cross-Image Relational Knowledge Distillation for Semantic Segmentation", CVPR 2022,
      https://arxiv.org/abs/2204.06986
    """
    (t,) = numerics.promote(teacher_embedding)
    K, _, D = memory.pixels.shape
    if t.ndim != 4 or t.shape[-1] != D:
        raise ValueError(f"embeddings have shape {t.shape} but the memory {memory.pixels.shape}: give [B, H, W, {D}].")
    y = of_classes(nearest_labels(labels, t.shape).reshape(len(t), -1), K, ignore)
    belongs = jax.nn.one_hot(jnp.where(y.valid & y.counts, y.values, -1), K, dtype=bool)
    rows = _unit_positions(t).astype(memory.pixels.dtype)
    means = numerics.unit(jnp.einsum("bpk,bpd->kbd", belongs.astype(rows.dtype), rows, precision="highest"))
    regions, next_region = _pushed(memory.regions, memory.next_region, means, jnp.any(belongs, axis=1).T)
    # One number for each pixel, since it has one class at most.
    drawn = jnp.where(belongs, jax.random.uniform(key, belongs.shape[:2])[..., None], -1).transpose(2, 0, 1)
    found, at = jax.lax.top_k(drawn, min(each, drawn.shape[2]))
    chosen = jax.vmap(lambda one: jnp.take_along_axis(rows, one[..., None], axis=1))(at)
    pixels, next_pixel = _pushed(
        memory.pixels, memory.next_pixel, chosen.reshape(K, -1, D), (found >= 0).reshape(K, -1)
    )
    return CIRKDMemory(pixels, regions, next_pixel, next_region)


def _pushed(ring: jax.Array, following: jax.Array, rows: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rings [K, N, D] into which the valid [K, R] of some rows [K, R, D] are written, and the places that follow."""
    N, order, count = ring.shape[1], jnp.cumsum(valid, axis=1) - 1, jnp.sum(valid, axis=1, keepdims=True)
    fresh = valid & (order >= count - N)  # of more rows than the ring holds, the last
    slots = jnp.where(fresh, (following[:, None] + order) % N, N).astype(jnp.int32)
    written = ring.at[jnp.arange(len(ring))[:, None], slots].set(rows.astype(ring.dtype), mode="drop")
    return written, ((following + count[:, 0]) % N).astype(following.dtype)


def _maps(student: ArrayLike, teacher: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both sides promoted, of one batch and resolution."""
    s, t = numerics.promote(student, teacher)
    if s.ndim != 4 or t.ndim != 4 or s.shape[:3] != t.shape[:3]:
        raise ValueError(
            f"feature maps have shapes {s.shape} and {t.shape}: give two of shape [B, H, W, C] that differ in C alone."
        )
    return s, t


def _unit_positions(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H W, C] of unit length."""
    return numerics.unit(x.reshape(len(x), -1, x.shape[-1]))
