"""Terms with a memory in their state: CRD's banks of embeddings, and InfoNCE's queue."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import losses
from jaxkd.losses import contrastive
from jaxkd.objectives.projections import linear
from jaxkd.objectives.terms import Result, stateful
from jaxkd.types import PyTree, Term, Variables


def crd(
    *,
    student: str,
    teacher: str,
    examples: int,
    labels: ArrayLike | None = None,
    width: int = 128,
    negatives: int = 16384,
    momentum: float = 0.5,
    temperature: float = 0.07,
    index: str = "id",
    where: str | None = None,
) -> Term:
    """Term of CRD: linear embeddings of both sides, both trained, against banks of all examples' embeddings.

    Args:
      student: Name of the student's feature [B, Ds].
      teacher: Name of the teacher's feature [B, Dt].
      examples: N, the number of examples of the data set.
      labels: [N] classes of all examples, so that negatives come from other classes only, as in the paper's results;
        any other example is a negative if None.
      width: D of the embeddings.
      negatives: K for each example, drawn anew in each step.
      momentum: Weight of the banks' old rows.
      temperature: T.
      index: Field of the batch with each example's row, integers in 0..N-1.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.

    Returns:
      A term with parameters `student` and `teacher` and the state `bank`.

    Raises:
      ValueError: If the labels are not those of N examples, or all of one class.
    """
    order = None if labels is None else _other_classes(np.asarray(labels), examples)

    def init(key: jax.Array, s: Any, t: Any, own: Any) -> Variables:
        params, kb = _embeddings(key, width, s, t)
        state = {"bank": contrastive.crd_init(kb, examples=examples, width=width)}
        return Variables(params, state if order is None else {**state, "classes": jax.tree.map(jnp.asarray, order)})

    def call(
        variables: Variables,
        key: jax.Array,
        s: jax.Array,
        t: jax.Array,
        own: jax.Array,
        *,
        temperature: ArrayLike = 0.07,
        momentum: ArrayLike = 0.5,
    ) -> Result:
        params, state = variables
        s, t = _embedded(params, s, t)
        if order is None:
            rows = contrastive.crd_indices(key, own, examples=examples, negatives=negatives)
        else:
            rows = negatives_of_other_classes(key, own, state["classes"], examples, negatives)
        values = losses.crd(s, t, rows, state["bank"], temperature=temperature)
        kept = jax.lax.stop_gradient((s, t))
        bank = contrastive.crd_update(state["bank"], *kept, rows, momentum=momentum, temperature=temperature)
        return values, {"bank": bank}, {}

    paths = (f"student.{student}", f"teacher.{teacher}", f"batch.{index}")
    numbers: dict[str, Any] = {"temperature": temperature, "momentum": momentum}
    return stateful(call, *paths, init=init, where=where, couples=True, **numbers)


def info_nce_queue(
    *, student: str, teacher: str, size: int = 4096, width: int = 128, where: str | None = None, **hyper: Any
) -> Term:
    """Term of InfoNCE with a queue of the teacher's latest embeddings; both sides are embedded linearly and trained.

    Args:
      student: Name of the student's feature [B, Ds].
      teacher: Name of the teacher's feature [B, Dt].
      size: Q, at least the batch size.
      width: D of the embeddings.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.info_nce_queue`.

    Returns:
      A term with parameters `student` and `teacher` and the state `queue`.
    """

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        if size < len(s):
            raise ValueError(f"the queue holds {size} embeddings but a batch has {len(s)}: make it at least as large.")
        params, kq = _embeddings(key, width, s, t)
        return Variables(params, {"queue": contrastive.queue_init(kq, size=size, width=width)})

    def call(variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, **hyper: Any) -> Result:
        params, state = variables
        s, t = _embedded(params, s, t)
        values = losses.info_nce_queue(s, t, state["queue"], **hyper)
        return values, {"queue": contrastive.queue_push(state["queue"], jax.lax.stop_gradient(t))}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, hyper_of=losses.info_nce_queue, where=where, couples=True, **hyper)


def _embeddings(key: jax.Array, width: int, s: Any, t: Any) -> tuple[PyTree, jax.Array]:
    """Parameters of both sides' linear embeddings, and a key for the memory."""
    ks, kt, rest = jax.random.split(key, 3)
    project = linear(width=width)
    return {"student": project.init(ks, s.shape, t.shape), "teacher": project.init(kt, t.shape, s.shape)}, rest


def _embedded(params: PyTree, s: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return linear().apply(params["student"], s), linear().apply(params["teacher"], t)


def _other_classes(labels: np.ndarray, examples: int) -> PyTree:
    """Examples ordered by class, and for each example the begin and the size of its class in that order."""
    if labels.shape != (examples,):
        raise ValueError(f"labels have shape {labels.shape} but there are {examples} examples: give one for each.")
    order = np.argsort(labels, kind="stable")
    _, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    if count.max() == examples:
        raise ValueError("all examples are of one class, so there is no negative from another: leave `labels` out.")
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    pieces = {"order": order, "start": start[inverse], "count": count[inverse]}
    return {name: a.astype(np.int32) for name, a in pieces.items()}


def negatives_of_other_classes(
    key: jax.Array, own: jax.Array, classes: PyTree, examples: int, negatives: int
) -> jax.Array:
    """Rows as `contrastive.crd_indices` gives them, with negatives drawn evenly from the examples of other classes."""
    start, count = classes["start"][own][:, None], classes["count"][own][:, None]
    place = jax.random.randint(key, (len(own), negatives), 0, examples - count, jnp.int32)
    place = jnp.where(place < start, place, place + count)
    return jnp.concatenate([own[:, None].astype(jnp.int32), classes["order"][place]], axis=1)
