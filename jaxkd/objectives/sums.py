"""Sums of terms: what all of them share, and the sum whose weights are numbers or schedules."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import numerics
from jaxkd.objectives.terms import Number, as_number, hold
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables


def weighted(**terms: Term | tuple[Number, Term]) -> Term:
    """Weighted sum of terms; reports each raw value under its name and each weighted one under `<name>_weighted`.

    sum_i w_i(step) * term_i

    Args:
      **terms: Name -> term (weight 1) or (weight, term); a weight is a float, an array or a schedule of the step.

    Returns:
      A term whose params and state are keyed by the names; the weights stand in `state["weights"]`.

    Raises:
      ValueError: If there is no term, one is called "weights", or a weight is not one number.
    """
    if not terms or "weights" in terms:
        raise ValueError('weighted() needs at least one term, none of them called "weights": name each after its loss.')
    pairs = {name: t if not isinstance(t, Term) else (1.0, t) for name, t in terms.items()}
    for name, (weight, _) in pairs.items():
        if not callable(weight) and np.shape(weight):
            raise ValueError(f"the weight of {name!r} has shape {np.shape(weight)}: give one number or a schedule.")
    held = hold({n: w if callable(w) else as_number(w) for n, (w, _) in pairs.items()})

    terms_alone = {name: term for name, (_, term) in pairs.items()}

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        params, state = init_each(terms_alone, key, student, teacher, batch)
        return Variables(params, {"weights": {name: jnp.asarray(v) for name, v in held.arrays.items()}, **state})

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        raws, state, metrics = apply_each(terms_alone, variables, student, teacher, batch, key, step)
        weights, total = held.resolve(variables.state["weights"], step), jnp.zeros(())
        for name, raw in raws.items():
            share = jnp.asarray(weights[name], raw.dtype) * raw
            total = total.astype(raw.dtype) + share
            metrics |= {name: raw, f"{name}_weighted": share}
        return total, {"weights": variables.state["weights"], **state}, metrics

    return Term(init, apply, any(term.couples for term in terms_alone.values()))


def init_each(terms: Mapping[str, Term], key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
    """Variables of several terms, by name, each with randomness of its own.

    Args:
      terms: Name -> term.
      key: Typed PRNG key.
      student: Abstract outputs.
      teacher: Abstract outputs.
      batch: Abstract batch.

    Returns:
      Params and state, both name -> what that term has.
    """
    owned = {n: t.init(numerics.fold_name(key, n), student, teacher, batch) for n, t in terms.items()}
    return Variables({n: v.params for n, v in owned.items()}, {n: v.state for n, v in owned.items()})


def apply_each(
    terms: Mapping[str, Term],
    variables: Variables,
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, PyTree], dict[str, jax.Array]]:
    """Values of several terms, as a sum of them needs.

    Args:
      terms: Name -> term.
      variables: Params and state by name, as `init_each` makes them; they may hold other names too.
      student: The student's outputs.
      teacher: The teacher's outputs.
      batch: The batch.
      key: Typed PRNG key of the step.
      step: Number of the step.

    Returns:
      Name -> value, name -> new state, and the terms' own metrics under `<name>/<metric>`.
    """
    raws, state = {}, {}
    metrics: dict[str, jax.Array] = {}
    for name, term in terms.items():
        owned = Variables(variables.params[name], variables.state[name])
        own_key = numerics.fold_name(key, name)
        raws[name], state[name], inner = term.apply(owned, student, teacher, batch, own_key, step)
        metrics |= {f"{name}/{k}": v for k, v in inner.items()}
    return raws, state, metrics
