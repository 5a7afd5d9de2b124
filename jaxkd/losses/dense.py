"""Losses for dense prediction (segmentation, detection) on maps [B, H, W, C]; one value for each example."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_range, of_classes
from jaxkd.testing import (
    CLASS_PERMUTATION_INVARIANT,
    DISTANCE,
    DIVERGENCE,
    EXTREME_LOGITS,
    FEATURES,
    MASKED_CLASSES,
    OF_PROBABILITIES,
    ROTATION_INVARIANT,
    SCALE_INVARIANT,
    SYMMETRIC,
    Draw,
    declare,
)

__all__ = ["cwd", "fgd", "ifvd", "ld", "pixel_kd"]


class Context(NamedTuple):
    """Parameters of FGD's global context block.

    Attributes:
      mask_kernel: [C], the 1x1 convolution that makes the attention over positions.
      mask_bias: Scalar.
      fc1_kernel: [C, M]; M = C / 2 in the paper.
      fc1_bias: [M].
      ln_scale: [M].
      ln_bias: [M].
      fc2_kernel: [M, C]; initialised to zero, so that the block starts as the identity.
      fc2_bias: [C]; initialised to zero.
    """

    mask_kernel: ArrayLike
    mask_bias: ArrayLike
    fc1_kernel: ArrayLike
    fc1_bias: ArrayLike
    ln_scale: ArrayLike
    ln_bias: ArrayLike
    fc2_kernel: ArrayLike
    fc2_bias: ArrayLike


def _segments(draw: Draw) -> tuple[np.ndarray, ...]:
    """Maps, and class maps of a higher resolution, in which 255 is no class."""
    H, W = draw.sizes.rows, draw.sizes.columns
    labels = draw.integers(5, 2 * H, 2 * W - 1)
    return draw.maps(), draw.maps(), np.where(labels == 4, 255, labels)


def _fgd_arguments(draw: Draw) -> dict[str, Any]:
    """Context blocks, the image's shape, and weights under which every part of the loss counts."""
    C, M = draw.sizes.width, draw.sizes.width // 2
    shapes = ((C,), (), (C, M), (M,), (M,), (M,), (M, C), (C,))
    block = Context(*(draw.normal(*shape) for shape in shapes))
    weights = dict.fromkeys(("alpha", "beta", "gamma", "lambda_"), 1.0)
    return {"student_context": block, "teacher_context": block, "image_shape": draw.image_shape, **weights}


@declare(
    lambda draw: (draw.maps(), draw.maps()),
    (*FEATURES, *DISTANCE, EXTREME_LOGITS, MASKED_CLASSES, *OF_PROBABILITIES),
    needs="a class for each pixel",
)
def pixel_kd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
) -> jax.Array:
    """Pixel-wise distillation: the mean over the positions of the KL between class distributions, times T^2.

    T^2 / |M| sum_{i in M} KL(softmax(z_t,i / T) || softmax(z_s,i / T)),  M = the positions that the mask keeps

    The paper has T = 1.

    Args:
      student_logits: [B, ..., K] floating.
      teacher_logits: [B, ..., K] floating.
      temperature: T > 0, a scalar or an array over leading axes.
      mask: [B, ...], booleans or non-negative weights of the positions, or None for all of them.

    Returns:
      [B] in nats, times T^2; 0 where no position is kept.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019,
      https://arxiv.org/abs/1903.04197
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    weights = jnp.ones(s.shape[:-1], s.dtype) if mask is None else jnp.asarray(mask, s.dtype)
    if weights.shape != s.shape[:-1]:
        raise ValueError(f"the mask has shape {weights.shape} but logits have shape {s.shape}: give {s.shape[:-1]}.")
    s, t = numerics.masked(weights, s, t)
    numerics.check_temperature(temperature)
    T = jnp.asarray(temperature, s.dtype)
    divergence = numerics.kl_divergence(numerics.log_softmax(t, T), numerics.log_softmax(s, T))
    return jax.vmap(numerics.masked_mean)(numerics.per_example(T**2, divergence) * divergence, weights)


@declare(lambda draw: (draw.maps(), draw.maps()), (*FEATURES, *DISTANCE, EXTREME_LOGITS, CLASS_PERMUTATION_INVARIANT))
def cwd(student_feature: ArrayLike, teacher_feature: ArrayLike, *, temperature: ArrayLike = 4.0) -> jax.Array:
    """Channel-wise distillation: KL between the distributions of each channel over the positions, times T^2.

    (T^2 / C) sum_c KL(softmax_i(x_t,ic / T) || softmax_i(x_s,ic / T)),  i = the H W positions

    Args:
      student_feature: [B, ..., C] floating, features or logits, already projected to the teacher's channels.
      teacher_feature: [B, ..., C] floating.
      temperature: T > 0.

    Returns:
      [B] in nats, times T^2.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021,
      https://arxiv.org/abs/2011.13256
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    numerics.check_same_shape(s, t, "features")
    numerics.check_temperature(temperature)
    T = jnp.asarray(temperature, s.dtype)
    log_q, log_p = (numerics.log_softmax(jnp.moveaxis(_positions(x), 1, 2), T) for x in (s, t))
    return T**2 * jnp.mean(numerics.kl_divergence(log_p, log_q), axis=1)


