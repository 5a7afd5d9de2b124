"""Terms that train embeddings on labels, and own a centre for each class."""

from __future__ import annotations

from typing import Any

import jax

from jaxkd import losses
from jaxkd.data.checks import is_whole
from jaxkd.objectives.ignored import ignoring_loss, without_label
from jaxkd.objectives.terms import Weigh, trained
from jaxkd.types import Batch, Metrics, Outputs, PyTree, Term, Variables


def margin_softmax(
    num_classes: int,
    *,
    feature: str = "logits",
    label: str = "label",
    where: str | None = None,
    ignore: int | None = None,
    weigh: Weigh | None = None,
    **hyper: Any,
) -> Term:
    """Term of `losses.margin_softmax`, whose centres are trained with the student.

    The student may be any classifier, whose "classes" are then the axes of its embedding.

    Args:
      num_classes: K.
      feature: Name of the student's embedding [B, D].
      label: Field of the batch that holds the labels, integers [B].
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      weigh: Function that gives a factor for each example's value; 1 if None.
      ignore: Label that does not count, such as -1, in the mean neither; none if None.
      **hyper: `scale`, `margin` and `cosine_margin`: numbers or schedules of the step.

    Returns:
      A term with the parameters `centres` [K, D], which are random directions at first.

    Raises:
      ValueError: If there are not at least two classes.
    """
    if not is_whole(num_classes) or num_classes < 2:
        raise ValueError(f"num_classes is {num_classes!r}: give an integer of at least 2.")

    bound = ignoring_loss(losses.margin_softmax, ignore)

    def init(key: jax.Array, embedding: Any, labels: Any) -> PyTree:
        return {"centres": jax.random.normal(key, (num_classes, embedding.shape[-1]))}

    def call(params: PyTree, embedding: jax.Array, labels: jax.Array, **numbers: Any) -> jax.Array:
        return bound(embedding, labels, params["centres"], **numbers)

    paths = f"student.{feature}", f"batch.{label}"
    term = trained(call, *paths, init=init, hyper_of=losses.margin_softmax, where=where, weigh=weigh, **hyper)
    if ignore is None:
        return term

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, Metrics]:
        return term.apply(variables, student, teacher, without_label(batch, label, ignore, 1, fill=False), key, step)

    return term._replace(apply=apply)
