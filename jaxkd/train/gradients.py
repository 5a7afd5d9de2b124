"""Gradients of each term in the student: their norms and cosines, and weights that balance them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.train.by_term import gradients_by_term, tree_dot
from jaxkd.train.state import unprepared
from jaxkd.train.step import make_inputs, make_objective
from jaxkd.types import Batch, Metrics, Model, Prepare, PyTree, StepFn, Term, TrainState, Variables


def make_gradient_report(
    student: Model, teacher: Model, term: Term, *, label: str = "label", prepare: Prepare = unprepared
) -> Callable[[TrainState, Variables, Batch], Metrics]:
    """Makes a diagnostic of `weighted` terms: the norm of each term's gradient, and its cosine with the label's.

    ||g_i||_2 and <g_i, g_label> / (||g_i|| ||g_label||),  g_i = d (w_i term_i) / d params of the student

    Costs one forward pass and a backward pass a term; compile it and call it every so many steps.

    Args:
      student: The student.
      teacher: The teacher.
      term: A `weighted(...)` sum (or `uncertainty_weighted`).
      label: Name of the term that the others are compared with.
      prepare: Augmentation and normalisation of a batch, on the device, as in the step.

    Returns:
      (state, teacher_variables, batch) -> `gradient_norm/<name>` of each term and `gradient_cosine/<name>` of each but
      the label's; 0 where a gradient is 0.

    Raises:
      ValueError: When called, if the objective has no such term.
    """
    term_gradients = _make_term_gradients(student, teacher, term, prepare)

    def report(state: TrainState, teacher_variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        gradients = term_gradients(state, teacher_variables, batch)
        if label not in gradients:
            raise ValueError(
                f"the objective has no term {label!r} to compare with: it has {', '.join(gradients)}; name one of them."
            )
        norms = {name: _norm(g) for name, g in gradients.items()}
        found = {f"gradient_norm/{name}": norm for name, norm in norms.items()}
        for name in gradients.keys() - {label}:
            product = norms[name] * norms[label]
            cosine = tree_dot(gradients[name], gradients[label]) / jnp.where(product > 0, product, 1)
            found[f"gradient_cosine/{name}"] = cosine
        return found

    return report


def make_balance(
    student: Model,
    teacher: Model,
    term: Term,
    *,
    rate: float = 0.1,
    prepare: Prepare = unprepared,
) -> StepFn:
    """Makes a step that moves the weights of `weighted` terms towards gradients of equal norm.

    w_i <- w_i (mean_j G_j / G_i)^rate, then scaled to the old sum of weights;  G_i = ||d (w_i term_i) / d params||_2

    GradNorm's target without its training rates (alpha = 0), reached in closed form. A pure step between train steps:
    compile it alike and call it every so many of them. Weights of terms without gradient stay as they are.

    Args:
      student: The student.
      teacher: The teacher.
      term: A `weighted(...)` sum whose weights are numbers, not schedules.
      rate: In (0, 1]; 1 balances this batch exactly.
      prepare: Augmentation and normalisation of a batch, on the device, as in the step.

    Returns:
      (state, teacher_variables, batch) -> (state with other weights, `weight/<name>` and `gradient_norm/<name>`).

    Raises:
      ValueError: When called, if the objective's weights are not numbers in its state.

    Reference:
      Chen, Badrinarayanan, Lee, Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
      Multitask Networks", ICML 2018, https://arxiv.org/abs/1711.02257
    """
    term_gradients = _make_term_gradients(student, teacher, term, prepare)

    def balance(state: TrainState, teacher_variables: Variables, batch: Batch) -> tuple[TrainState, Metrics]:
        gradients = term_gradients(state, teacher_variables, batch)
        weights = state.state["term"].get("weights", {})
        if set(weights) != set(gradients):
            raise ValueError(
                f"only weights that are numbers can be balanced, which are here those of {sorted(weights)} among "
                f"{sorted(gradients)}: give `weighted` numbers, no schedules."
            )
        norms = {name: _norm(g) for name, g in gradients.items()}
        pulling = jnp.stack([n > 0 for n in norms.values()])
        mean = jnp.sum(jnp.stack(list(norms.values()))) / jnp.maximum(jnp.sum(pulling), 1)
        moved = {n: weights[n] * jnp.where(g > 0, mean / jnp.where(g > 0, g, 1), 1) ** rate for n, g in norms.items()}
        scale = sum(weights.values()) / sum(moved.values())
        moved = {name: (scale * w).astype(weights[name].dtype) for name, w in moved.items()}
        term_state = {**state.state["term"], "weights": moved}
        new = dataclasses.replace(state, state={**state.state, "term": term_state})
        return new, {
            **{f"weight/{name}": w for name, w in moved.items()},
            **{f"gradient_norm/{name}": g for name, g in norms.items()},
        }

    return balance


def _make_term_gradients(
    student: Model, teacher: Model, term: Term, prepare: Prepare
) -> Callable[..., dict[str, PyTree]]:
    """(state, teacher_variables, batch) -> name -> gradient of its weighted term in the student's params."""
    inputs_of, objective = make_inputs(teacher, prepare=prepare, student=student), make_objective(student, term)

    def term_gradients(state: TrainState, teacher_variables: Variables, batch: Batch) -> dict[str, PyTree]:
        inputs = inputs_of(teacher_variables, batch)
        each, _ = gradients_by_term(objective, state.params, state, inputs)
        return {name: gradient["student"] for name, gradient in each.items()}

    return term_gradients


def _norm(a: PyTree) -> jax.Array:
    return numerics.safe_sqrt(tree_dot(a, a))
