"""Terms of the methods on vectors whose loss comes with a head or a projector of its own: USKD, SRD."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses, numerics
from jaxkd.objectives.projections import linear
from jaxkd.objectives.terms import trained
from jaxkd.types import PyTree, Term


def uskd(*, feature: str, label: str = "label", **hyper: Any) -> Term:
    """Term of USKD: a linear head on a pooled intermediate feature gives the weak logits; couples the batch.

    Args:
      feature: Name of the student's feature, [B, C] or a map [B, H, W, C] that is averaged over its positions.
      label: Field of the batch with the labels, integers.
      **hyper: Hyper-parameters of `losses.uskd`.

    Returns:
      A term whose parameters are the head's; it needs no teacher.
    """
    head = linear()

    def init(key: jax.Array, logits: Any, x: Any, labels: Any) -> PyTree:
        return head.init(key, (*logits.shape[:-1], x.shape[-1]), logits.shape)

    def call(params: PyTree, logits: jax.Array, x: jax.Array, labels: jax.Array, **hyper: Any) -> jax.Array:
        (x,) = numerics.promote(x)
        weak = head.apply(params, jnp.mean(x, axis=tuple(range(1, x.ndim - 1))))
        return losses.uskd(logits, weak, labels, **hyper)

    paths = ("student.logits", f"student.{feature}", f"batch.{label}")
    return trained(call, *paths, init=init, hyper_of=losses.uskd, **hyper)


def srd(*, student: str, teacher: str, **hyper: Any) -> Term:
    """Term of the simple recipe: a linear projector, batch norms without scales on both sides; couples the batch.

    Args:
      student: Name of the student's feature [B, Ds].
      teacher: Name of the teacher's feature [B, Dt].
      **hyper: Hyper-parameters of `losses.srd`.

    Returns:
      A term whose parameters are the projector's.
    """
    project = linear()

    def normalized(x: jax.Array) -> jax.Array:
        (x,) = numerics.promote(x)
        width = x.shape[-1:]
        return numerics.batch_norm(x, jnp.ones(width, x.dtype), jnp.zeros(width, x.dtype), epsilon=1e-4)

    def init(key: jax.Array, s: Any, t: Any, *logits: Any) -> PyTree:
        return project.init(key, s.shape, t.shape)

    def call(params: PyTree, s: jax.Array, t: jax.Array, *logits: jax.Array, **hyper: Any) -> jax.Array:
        return losses.srd(normalized(project.apply(params, s)), normalized(t), *logits, **hyper)

    paths = (f"student.{student}", f"teacher.{teacher}", "student.logits", "teacher.logits")
    return trained(call, *paths, init=init, hyper_of=losses.srd, **hyper)