@declare(
    _segments,
    (*FEATURES, *DISTANCE, SYMMETRIC, SCALE_INVARIANT, ROTATION_INVARIANT),
    fixed=lambda draw: {"num_classes": 4},
    needs="a class for each pixel",
)
def ifvd(
    student_feature: ArrayLike,
    teacher_feature: ArrayLike,
    labels: ArrayLike,
    *,
    num_classes: int,
    ignore: int | None = 255,
) -> jax.Array:
    """Intra-class feature variation: squared difference of each position's cosine with the mean feature of its class.

    (1/(H W)) sum_i ( cos(f_s,i, c_s(y_i)) - cos(f_t,i, c_t(y_i)) )^2,  c(k) = mean of f over the positions of class k

    Class means are the example's own. A position of no class adds 0, whatever the features there.

    Args:
      student_feature: [B, H, W, Cs] floating.
      teacher_feature: [B, H, W, Ct] floating, any number of channels.
      labels: [B, Hl, Wl] integers in 0..K-1; resized to [B, H, W] by nearest neighbour.
      num_classes: K.
      ignore: Label of positions of no class; none if None.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020,
      https://www.ecva.net/papers/eccv_2020/papers_ECCV/papers/123520341.pdf
    """
    s, t = numerics.promote(student_feature, teacher_feature)
    if s.ndim != 4 or s.shape[:3] != t.shape[:3] or jnp.ndim(labels) != 3 or jnp.shape(labels)[0] != len(s):
        raise ValueError(
            f"student features have shape {s.shape}, teacher features {t.shape} and labels {jnp.shape(labels)}: give "
            "[B, H, W, C] of the same B, H and W, and integer labels [B, Hl, Wl]."
        )
    y = of_classes(nearest_labels(labels, s.shape).reshape(len(s), -1), num_classes, ignore)
    members = jax.nn.one_hot(jnp.where(y.counts, y.values, -1), num_classes, dtype=s.dtype)
    variation_s, variation_t = _class_cosines(_positions(s), members), _class_cosines(_positions(t), members)
    return jnp.mean(y.mark(jnp.square(variation_s - variation_t)), axis=1)


