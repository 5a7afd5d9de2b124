"""Terms of object detectors (`models.detector`): of labelled boxes, and of a teacher's predictions, head and neck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses, numerics
from jaxkd.models.detection.detector import apply_head, locations
from jaxkd.models.detection.targets import assign
from jaxkd.objectives.projections import linear
from jaxkd.objectives.terms import Result, from_outputs, stateful, trained
from jaxkd.types import PyTree, Term, Variables

_PREDICTIONS = ("logits", "found_boxes")


def labelled_boxes(
    *,
    image_shape: tuple[int, int],
    strides: Sequence[int],
    boxes: str = "boxes",
    label: str = "label",
    crowd: str = "crowd",
    box_weight: float = 1.0,
    bins_weight: float = 0.25,
) -> Term:
    """Term of a detector and labelled boxes: focal loss, generalised IoU, distribution focal loss, and centre-ness.

    (1 / N) sum_i focal_i + (1 / N) sum_(i positive) w_b giou_i + w_d mean_edges dfl_i + bce(centre-ness_i)

    N is the number of positive locations of the example, at least 1; FCOS takes that of the batch.

    Args:
      image_shape: (height, width) of the image in pixels.
      strides: Strides of the detector.
      boxes: Field of the batch with the boxes, [B, M, 4] in pixels.
      label: Field with their classes, int [B, M], -1 where there is no box.
      crowd: Field bool [B, M] of boxes that stand for several objects.
      box_weight: w_b.
      bins_weight: w_d.

    Returns:
      A term without parameters.

    Reference:
      Tian, Shen, Chen, He, "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019,
      https://arxiv.org/abs/1904.01355
    """

    def call(
        logits: jax.Array,
        found: jax.Array,
        bins: jax.Array,
        centre: jax.Array,
        corners: jax.Array,
        classes: jax.Array,
        crowds: jax.Array,
    ) -> jax.Array:
        target = assign(corners, classes, image_shape=image_shape, strides=strides, crowd=crowds)
        positive = target.label >= 0
        answers = jax.nn.one_hot(target.label, logits.shape[-1], dtype=logits.dtype)
        by_class = jnp.where(target.ignored, 0, losses.focal(logits, answers))
        scale = _stride_of(image_shape, strides, logits.dtype)
        bin_of = target.distances / scale[None, :, None] + 1
        edges = jnp.mean(losses.distribution_focal(bins, bin_of), axis=-1)
        central = losses.binary_cross_entropy(centre[..., None], target.centerness[..., None])
        by_box = box_weight * losses.giou(found, target.boxes) + bins_weight * edges + central
        total = jnp.sum(by_class + jnp.where(positive, by_box, 0), axis=1)
        return total / jnp.maximum(jnp.sum(positive, axis=1), 1).astype(total.dtype)

    features = [f"student.{name}" for name in ("logits", "found_boxes", "bins", "centerness")]
    return from_outputs(call, *features, *(f"batch.{name}" for name in (boxes, label, crowd)))


def _stride_of(image_shape: tuple[int, int], strides: Sequence[int], dtype: Any) -> jax.Array:
    """Stride of each location [P]."""
    return jnp.asarray(locations([(image_shape[0] // s, image_shape[1] // s) for s in strides], strides)[1], dtype)


def predictions(*, box_weight: float = 1.0) -> Term:
    """Term of prediction mimicking: the teacher's probabilities and boxes at each location, where it sees objects.

    (1 / max(1, sum_i w_i)) sum_i |p_t - p_s| bce(p_s, p_t) + w_b w_i giou(b_s, b_t),  w_i = max_k p_t,ik

    Args:
      box_weight: w_b.

    Returns:
      A term without parameters, for two detectors of the same strides and classes.

    Reference:
      Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024,
      https://arxiv.org/abs/2306.11369
    """

    def call(s: jax.Array, s_boxes: jax.Array, t: jax.Array, t_boxes: jax.Array) -> jax.Array:
        return _mimicking(s, s_boxes, t, t_boxes, box_weight)

    return from_outputs(call, *(f"{side}.{name}" for side in ("student", "teacher") for name in _PREDICTIONS))


def cross_head(head: PyTree, *, strides: Sequence[int], box_weight: float = 1.0) -> Term:
    """Term of CrossKD: the student's head features go through the rest of the teacher's head, which has to agree.

    As `predictions`, between the teacher's own predictions and those of its head for the student's features, projected
    to the head's width by a trained 1x1 convolution. (The authors' pairs have heads of one width, and they bring the
    features to the teacher's statistics instead.) The student's own predictions follow the labels alone.

    Args:
      head: The teacher's head, `params["head"]` of its variables; it is not trained.
      strides: Strides of both detectors.
      box_weight: Weight of the boxes.

    Returns:
      A term whose parameters are the projections and whose state holds the head.

    Reference:
      Wang et al., "CrossKD: Cross-Head Knowledge Distillation for Object Detection", CVPR 2024,
      https://arxiv.org/abs/2306.11369
    """
    levels = range(len(strides))
    width = head["class_out"]["kernel"].shape[-2]
    align = linear(width=width)

    def init(key: jax.Array, classes: Sequence[Any], boxes: Sequence[Any], *teacher: Any) -> Variables:
        keys = jax.random.split(key)
        sides = zip(("class", "box"), keys, (classes, boxes), strict=True)
        params = {side: align.init(k, tuple(x[0].shape), tuple(x[0].shape)) for side, k, x in sides}
        return Variables(params, {"head": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), head)})

    def call(
        variables: Variables,
        key: jax.Array,
        classes: Sequence[jax.Array],
        boxes: Sequence[jax.Array],
        t: jax.Array,
        t_boxes: jax.Array,
        *,
        box_weight: jax.Array,
    ) -> Result:
        p, state = variables
        moved = [[align.apply(p[side], x) for x in maps] for side, maps in (("class", classes), ("box", boxes))]
        crossed = apply_head(state["head"], moved[0], moved[1], strides)
        return _mimicking(crossed.logits, crossed.features["found_boxes"], t, t_boxes, box_weight), {}, {}

    towers = [[f"student.{side}_tower{level}" for level in levels] for side in ("class", "box")]
    teacher = [f"teacher.{name}" for name in _PREDICTIONS]
    return stateful(call, *towers, *teacher, init=init, box_weight=box_weight)


def _mimicking(s: jax.Array, s_boxes: jax.Array, t: jax.Array, t_boxes: jax.Array, box_weight: Any) -> jax.Array:
    """Distance of predictions, [B]: see `predictions`."""
    p = jax.nn.sigmoid(t)
    w = jnp.max(p, axis=-1)
    each = losses.quality_focal(s, p, beta=1.0) + jnp.asarray(box_weight, w.dtype) * w * losses.giou(s_boxes, t_boxes)
    return jnp.sum(each, axis=1) / jnp.maximum(jnp.sum(w, axis=1), 1)


def edge_distributions(*, temperature: float = 10.0) -> Term:
    """Term of localization distillation: the distributions over each edge's distance, where the teacher sees objects.

    sum_i w_i mean_edges ld_i / sum_i w_i,  w_i = max_k p_t,ik

    The paper takes locations near labelled boxes instead of these weights.

    Args:
      temperature: T > 0.

    Returns:
      A term without parameters, for two detectors of the same strides and bins.

    Reference:
      Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022, https://arxiv.org/abs/2102.12252
    """

    def call(s: jax.Array, t: jax.Array, logits: jax.Array, *, temperature: jax.Array) -> jax.Array:
        w = jnp.max(jax.nn.sigmoid(logits), axis=-1)
        each = jnp.mean(losses.ld(s, t, temperature=temperature), axis=-1)
        return jax.vmap(numerics.masked_mean)(each, w)

    return from_outputs(call, "student.bins", "teacher.bins", "teacher.logits", temperature=temperature)


def score_weighted_neck(level: int, *, first: int) -> Term:
    """Term of score-weighted neck distillation on one map of the neck (`losses.score_weighted`).

    Args:
      level: Number of the map.
      first: Number of the first location of this map among those of all maps.

    Returns:
      A term whose parameters are a projection to the teacher's channels.
    """
    project = linear()

    def init(key: jax.Array, s: Any, t: Any, logits: Any) -> PyTree:
        return project.init(key, tuple(s.shape), tuple(t.shape))

    def call(params: PyTree, s: jax.Array, t: jax.Array, logits: jax.Array) -> jax.Array:
        B, H, W, _ = t.shape
        scores = jnp.max(jax.nn.sigmoid(logits[:, first : first + H * W]), axis=-1).reshape(B, H, W)
        return losses.score_weighted(project.apply(params, s), t, scores)

    return trained(call, f"student.neck{level}", f"teacher.neck{level}", "teacher.logits", init=init)
