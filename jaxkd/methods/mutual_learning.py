"""Deep mutual learning: a cohort of networks without a teacher, each of which distils its peers.

The members are those of one model, `models.stacked` (one architecture, under one `vmap`) or `models.ensemble` (of any
architectures), so that the cohort is one student: steps, phases, seeds, devices and checkpoints treat it as any other.

    term = mutual_learning.mutual(objectives.from_labels(losses.cross_entropy), objectives.from_logits(losses.kd), 4)
    state = train_phase(..., student=models.stacked(network, 4), objective=(term, optax.adam(1e-3)))
    network.apply(mutual_learning.member(variables_of(state), 0), batch, None, False)

In evaluation the cohort's own logits are the ensemble's. A cohort of one is plain training.

The value is the sum over the members, so that each has the gradient, and with AdamW or SGD the updates, that it has
alone. What reads several parameters at once, such as clipping by the global norm (the flag `--clip` too) or LARS, reads
those of all members: `per_member` gives each its own.

Reference:
  Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, https://arxiv.org/abs/1706.00384
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import objectives
from jaxkd.objectives.hyper import Number
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables, as_variables


def mutual(label: Term, peer: Term, members: int, *, weight: Number = 1.0) -> Term:
    """Sum of all members' objectives: the labels, and the mean over the peers of what the member learns from each.

    sum_i [ label(z_i, y) + w / (M - 1) sum_{j != i} peer(z_i, stop_gradient(z_j)) ]

    A member's objective moves that member alone: its peers are constants in it. The paper has w = 1 and the KL at
    temperature 1.

    Args:
      label: Term between a member and the batch, such as that of `objectives.from_labels`.
      peer: Term with a member as the student and a peer as the teacher, of logits or of features.
      members: M, the number of members of the student.
      weight: w, a float, an array or a schedule of the step; 0 trains M networks that know nothing of each other.

    Returns:
      A term for students made by `models.stacked` or `models.ensemble` of M members. It reports `label` and `peers`,
      the means over members and over pairs.

    Raises:
      ValueError: If there is no member; by the term, if the student has another number of members.

    Reference:
      Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, https://arxiv.org/abs/1706.00384
    """
    if members < 1:
        raise ValueError(f"a cohort of {members} members cannot be: give at least one.")
    share: Number = (lambda step: weight(step) / (members - 1)) if callable(weight) else weight / max(members - 1, 1)
    labels = {f"label{i}": _seen_by(label, members, i) for i in range(members)}
    pairs = {
        f"member{i}_peer{j}": (share, _seen_by(peer, members, i, j))
        for i in range(members)
        for j in range(members)
        if i != j
    }
    whole = objectives.weighted(**labels, **pairs)

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        value, state, found = whole.apply(variables, student, teacher, batch, key, step)
        metrics = {"label": jnp.mean(jnp.stack([found[name] for name in labels]))}
        if pairs:
            metrics["peers"] = jnp.mean(jnp.stack([found[name] for name in pairs]))
        return value, state, metrics

    return Term(whole.init, apply, whole.couples)


def _seen_by(term: Term, members: int, i: int, peer: int | None = None) -> Term:
    """A term whose student is member i, and whose teacher is a peer of it, as a constant, or the step's own."""

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        known = teacher if peer is None else _member_outputs(student, members, peer)
        return term.init(key, _member_outputs(student, members, i), known, batch)

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, Any]:
        known = teacher if peer is None else jax.lax.stop_gradient(_member_outputs(student, members, peer))
        return term.apply(variables, _member_outputs(student, members, i), known, batch, key, step)

    return Term(init, apply, term.couples)


def _member_outputs(student: Outputs, members: int, i: int) -> Outputs:
    """Outputs of one member of a cohort."""
    count = sum(name.count("/") == 1 and name.endswith("/logits") for name in student.features)
    if count != members:
        raise ValueError(
            f"the student has {count} members but the objective is of a cohort of {members}: make the student by "
            f"models.stacked(network, {members}) or models.ensemble(...)."
        )
    prefix = f"{i}/"
    own = {name.removeprefix(prefix): x for name, x in student.features.items() if name.startswith(prefix)}
    return Outputs(own.pop("logits"), own)


def per_member(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Optimizer of a stacked cohort that treats each member as if it were alone, such as one that clips by global norm.

    Args:
      optimizer: The optax transformation of one member. One that reads the loss does not get it.

    Returns:
      An optax transformation of {"student": [M, ...], "term": ...} params, for a student made by `models.stacked`; the
      term has the optimizer to itself. For `models.ensemble`, `train.optimizers.by_path` does the same.
    """
    each = optax.GradientTransformation(jax.vmap(optimizer.init), jax.vmap(optimizer.update))
    transforms = {"student": each, "term": optimizer}

    def init(params: PyTree) -> PyTree:
        return {name: transforms[name].init(params[name]) for name in transforms}

    def update(grads: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise ValueError("per_member needs the params: call update(grads, state, params), as steps do.")
        moved = {name: transforms[name].update(grads[name], state[name], params[name]) for name in transforms}
        return {name: pair[0] for name, pair in moved.items()}, {name: pair[1] for name, pair in moved.items()}

    return optax.GradientTransformation(init, update)


def member(variables: Variables, index: int, *, stacked: bool = True) -> Variables:
    """Variables of one member of a cohort, a plain network from then on.

    Args:
      variables: The cohort's.
      index: The member's number, from 0.
      stacked: Whether the cohort was made by `models.stacked`; False for `models.ensemble`.

    Returns:
      The member's variables.

    Raises:
      ValueError: If there is no such member.
    """
    params, state = as_variables(variables)
    if stacked:
        counts = {jnp.shape(x)[:1] for x in jax.tree.leaves((params, state))}
        known = next(iter(counts))[0] if len(counts) == 1 and () not in counts else 0
    else:
        known = len(params) if isinstance(params, dict) and str(len(params) - 1) in params else 0
    if not 0 <= index < known:
        raise ValueError(
            f"member {index} was asked for, but the variables are those of {known} members: give 0..M-1 of a cohort, "
            "and stacked=False for one of models.ensemble."
        )
    if stacked:
        return jax.tree.map(lambda x: x[index], Variables(params, state))
    return Variables(params[str(index)], state[str(index)])
