"""Terms of the methods on vectors and tokens whose loss comes with a head or a projector of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses, numerics
from jaxkd.objectives.projections import linear
from jaxkd.objectives.terms import features_of, from_features, last_layer, pick, trained
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables


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


def cat_kd(*, student: str = "last", teacher: str = "last", where: str | None = None, **hyper: Any) -> Term:
    """Term of CAT-KD: the class activation maps that each side's last layer makes of its last map.

    cat_kd(F_s W_s, F_t W_t)

    Both models must say what their last layer is: `models.with_head(model)`.

    Args:
      student: Name of the student's last map [B, H, W, Cs], whose mean its last layer reads.
      teacher: Name of the teacher's, [B, H', W', Ct].
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.cat_kd`.

    Returns:
      A term without parameters.

    Raises:
      ValueError: When the step is made, if a model has no such feature or tells no last layer.
    """
    term = from_features(losses.cat_kd, student="maps", teacher="maps", where=where, **hyper)

    def maps(side: Outputs, name: str, whose: str) -> Outputs:
        kernel = last_layer(side, whose)["kernel"]
        return Outputs(side.logits, {"maps": pick(side, name, whose) @ kernel})

    def both(s: Outputs, t: Outputs) -> tuple[Outputs, Outputs]:
        return maps(s, student, "student"), maps(t, teacher, "teacher")

    def init(key: jax.Array, s: Outputs, t: Outputs, batch: Batch) -> Variables:
        maps_s, maps_t = jax.eval_shape(both, s, t)
        return term.init(key, maps_s, maps_t, batch)

    def apply(
        variables: Variables, s: Outputs, t: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        value, state, metrics = term.apply(variables, *both(s, t), batch, key, step)
        return value, state, dict(metrics)

    return Term(init, apply)


def tinybert(
    *,
    student_attention: Sequence[str],
    teacher_attention: Sequence[str],
    student_hidden: Sequence[str],
    teacher_hidden: Sequence[str],
    where: str | None = None,
) -> Term:
    """Term of TinyBERT: attention scores and hidden states of all layers, one linear map for all hidden states.

    Args:
      student_attention: Names of the scores [B, A, L, L] of the student's S layers, in order.
      teacher_attention: Names of the teacher's N layers', N a multiple of S.
      student_hidden: Names of the states [B, L, Ds], the embeddings first, S + 1 of them.
      teacher_hidden: Names of the teacher's [B, L, Dt], N + 1 of them.
      where: Field of the batch [B] with the examples' weights; all of them if None.

    Returns:
      A term whose parameters are the map's.
    """
    project = linear()

    def init(key: jax.Array, a_s: Any, a_t: Any, h_s: Any, h_t: Any) -> PyTree:
        return project.init(key, h_s[0].shape, h_t[0].shape)

    def call(params: PyTree, a_s: Any, a_t: Any, h_s: Any, h_t: Any) -> jax.Array:
        attention = jnp.stack(a_s, axis=1), jnp.stack(a_t, axis=1)
        hidden = project.apply(params, jnp.stack(h_s, axis=1)), jnp.stack(h_t, axis=1)
        return losses.tinybert(*attention, *hidden)

    students = (features_of("student", student_attention), features_of("student", student_hidden))
    teachers = (features_of("teacher", teacher_attention), features_of("teacher", teacher_hidden))
    return trained(call, students[0], teachers[0], students[1], teachers[1], init=init, where=where)
