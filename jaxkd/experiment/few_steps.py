"""A student trained for a few steps by one term or another, where all terms share the programs of its two passes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import models
from jaxkd.types import Batch, Model, Outputs, Term, Variables


class Setup(NamedTuple):
    """Parts that all trainings of a student share.

    Attributes:
      batch: The prepared examples of every step.
      teacher_out: The teacher's outputs on them.
      optimizer: The optimizer of the student, and of a term's own parameters.
      student_variables: The student's variables before the first step.
      forward: (params, state) -> outputs, pullback, new state; compiled.
      backward: (params, opt_state, pullback, cotangent of the outputs) -> new params and opt_state; compiled.
    """

    batch: Batch
    teacher_out: Outputs
    optimizer: optax.GradientTransformation
    student_variables: Variables
    forward: Any
    backward: Any


def adam(width: int) -> optax.GradientTransformation:
    """Adam, whose first updates are large whatever the gradient; slower for wide layers, whose outputs move further.

    Args:
      width: Channels of the teacher's last stage.

    Returns:
      An optax transformation.
    """
    rate = 1e-3 * min(1, 256 / width)
    return optax.adam(optax.linear_schedule(rate / 10, rate, 8))


def setup(student: Model, batch: Batch, teacher_out: Outputs, optimizer: optax.GradientTransformation) -> Setup:
    """Prepares trainings of a student on one batch, by whatever term.

    Args:
      student: The student.
      batch: Prepared examples.
      teacher_out: The teacher's outputs on them.
      optimizer: An optax transformation.

    Returns:
      Variables and compiled passes.
    """

    @jax.jit
    def forward(params: Any, state: Any) -> Any:
        def apply(params: Any) -> Any:
            return student.apply(Variables(params, state), batch, jax.random.key(2), True)

        return jax.vjp(apply, params, has_aux=True)

    @jax.jit
    def backward(params: Any, opt_state: Any, pullback: Any, cotangent: Any) -> Any:
        updates, opt_state = optimizer.update(*pullback(cotangent), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    student_variables = models.init(student, jax.random.key(1), batch)
    return Setup(batch, teacher_out, optimizer, student_variables, forward, backward)


def train(term: Term, given: Setup, steps: int) -> tuple[list[float], Any]:
    """Trains the student of a setup by a term.

    Args:
      term: The objective.
      given: The setup.
      steps: Updates.

    Returns:
      The loss before each update, and the term's own parameters after the last.
    """
    optimizer, (params, state) = given.optimizer, given.student_variables
    opt_state, values = optimizer.init(params), []
    shapes = jax.eval_shape(lambda: (given.forward(params, state)[0], given.teacher_out, given.batch))
    own = jax.jit(lambda key: term.init(key, *shapes))(jax.random.key(0))
    own_opt_state, derive = optimizer.init(own.params), _derivative(term, optimizer)
    for step in range(steps, 2 * steps):  # when no weight of the term rises any more
        student_out, pullback, state = given.forward(params, state)
        value, own, own_opt_state, cotangent = derive(
            own, own_opt_state, student_out, given.teacher_out, given.batch, jnp.int32(step)
        )
        params, opt_state = given.backward(params, opt_state, pullback, cotangent)
        values.append(float(value))
    return values, own.params


def _derivative(term: Term, optimizer: optax.GradientTransformation) -> Any:
    """The compiled loss, the term after an update, and the gradient with respect to the student's outputs."""

    def derive(
        own: Variables, own_opt_state: Any, student_out: Outputs, teacher_out: Outputs, batch: Batch, step: jax.Array
    ) -> Any:
        def loss(own_params: Any, student_out: Outputs) -> Any:
            key = jax.random.fold_in(jax.random.key(1), step)
            return term.apply(Variables(own_params, own.state), student_out, teacher_out, batch, key, step)[:2]

        (value, state), (gradient, cotangent) = jax.value_and_grad(loss, (0, 1), has_aux=True)(own.params, student_out)
        updates, own_opt_state = optimizer.update(gradient, own_opt_state, own.params)
        return value, Variables(optax.apply_updates(own.params, updates), state), own_opt_state, cotangent

    return jax.jit(derive, donate_argnums=(0, 1))  # some terms are far larger than the networks
