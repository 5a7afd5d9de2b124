"""Softmax losses with a margin, which train embeddings: on angles between an embedding and a centre of each class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import check_labels
from jaxkd.testing import FEATURES, NON_NEGATIVE, SCALE_INVARIANT, declare

__all__ = ["margin_softmax"]


@declare(
    lambda draw: (draw.vectors(), draw.labels()),
    (*FEATURES, NON_NEGATIVE, SCALE_INVARIANT),
    fixed=lambda draw: {"centres": draw.normal(draw.sizes.classes, draw.sizes.width), "scale": 4.0},
    own="a centre for each class: `objectives.margin_softmax`",
    needs="identities as labels",
)
def margin_softmax(
    student_embedding: ArrayLike,
    labels: ArrayLike,
    centres: ArrayLike,
    *,
    scale: ArrayLike = 64.0,
    margin: ArrayLike = 0.5,
    cosine_margin: ArrayLike = 0.0,
    ignore: int | None = None,
) -> jax.Array:
    """ArcFace, and CosFace: cross-entropy of the cosines to the classes' centres, the own one made harder by a margin.

    -log( e^{s f(theta_y)} / (e^{s f(theta_y)} + sum_{k != y} e^{s cos theta_k}) ),  f(theta) = cos(theta + m) - c,
    theta_k the angle between the embedding and centre k

    ArcFace has c = 0, CosFace m = 0 and c = 0.35. Beyond theta = pi - m, where cos(theta + m) would rise again, f is
    cos(theta) - m sin(m) - c, as in the code of its authors. The sine of the angle is the length of what is left of the
    embedding without its part along the centre, so that nothing is infinite at angles of 0 and pi; an embedding of
    zeros has neither part.

    Args:
      student_embedding: [B, D] floating, of any length.
      labels: [B] integers in 0..K-1.
      centres: [K, D] floating, of any length.
      scale: s > 0.
      margin: m in [0, pi], an angle in radians.
      cosine_margin: c >= 0.
      ignore: Label that does not count, such as -1. None for none.

    Returns:
      [B] in nats; 0 where the label is ignored.

    Raises:
      ValueError: If the widths differ, or the labels are no integers [B].

    Reference:
      Deng, Guo, Xue, Zafeiriou, "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
      https://arxiv.org/abs/1801.07698; CosFace: https://arxiv.org/abs/1801.09414
    """
    x, w = numerics.promote(student_embedding, centres)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"embeddings have shape {x.shape} and centres {w.shape}: give [B, D] and [K, D] of one width.")
    y = check_labels(jnp.zeros((x.shape[0], w.shape[0]), x.dtype), labels, ignore)
    (x,) = y.select(x)
    x, w = numerics.unit(x), numerics.unit(w)
    cosines = jnp.einsum("bd,kd->bk", x, w, precision="highest")
    m, c, s = (jnp.asarray(number, x.dtype) for number in (margin, cosine_margin, scale))
    own = w[y.values]
    cosine = numerics.pick(cosines, y.values)
    sine = numerics.safe_norm(numerics.difference(x, cosine[:, None] * own), axis=-1)
    narrowed = jnp.where(cosine > -jnp.cos(m), cosine * jnp.cos(m) - sine * jnp.sin(m), cosine - m * jnp.sin(m))
    is_own = jnp.arange(w.shape[0])[None] == y.values[:, None]
    logits = s * jnp.where(is_own, (narrowed - c)[:, None], cosines)
    return y.mark(optax.softmax_cross_entropy_with_integer_labels(logits, y.values))
