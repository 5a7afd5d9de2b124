"""Dynamic weights: a term whose loss on held-out examples falls more slowly than the others' gets more weight.

    held_out = np.random.default_rng(0).uniform(size=train.size) < 0.1
    source = data.with_fields(train, held_out=held_out)
    term = dynamic_weights({"label": (0.1, label), "kd": (0.9, kd)})

Some rows of each batch are held out: they have no part in the gradient, only in the weights. The losses that are
remembered stand in the term's state, so runs resume exactly, and sweeps and several devices need nothing more.

Reference:
  Liu, Johns, Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, https://arxiv.org/abs/1803.10704,
  whose Dynamic Weight Average reads the training losses of the last two epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.keys import fold_name
from jaxkd.objectives.paths import read_field
from jaxkd.objectives.weighting import apply_each, init_each
from jaxkd.types import WHOLE, Batch, Outputs, PyTree, Term, Variables

_OWN = ("weights", "fast", "slow", "seen")


def dynamic_weights(
    terms: Mapping[str, tuple[float, Term]],
    *,
    held_out: str = "held_out",
    temperature: float = 1.0,
    memory: float = 0.98,
) -> Term:
    """Weighted sum of terms whose weights follow the terms' losses on the held-out rows of the batches.

    w_i = W b_i exp(r_i / T) / sum_j b_j exp(r_j / T),  r_i = fast_i / slow_i,  W = sum_j b_j

    slow_i and fast_i are averages of term i on the held-out rows, with decays `memory` and its square root's
    complement, 1 - sqrt(1 - memory). Where all losses move alike, the weights are the given ones.

    The student sees held-out rows as it sees the others, augmented and in training mode. Terms that couple the batch
    are refused, as they are under masks.

    Args:
      terms: Name -> (weight b_i, term); terms are losses of 0 or more.
      held_out: Field of the batch [B] that is true for held-out rows.
      temperature: T > 0; larger ones keep the weights nearer to the given ones.
      memory: Decay of the slow average, in [0, 1).

    Returns:
      A term that reports each raw value under its name, the weighted one under `<name>_weighted`, and under
      `<name>_weight` the weight. Micro-batches need `approximate=True`.

    Raises:
      ValueError: If there are fewer than two terms, a name is taken, or a number is outside its domain; when called,
        if the batch has no such field.
    """
    _check(terms, temperature, memory)
    alone = {name: term for name, (_, term) in terms.items()}
    given = {name: np.float32(weight) for name, (weight, _) in terms.items()}
    decays = {"slow": memory, "fast": 1 - (1 - memory) ** 0.5}

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        _field(batch, held_out)
        params, state = init_each(alone, key, student, teacher, batch)
        zeros = {name: jnp.zeros(()) for name in alone}
        own = {"weights": {name: jnp.asarray(b) for name, b in given.items()}, "seen": jnp.zeros((), jnp.int32)}
        return Variables(params, {**state, **own, "fast": zeros, "slow": dict(zeros)})

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        before = variables.state
        own = jax.lax.stop_gradient(_follow(variables, student, teacher, batch, fold_name(key, "held out"), step))
        kept = _part(batch, held_out, of_held=False)
        raws, state, metrics = apply_each(alone, variables, student, teacher, kept, key, step)
        total = jnp.zeros(())
        for name, raw in raws.items():
            weight = own["weights"][name].astype(raw.dtype)
            total = total.astype(raw.dtype) + weight * raw
            metrics |= {name: raw, f"{name}_weighted": weight * raw, f"{name}_weight": weight}
        return total, {**before, **state, **own}, metrics

    def _follow(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, PyTree]:
        """The averages and weights after the held-out rows of a batch; as they were if there are none."""
        part = _part(batch, held_out, of_held=True)
        old = {name: variables.state[name] for name in _OWN}
        values, _, _ = apply_each(alone, variables, student, teacher, part, key, step)
        first = old["seen"] == 0
        new: dict[str, PyTree] = {"seen": old["seen"] + 1}
        for name, decay in decays.items():
            mixed = {term: decay * old[name][term] + (1 - decay) * value for term, value in values.items()}
            new[name] = {term: jnp.where(first, values[term], x).astype(jnp.float32) for term, x in mixed.items()}
        new["weights"] = _weights(given, new["fast"], new["slow"], temperature)
        return jax.tree.map(lambda a, b: jnp.where(jnp.any(part["mask"]), a, b), new, old)

    return Term(init, apply, couples=True)


def _weights(
    given: Mapping[str, np.float32], fast: Mapping[str, jax.Array], slow: Mapping[str, jax.Array], temperature: float
) -> dict[str, jax.Array]:
    """The weights that two averages of each loss call for."""
    floor = 1e-12
    ratios = {name: (fast[name] + floor) / (slow[name] + floor) for name in given}
    highest = jnp.max(jnp.stack(list(ratios.values())))
    pulls = {name: b * jnp.exp((ratios[name] - highest) / temperature) for name, b in given.items()}
    scale = float(sum(given.values())) / jnp.sum(jnp.stack(list(pulls.values())))
    return {name: scale * pull for name, pull in pulls.items()}


def _field(batch: Batch, held_out: str) -> PyTree:
    """The field of held-out rows, or its shape."""
    field = read_field(batch, held_out)
    if len(field.shape) != 1:
        raise ValueError(f"the field {held_out!r} has shape {field.shape}: give one boolean an example, [B].")
    return field


def _part(batch: Batch, held_out: str, *, of_held: bool) -> dict[str, PyTree]:
    """The batch in which only the rows that are held out count, or only the others."""
    held = jnp.asarray(_field(batch, held_out)).astype(bool)
    mask = (held if of_held else ~held) & jnp.asarray(batch.get("mask", True)).astype(bool)
    part = {**batch, "mask": mask}
    if WHOLE in batch:
        whole = batch[WHOLE]
        part[WHOLE] = dataclasses.replace(whole, batch=_part(whole.batch, held_out, of_held=of_held))
    return part


def _check(terms: Mapping[str, tuple[float, Term]], temperature: float, memory: float) -> None:
    """Refuses terms and numbers outside their domain."""
    if len(terms) < 2 or any(name in _OWN for name in terms):
        raise ValueError(f"the terms are {sorted(terms)}: give at least two, none of them called {', '.join(_OWN)}.")
    if bad := [name for name, (weight, _) in terms.items() if not 0 < weight < np.inf]:
        raise ValueError(f"the weight of {bad[0]!r} is {terms[bad[0]][0]}: give a number above 0.")
    if not temperature > 0 or not 0 <= memory < 1:
        raise ValueError(
            f"the temperature is {temperature} and the memory {memory}: give a temperature above 0 and a memory in "
            "[0, 1)."
        )
