"""Born-again networks: each generation of one network distils the generation before it.

Generation 0 is the teacher: networks that were trained alone. Generation g has the same architecture, other first
weights, and learns from labels and from generation g - 1. Each seed is a lineage of its own: its network g learns from
its network g - 1. Each generation is a phase, which goes on where it was stopped, and its checkpoints know the
generation that they were taught by.

    found = born_again.generations(context, "generation", source, network, first, term, optimizer, steps, count=3)
    network.apply(students.pick_student(found[3], seed), batch, None, False)

Reference:
  Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born-Again Neural Networks", ICML 2018,
  https://arxiv.org/abs/1805.04770
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import data, models
from jaxkd.experiment.context import Context
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.experiment.trials import QUIET
from jaxkd.train import students
from jaxkd.types import Batch, Model, Outputs, PyTree, Term, Variables, as_variables

_LINEAGE = "lineage"
"""Name of the point of a sweep that says which of the teachers is a student's own."""


def generations(
    context: Context,
    name: str,
    source: data.Source,
    model: Model,
    first: Variables,
    term: Term,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    count: int,
    **options: Any,
) -> list[Variables]:
    """Trains generation after generation of one network, each taught by the one before.

    Args:
      context: The context of the trainings.
      name: Beginning of the phases' names, "<name>-1", "<name>-2", ...
      source: Training data.
      model: The network.
      first: Generation 0, of S lineages: variables [S, ...], such as those of the phase that trained them alone.
      term: The objective of the later generations, with the generation before as the teacher, such as KD's.
      optimizer: The optax transformation.
      steps: Updates of each generation.
      count: Number of generations after generation 0.
      **options: Further ones of `train_phase`.

    Returns:
      Variables [S, ...] of generations 0, 1, ..., count; the first are those that were given. Lineages that diverged
      are listed in `context.run.lost` under the names of their phases.

    Raises:
      ValueError: If the count is negative, or the first variables are not a stack of the network's.
    """
    if count < 0:
        raise ValueError(f"{count} generations cannot be trained: give at least 0.")
    lineages = _lineages(model, as_variables(first), context.eval_prepare(data.eval_batches(source, 1)[0]))
    points = {students.SEED: np.arange(lineages, dtype=np.int32), _LINEAGE: np.arange(lineages, dtype=np.int32)}
    found = [as_variables(first)]
    for generation in range(1, count + 1):
        state = train_phase(
            context,
            f"{name}-{generation}",
            source,
            student=model,
            objective=lambda lineage: (taught_by(term, lineage), optimizer),
            points=points,
            teacher=models.stacked(model, lineages),
            teacher_variables=found[-1],
            steps=steps,
            **{
                "every": steps,
                "key": jax.random.fold_in(jax.random.key(context.seed), generation),
                **QUIET,
                **options,
            },
        )
        found.append(variables_of(state))
    return found


def ensemble(model: Model, found: list[Variables], lineage: int) -> tuple[Model, Variables]:
    """The networks of all generations of one lineage as one model, with the mean of their probabilities.

    Args:
      model: The network.
      found: Generations, as `generations` returns them.
      lineage: Number of the lineage.

    Returns:
      Model and variables.
    """
    together = models.stacked(model, len(found), combine=models.mean_probabilities)
    return together, models.stack(*(students.pick_student(variables, lineage) for variables in found))


def taught_by(term: Term, index: jax.Array | int) -> Term:
    """Term whose teacher is one of the members of a stack, chosen by a number that may be traced.

    Args:
      term: Any term.
      index: Number of the member, from 0.

    Returns:
      A term for teachers made by `models.stacked`. All members are computed once, whatever the number of students.
    """

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        return term.init(key, student, _members(teacher)[0], batch)

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, Any]:
        own = jax.tree.map(lambda *x: jnp.stack(x)[index], *_members(teacher))
        return term.apply(variables, student, own, batch, key, step)

    return Term(init, apply, term.couples)


def _members(teacher: Outputs) -> list[Outputs]:
    """Outputs of each member of a stack."""
    each: dict[int, dict[str, Any]] = {}
    for name, x in teacher.features.items():
        number, _, own = name.partition("/")
        if not number.isdigit() or not own:
            raise ValueError(f"the teacher has a feature {name!r}, which is no member's: make it by models.stacked.")
        each.setdefault(int(number), {})[own] = x
    if not each:
        raise ValueError("the teacher has no members: make it by models.stacked.")
    return [Outputs(each[i].pop("logits"), each[i]) for i in sorted(each)]


def _lineages(model: Model, first: Variables, batch: Batch) -> int:
    """Number of lineages, after a check that the first generation is a stack of the network."""
    like = jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0), dict(batch)))
    counts = {jnp.shape(x)[:1] for x in jax.tree.leaves(first)}
    if len(counts) != 1 or () in counts or jax.tree.map(lambda x: jnp.shape(x)[1:], first) != like:
        raise ValueError(
            "generation 0 is no stack of this network: give variables [S, ...] of one network for each seed, "
            "models.stack(variables) for a single one."
        )
    return int(next(iter(counts))[0])
