"""Losses of CLIP-KD on the embeddings of two modalities; its third one, between affinities, is `clip_affinity`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.losses.contrastive import info_nce
from jaxkd.losses.embeddings import promoted_embeddings
from jaxkd.testing import BATCH_OF_ONE, COUPLED, FEATURES, NON_NEGATIVE, SCALE_INVARIANT, Draw, declare

__all__ = ["clip_features", "clip_interactive"]


def _four(draw: Draw) -> tuple[np.ndarray, ...]:
    """Embeddings of images and of texts, of both networks."""
    return draw.vectors(), draw.vectors(), draw.vectors(), draw.vectors()


@declare(_four, (*FEATURES, NON_NEGATIVE, SCALE_INVARIANT), needs="images and texts")
def clip_features(
    student_image: ArrayLike, student_text: ArrayLike, teacher_image: ArrayLike, teacher_text: ArrayLike
) -> jax.Array:
    """Feature mimicry of CLIP-KD: squared distances of both modalities' unit embeddings to the teacher's.

    ||u(s_image) - u(t_image)||^2 + ||u(s_text) - u(t_text)||^2,  u(x) = x / ||x||

    Args:
      student_image: [B, D] floating, already projected to the teacher's width.
      student_text: [B, D] floating.
      teacher_image: [B, D] floating.
      teacher_text: [B, D] floating.

    Returns:
      [B], in 0..8.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation", CVPR 2024,
      https://arxiv.org/abs/2307.12732
    """
    s_image, s_text, t_image, t_text = promoted_embeddings(student_image, student_text, teacher_image, teacher_text)

    def distance(s: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(numerics.unit(s) - numerics.unit(t)), axis=-1)

    return distance(s_image, t_image) + distance(s_text, t_text)


@declare(_four, (*COUPLED, BATCH_OF_ONE, NON_NEGATIVE, SCALE_INVARIANT), needs="images and texts")
def clip_interactive(
    student_image: ArrayLike,
    student_text: ArrayLike,
    teacher_image: ArrayLike,
    teacher_text: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
) -> jax.Array:
    """Interactive contrast of CLIP-KD: each student modality with the teacher's other one; couples the batch.

    ( info_nce(s_image, t_text) + info_nce(s_text, t_image) ) / 2

    Args:
      student_image: [B, D] floating, already projected to the teacher's width.
      student_text: [B, D] floating.
      teacher_image: [B, D] floating.
      teacher_text: [B, D] floating.
      temperature: T > 0.

    Returns:
      Scalar in nats; 0 for a batch of one.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation", CVPR 2024,
      https://arxiv.org/abs/2307.12732
    """
    s_image, s_text, t_image, t_text = promoted_embeddings(student_image, student_text, teacher_image, teacher_text)
    there = info_nce(s_image, t_text, temperature=temperature)
    back = info_nce(s_text, t_image, temperature=temperature)
    return (there + back) / 2