def nearest_labels(labels: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    """Labels of the resolution of a feature map, resized by nearest neighbour as PyTorch does.

    Args:
      labels: [B, Hl, Wl] integers.
      shape: Shape of the map, [B, H, W, C].

    Returns:
      [B, H, W] integers.

    Raises:
      ValueError: If the labels are no integers of that batch.
    """
    check_range("labels", labels)
    given = jnp.asarray(labels)
    if given.ndim != 3 or len(given) != shape[0] or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(
            f"labels have shape {given.shape} and dtype {given.dtype} but features have shape {shape}: give integers "
            "[B, Hl, Wl] of the same B."
        )
    (H, W), (Hl, Wl) = shape[1:3], given.shape[1:]
    return given[:, jnp.arange(H) * Hl // H][:, :, jnp.arange(W) * Wl // W]


@declare(
    lambda draw: (draw.examples(4, draw.sizes.width), draw.examples(4, draw.sizes.width)), DIVERGENCE, needs="boxes"
)
def ld(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: ArrayLike = 10.0,
    mean_over_bins: bool = False,
) -> jax.Array:
    """Localization distillation: KL between the distributions over a box edge's bins, times T^2.

    T^2 * KL(softmax(z_t / T) || softmax(z_s / T)) of each edge; a detector has four edges for each location

    Args:
      student_logits: [..., J] floating, over the J bins of an edge.
      teacher_logits: [..., J] floating.
      temperature: T > 0, a scalar or an array over leading axes.
      mean_over_bins: Whether to divide by J, as the authors' code does; its loss weight of 0.25 goes with that.

    Returns:
      [...] in nats, times T^2.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022,
      https://arxiv.org/abs/2102.12252
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    numerics.check_temperature(temperature)
    T = jnp.asarray(temperature, s.dtype)
    divergence = numerics.kl_divergence(numerics.log_softmax(t, T), numerics.log_softmax(s, T))
    divergence = numerics.per_example(T**2, divergence) * divergence
    return divergence / s.shape[-1] if mean_over_bins else divergence


@declare(
    lambda draw: (draw.maps(), draw.maps(), draw.boxes(4)),
    (*FEATURES, *DISTANCE),
    fixed=_fgd_arguments,
    kinds={"boxes": "other"},
    own="projection, two context blocks: `objectives.fgd`",
    needs="boxes",
)
def fgd(
    student_feature: ArrayLike,
    teacher_feature: ArrayLike,
    boxes: ArrayLike,
    student_context: Context,
    teacher_context: Context,
    *,
    image_shape: tuple[float, float],
    valid: ArrayLike | None = None,
    temperature: ArrayLike = 0.5,
    alpha: ArrayLike = 1e-3,
    beta: ArrayLike = 5e-4,
    gamma: ArrayLike = 1e-3,
    lambda_: ArrayLike = 5e-6,
) -> jax.Array:
    """Focal and global distillation for detectors: attended feature errors in and out of boxes, attention, context.

    alpha sum M_fg A_t D + beta sum M_bg A_t D + gamma (|S_s - S_t|_1 + |C_s - C_t|_1) + lambda ||R_s - R_t||^2

    D = (x_s - x_t)^2; S, C = attention over positions and channels (`fgd_attention`), A = S C; M (`fgd_masks`);
    R = `fgd_context`. Sums over the elements of an example.

    Args:
      student_feature: [B, H, W, C] floating, already projected to the teacher's channels.
      teacher_feature: [B, H, W, C] floating.
      boxes: [B, n, 4], (x1, y1, x2, y2) in pixels of the image.
      student_context: Parameters of the student's context block.
      teacher_context: Parameters of the teacher's context block, which is trained too.
      image_shape: (height, width) of the image in pixels.
      valid: [B, n] booleans, false for boxes that only pad, or None if there are none.
      temperature: T > 0 of the attention.
      alpha: Weight of the foreground; the defaults are the paper's for one-stage, anchor-based detectors.
      beta: Weight of the background.
      gamma: Weight of the attention.
      lambda_: Weight of the context.

    Returns:
      [B].

    Raises:
      ValueError: If the shapes do not fit together.

    Reference:
      Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022,
      https://arxiv.org/abs/2111.11837
    """
    s, t, corners = numerics.promote(student_feature, teacher_feature, boxes)
    numerics.check_same_shape(s, t, "features")
    keep = jnp.ones(corners.shape[:-1], bool) if valid is None else jnp.asarray(valid, bool)
    _check_boxes(s, corners, keep)
    (corners,) = numerics.masked(keep, corners)
    foreground, background = fgd_masks(corners, keep, map_shape=s.shape[1:3], image_shape=image_shape)
    (S_s, C_s), (S_t, C_t) = fgd_attention(s, temperature), fgd_attention(t, temperature)
    alpha, beta, gamma, lambda_ = (jnp.asarray(weight, s.dtype) for weight in (alpha, beta, gamma, lambda_))
    error = jnp.sum(jnp.square(s - t) * S_t[..., None] * C_t[:, None, None, :], axis=3)
    focal = alpha * _total(foreground * error) + beta * _total(background * error)
    apart = numerics.difference(S_s, S_t, axis=(1, 2)), numerics.difference(C_s, C_t)
    attention = gamma * sum(_total(jnp.abs(x)) for x in apart)
    context = lambda_ * _total(jnp.square(fgd_context(s, student_context) - fgd_context(t, teacher_context)))
    return focal + attention + context


def fgd_attention(x: jax.Array, temperature: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """FGD's attention of a map: over the positions, with sum H W, and over the channels, with sum C.

    S = H W softmax_hw( mean_c |x| / T ),  C = C softmax_c( mean_hw |x| / T )

    Args:
      x: [B, H, W, C] floating.
      temperature: T > 0.

    Returns:
      S [B, H, W] and C [B, C].
    """
    B, H, W, C = x.shape
    size = jnp.abs(x)
    positions = numerics.log_softmax(jnp.mean(size, axis=3).reshape(B, H * W), temperature)
    channels = numerics.log_softmax(jnp.mean(size, axis=(1, 2)), temperature)
    return H * W * jnp.exp(positions).reshape(B, H, W), C * jnp.exp(channels)


def fgd_masks(
    boxes: jax.Array, valid: jax.Array, *, map_shape: tuple[int, ...], image_shape: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """FGD's weights of the positions: one over the area of the smallest box there, and one over the background's size.

    A box covers columns floor(x1)..ceil(x2) and rows floor(y1)..ceil(y2) of the map, both ends included, as in the
    authors' code; its area counts cells beyond the border too.

    Args:
      boxes: [B, n, 4], (x1, y1, x2, y2) in pixels of the image.
      valid: [B, n] booleans.
      map_shape: (H, W).
      image_shape: (height, width) in pixels.

    Returns:
      Foreground and background, each [B, H, W] in the boxes' dtype.
    """
    (H, W), (height, width) = map_shape, image_shape
    left, right = jnp.floor(boxes[..., 0] / width * W), jnp.ceil(boxes[..., 2] / width * W)
    top, bottom = jnp.floor(boxes[..., 1] / height * H), jnp.ceil(boxes[..., 3] / height * H)

    def within(start: jax.Array, stop: jax.Array, length: int) -> jax.Array:
        cells = jnp.arange(length, dtype=boxes.dtype)[None, None]
        return (cells >= start[..., None]) & (cells <= stop[..., None])

    inside = within(top, bottom, H)[..., :, None] & within(left, right, W)[..., None, :] & valid[..., None, None]
    weight = 1 / ((bottom + 1 - top) * (right + 1 - left))
    foreground = jnp.max(jnp.where(inside, weight[..., None, None], 0), axis=1, initial=0)
    background = (foreground == 0).astype(boxes.dtype)
    return foreground, background / jnp.maximum(jnp.sum(background, axis=(1, 2), keepdims=True), 1)


def fgd_context(x: ArrayLike, block: Context) -> jax.Array:
    """FGD's global context block: adds to every position a small network's output for the attention-weighted mean.

    x + W_2 relu(LN(W_1 g + b_1)) + b_2,  g = sum_i softmax_i(<k, x_i> + b) x_i,  LN with eps = 1e-5

    Args:
      x: [B, H, W, C] floating.
      block: The block's parameters.

    Returns:
      [B, H, W, C].
    """
    x, k, b, w1, b1, scale, shift, w2, b2 = numerics.promote(x, *block)
    cells = _positions(x)
    attention = jax.nn.softmax(jnp.einsum("bpc,c->bp", cells, k, precision="highest") + b, axis=1)
    g = jnp.einsum("bp,bpc->bc", attention, cells, precision="highest")
    hidden = jnp.matmul(g, w1, precision="highest") + b1[None]
    centred = hidden - jnp.mean(hidden, axis=1, keepdims=True)
    hidden = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=1, keepdims=True) + 1e-5)
    hidden = jax.nn.relu(hidden * scale[None] + shift[None])
    return x + (jnp.matmul(hidden, w2, precision="highest") + b2[None])[:, None, None, :]


def _positions(x: jax.Array) -> jax.Array:
    """[B, ..., C] as [B, P, C]."""
    return x.reshape(len(x), -1, x.shape[-1])


def _class_cosines(x: jax.Array, members: jax.Array) -> jax.Array:
    """Cosine [B, P] of each position of x [B, P, C] with the mean of its class, from one-hot classes [B, P, K].

    It is 0 at a position of no class.
    """
    (x,) = numerics.masked(jnp.any(members > 0, axis=2), x)
    sums = jnp.einsum("bpk,bpc->bkc", members, x, precision="highest")
    means = sums / (jnp.sum(members, axis=1)[..., None] + 1e-6)
    centre = jnp.einsum("bpk,bkc->bpc", members, means, precision="highest")
    return jnp.sum(numerics.unit(x, floor=1e-8) * numerics.unit(centre, floor=1e-8), axis=2)


def _total(x: jax.Array) -> jax.Array:
    """Sum over all axes but the first."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _check_boxes(feature: jax.Array, boxes: jax.Array, valid: jax.Array) -> None:
    """Raises a sentence unless features, boxes and their validity fit together."""
    B = len(feature)
    if feature.ndim == 4 and boxes.ndim == 3 and boxes.shape[::2] == (B, 4) and valid.shape == boxes.shape[:2]:
        return
    raise ValueError(
        f"features have shape {feature.shape}, boxes {boxes.shape} and valid {valid.shape}: give [B, H, W, C], "
        "[B, n, 4] and [B, n] of the same B."
    )
