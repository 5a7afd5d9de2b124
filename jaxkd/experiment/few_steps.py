"""A student trained for a few steps by one term or another, which share the programs of its two passes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import models
from jaxkd.types import Outputs, Variables


class Setup(NamedTuple):
    """What trainings of a student share."""

    batch: dict[str, Any]
    taught: Outputs  # the teacher's, of the batch
    update: optax.GradientTransformation
    started: Variables  # the student's
    forward: Any
    backward: Any


def adam(width):
    """Adam, whose first updates are large whatever the gradient, and which moves wide layers' outputs further."""
    rate = 1e-3 * min(1, 256 / width)
    return optax.adam(optax.linear_schedule(rate / 10, rate, 8))


def setup(model, batch, taught, update):
    """How a student starts and how it is trained, by whatever term."""

    @jax.jit
    def forward(params, state):
        return jax.vjp(lambda p: model.apply(Variables(p, state), batch, jax.random.key(2), True), params, has_aux=True)

    @jax.jit
    def backward(params, opt_state, pull, cotangent):
        updates, opt_state = update.update(*pull(cotangent), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return Setup(batch, taught, update, models.init(model, jax.random.key(1), batch), forward, backward)


def train(term, given, steps):
    """The loss before each update, and the term's params after the last."""
    batch, taught, update, (params, state), forward, backward = given
    opt_state, values = update.init(params), []
    shapes = jax.eval_shape(lambda: (forward(params, state)[0], taught, batch))
    owned = jax.jit(lambda key: term.init(key, *shapes))(jax.random.key(0))
    own_state = update.init(owned.params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))  # some terms are far larger than the networks
    def derive(owned, own_state, seen, taught, batch, step):
        def loss(own, seen):
            key = jax.random.fold_in(jax.random.key(1), step)
            return term.apply(Variables(own, owned.state), seen, taught, batch, key, step)[:2]

        (value, state), (own, cotangent) = jax.value_and_grad(loss, (0, 1), has_aux=True)(owned.params, seen)
        updates, own_state = update.update(own, own_state, owned.params)
        return value, Variables(optax.apply_updates(owned.params, updates), state), own_state, cotangent

    for step in range(steps, 2 * steps):  # when no weight rises any more
        seen, pull, state = forward(params, state)
        value, owned, own_state, cotangent = derive(owned, own_state, seen, taught, batch, jnp.int32(step))
        params, opt_state = backward(params, opt_state, pull, cotangent)
        values.append(float(value))
    return values, owned.params
