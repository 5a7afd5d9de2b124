"""Distillation-Oriented Trainer (DOT): momentum of its own for the gradient of the task and for that of distillation.

    optimizer = dot(0.05, delta=0.075)
    term = objectives.weighted(label=objectives.from_labels(losses.cross_entropy), kd=(0.9, kd))

The gradient of the labels gets the smaller momentum, so that the loss of distillation leads the optimisation.

Reference:
  Zhao, Cui, Song, Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023, https://arxiv.org/abs/2307.08436
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd.train.by_term import TermError, read_terms
from jaxkd.types import PyTree


class DotState(NamedTuple):
    """The two momentum buffers.

    Attributes:
      task: v_task, a tree like the params.
      distillation: v_kd, a tree like the params.
    """

    task: PyTree
    distillation: PyTree


def dot(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float | jax.Array = 0.9,
    delta: float | jax.Array = 0.075,
    task: str | Sequence[str] = "label",
    weight_decay: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SGD with a momentum buffer for the gradient of the task and one for that of distillation.

    v_task <- g_task + lambda theta + (mu - delta) v_task,  v_kd <- g_kd + (mu + delta) v_kd
    update = -gamma (v_task + v_kd)

    With delta = 0 it is SGD with momentum. The weight decay belongs to the task, as in the authors' code.

    Args:
      learning_rate: gamma, a number or a schedule.
      momentum: mu in [0, 1).
      delta: In [0, min(mu, 1 - mu)); the paper has 0.075 for CIFAR-100 and 0.09 for ImageNet.
      task: Names of the terms of the task in `weighted(...)`; all others are distillation.
      weight_decay: lambda, of all params.

    Returns:
      An optax transformation for `train.make_train_step`, which gives it the gradient of each term.

    Raises:
      ValueError: If a momentum is outside [0, 1), or no task is named.
      TermError: When traced, if the objective is no sum of terms or lacks a term of the task.
    """
    tasks = (task,) if isinstance(task, str) else tuple(task)
    if not tasks:
        raise ValueError("no term of the task is named: give task='label', or the names of the terms of the labels.")
    numbers = not any(isinstance(x, jax.Array) for x in (momentum, delta))
    if numbers and not 0 <= delta <= momentum < 1 - delta:
        raise ValueError(
            f"the momenta are {momentum} - {delta} and {momentum} + {delta}: give a momentum and a delta of at least "
            "0 with both of them in [0, 1)."
        )

    def init(params: PyTree) -> DotState:
        return DotState(*(jax.tree.map(jnp.zeros_like, params) for _ in range(2)))

    def update(updates: PyTree, state: DotState, params: PyTree = None, **extra: Any) -> tuple[PyTree, DotState]:
        each, rest = read_terms(updates, extra)
        if missing := [name for name in tasks if name not in each]:
            raise TermError(
                f"the objective has no term {missing[0]!r} for the task: it has {', '.join(each)}; name one as task=."
            )

        def moved(old: PyTree, decay: float | jax.Array, gradients: list[PyTree]) -> PyTree:
            return jax.tree.map(lambda v, *g: sum(g) + jnp.asarray(decay, v.dtype) * v, old, *gradients)

        decayed = jax.tree.map(lambda r, p: r + jnp.asarray(weight_decay, r.dtype) * p, rest, params)
        new = DotState(
            moved(state.task, momentum - delta, [decayed, *(each[name] for name in tasks)]),
            moved(state.distillation, momentum + delta, [g for name, g in each.items() if name not in tasks]),
        )
        return jax.tree.map(jnp.add, *new), new

    momenta = optax.GradientTransformationExtraArgs(init, update)
    return optax.chain(momenta, optax.scale_by_learning_rate(learning_rate))
