"""Terms of losses on logits that are never held: hidden states and last layers go in, a chunk of tokens at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.losses.chunked import chunked_loss
from jaxkd.objectives.terms import Loss, hold, last_layer, mean_over, pick, read_field
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables


def from_hidden(
    loss: Loss,
    *,
    student: str = "tokens",
    teacher: str = "tokens",
    label: str | None = None,
    where: str | None = None,
    chunk: int | None = None,
    **hyper: Any,
) -> Term:
    """Term of a loss between the student's and the teacher's logits over a vocabulary too large to hold them.

    Value and gradients are those of `from_logits(loss, where=where, **hyper)` up to rounding. Both models must say what
    their last layer is: `models.with_head(model)`. No part of the program may read the logits themselves, so evaluate
    accuracy and the like in a step of its own.

    Args:
      loss: (student_logits [N, K], teacher_logits [N, K], **hyper) -> [N]; with `label`, the labels [N] come third, so
        that one walk over the tokens may serve several losses: `lambda s, t, y, *, alpha: ...`. What it closes over
        must not be traced.
      student: Name of the student's hidden states [B, ..., D_s], on which its last layer works.
      teacher: Name of the teacher's [B, ..., D_t].
      label: Field of the batch with the labels, integers [B, ...]; none if None.
      where: Field of the batch with the weights of examples [B] or tokens [B, ...] (boolean or not); all of them count
        alike if None.
      chunk: As in `losses.chunked_kl`.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.

    Raises:
      ValueError: When the step is made, if a model has no such feature or tells no last layer, or shapes do not fit.
    """
    held = hold(hyper, loss)

    def init(key: jax.Array, s: Outputs, t: Outputs, batch: Batch) -> Variables:
        return Variables({}, {name: jnp.asarray(v) for name, v in held.arrays.items()})

    def apply(
        variables: Variables, s: Outputs, t: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        hidden = pick(s, student, "student"), pick(t, teacher, "teacher")
        heads = last_layer(s, "student"), last_layer(t, "teacher")
        numbers = held.resolve(variables.state, step)
        fixed = {n: v for n, v in numbers.items() if not isinstance(v, float | np.floating | np.ndarray | jax.Array)}
        numbers = {n: v for n, v in numbers.items() if n not in fixed}
        called = functools.partial(loss, **fixed)
        if label is not None:
            called = functools.partial(_with_labels, called)
            numbers["integers"] = read_field(batch, label)
        lead = jnp.zeros(hidden[0].shape[:-1])

        def mean(weight: Any) -> jax.Array:
            mask = None if weight is None else jnp.broadcast_to(weight, lead.shape)
            kernels, biases = ([head.get(part) for head in heads] for part in ("kernel", "bias"))
            return chunked_loss(
                called,
                *(*hidden, *kernels),
                mask=mask,
                student_bias=biases[0],
                teacher_bias=biases[1],
                chunk=chunk,
                **numbers,
            )

        return mean_over(lead, mean, batch, where), variables.state, {}

    return Term(init, apply)


def _with_labels(loss: Loss, s: jax.Array, t: jax.Array, *, integers: jax.Array, **hyper: Any) -> jax.Array:
    """The labels travel among the numbers, in float32, which holds every integer below 2^24."""
    return loss(s, t, integers.astype(jnp.int32), **hyper)
