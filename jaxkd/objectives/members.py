"""Terms of models that have members: of one as a network of its own; of teachers whose weights are trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.labels import check_labels
from jaxkd.objectives.paths import features_of
from jaxkd.objectives.terms import Loss, Result, stateful
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables


def of_member(term: Term, *, student: int | None = None, teacher: int | None = None) -> Term:
    """Term that sees one member of an ensemble as the whole student, or as the whole teacher.

    Several different students of one teacher in one step, so that the teacher is computed once:
    `weighted(small=of_member(term, student=0), wide=of_member(term, student=1))` with `models.ensemble(small, wide)` as
    the student. Their params are apart, so each is trained as it would be alone, unless the optimizer looks at all
    params together, as clipping by the norm of all gradients does.

    Args:
      term: A term of one student and one teacher.
      student: Number of the student among the members of `models.ensemble` or `models.stacked`; None if it is no such.
      teacher: Number of the teacher likewise.

    Returns:
      A term with the same variables.

    Raises:
      ValueError: By the term, if there is no such member.
    """

    def seen(s: Outputs, t: Outputs) -> tuple[Outputs, Outputs]:
        return _member(s, student, "student"), _member(t, teacher, "teacher")

    def init(key: jax.Array, s: Outputs, t: Outputs, batch: Batch) -> Variables:
        return term.init(key, *seen(s, t), batch)

    def apply(
        variables: Variables, s: Outputs, t: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, Any]:
        return term.apply(variables, *seen(s, t), batch, key, step)

    return Term(init, apply, term.couples)


def _member(outputs: Outputs, number: int | None, whose: str) -> Outputs:
    """Outputs of one member of an ensemble."""
    if number is None:
        return outputs
    prefix = f"{number}/"
    own = {name.removeprefix(prefix): x for name, x in outputs.features.items() if name.startswith(prefix)}
    if "logits" not in own:
        known = ", ".join(name for name in outputs.features if name.endswith("/logits")) or "no member"
        raise ValueError(
            f"the {whose} has no member {number}: it has {known}; make it by models.ensemble or models.stacked."
        )
    return Outputs(own.pop("logits"), own)


def learned_teachers(
    loss: Loss, *, members: int, gate: str | None = None, label: str = "label", where: str | None = None, **hyper: Any
) -> Term:
    """Distillation from several teachers whose weights are trained with the student.

    sum_m w_m loss(z_s, z_m) - log sum_m w_m p_m(y),  w = softmax(b), or softmax(f W + b) of a feature f of the example

    The second part alone trains the weights: it is the likelihood of the labels under the teachers' mixture. Trained by
    the first part they would go to the teacher that is easiest to copy, such as one that always says the same. No
    gradient passes from it into the student. Teachers that fit their training labels without error all look alike
    there: `where` may keep the second part to examples that they were not trained on.

    Args:
      loss: (student_logits [B, ..., K], teacher_logits [B, ..., K], **hyper) -> [B, ...].
      members: M, the number of teachers, members of `models.ensemble` or `models.stacked`.
      gate: Path of a feature [B, ..., D], such as "student.pooled" or "teacher.0/pooled", from which a linear layer
        computes the weights of each example; None for weights that all examples share.
      label: Field of the batch that holds the labels, integers [B, ...].
      where: Field of the batch [B] that says which examples train the weights (boolean); all of them if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term whose params are `bias` [M] and, with a gate, `kernel` [D, M]; both start at 0, which are equal weights. It
      reports the mean weight of each teacher as `weight0`, `weight1`, ...

    Raises:
      ValueError: If there is no teacher, or by the term, if the loss couples the batch or the gate's feature does not
        fit.
    """
    _check_members(members)
    paths: list[Any] = ["student.logits", features_of("teacher", [f"{m}/logits" for m in range(members)])]
    further = [f"batch.{label}", *([gate] if gate else []), *([f"batch.{where}"] if where else [])]

    def init(key: jax.Array, s: Any, t: Any, y: Any, *rest: Any) -> Variables:
        bias = {"bias": jnp.zeros(members)}
        if not gate:
            return Variables(bias, {})
        feature = rest[0]
        if feature.shape[:-1] != s.shape[:-1]:
            raise ValueError(
                f"the gate's feature {gate!r} has shape {feature.shape} but logits have shape {s.shape}: name one with "
                "a vector for each row of logits, such as student.pooled."
            )
        return Variables({"kernel": jnp.zeros((feature.shape[-1], members)), **bias}, {})

    def call(
        variables: Variables, key: jax.Array, s: jax.Array, teachers: list[jax.Array], y: Any, *rest: Any, **hyper: Any
    ) -> Result:
        z = jnp.stack(numerics.promote(*teachers))
        scores = jnp.broadcast_to(variables.params["bias"], (*z.shape[1:-1], members))
        if gate:
            scores = scores + jax.lax.stop_gradient(rest[0]) @ variables.params["kernel"]
        log_w = jnp.moveaxis(numerics.log_softmax(scores), -1, 0)
        w = jax.lax.stop_gradient(jnp.exp(log_w))
        each = [loss(s, teacher, **hyper) for teacher in teachers]
        if each[0].shape != w[0].shape:
            raise ValueError(
                f"the loss gives values of shape {each[0].shape} for {members} teachers whose weights have shape "
                f"{w[0].shape}: use one that gives a value for each row of logits."
            )
        taken = _counts(rest[-1], w[0]) if where else None
        labels = check_labels(z[0], y if taken is None else jnp.where(taken, y, 0))
        log_p = numerics.log_softmax(z)
        log_own = jnp.stack([numerics.pick(log_p[m], labels.values) for m in range(members)])
        likelihood = labels.mark(jax.nn.logsumexp(log_w + log_own, axis=0))
        likelihood = likelihood if taken is None else jnp.where(taken, likelihood, 0)
        values = sum(w[m].astype(x.dtype) * x for m, x in enumerate(each)) - likelihood
        return values, {}, {f"weight{m}": jnp.mean(w[m]) for m in range(members)}

    return stateful(call, *paths, *further, init=init, hyper_of=loss, **hyper)


def _counts(where: jax.Array, like: jax.Array) -> jax.Array:
    """Booleans of the shape of `like`, true where an example trains the weights."""
    return jnp.broadcast_to(numerics.per_example(jnp.asarray(where).astype(bool), like), like.shape)


def _check_members(members: int) -> None:
    """Refuses a number of teachers below one."""
    if members < 1:
        raise ValueError(f"members is {members}: give the number of teachers, at least 1.")
