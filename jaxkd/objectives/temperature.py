"""Term whose temperature is trained against the student (CTKD)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import losses, numerics
from jaxkd.objectives.hyper import Number, hold
from jaxkd.objectives.projections import mlp
from jaxkd.objectives.terms import Loss, Result, Weigh, stateful
from jaxkd.types import Term, Variables


def curriculum_temperature(
    loss: Loss = losses.kd,
    *,
    strength: Number,
    lowest: float = 1.0,
    span: float = 20.0,
    instance: bool = False,
    hidden: int = 128,
    where: str | None = None,
    weigh: Weigh | None = None,
    **hyper: Any,
) -> Term:
    """Term of curriculum temperature (CTKD): the temperature is trained against the student, by gradient reversal.

    T = lowest + span * sigmoid(r_lambda(theta));  r_lambda is the identity, and multiplies the gradient by -lambda

    Args:
      loss: (student_logits, teacher_logits, *, temperature, **hyper) -> [B].
      strength: lambda, usually `cosine_ramp(steps)`, from 0 to 1 over the first epochs.
      lowest: The least temperature.
      span: The greatest temperature is lowest + span.
      instance: Whether each example has a temperature of its own, from a perceptron on both sides' probabilities, or
        there is one number for all.
      hidden: Width of that perceptron.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      weigh: Function that gives a factor for each example's value; 1 if None.
      **hyper: Other hyper-parameters of the loss.

    Returns:
      A term that reports `temperature` (its mean); it starts at lowest + span * sigmoid(1), or at lowest + span / 2
      on average for instances.

    Reference:
      Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, https://arxiv.org/abs/2211.16231
    """
    network = mlp(hidden=(hidden,), width=1)
    hold(hyper, loss)  # which says so if the loss has no such hyper-parameter

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        shape = (*s.shape[:-1], s.shape[-1] + t.shape[-1])
        return Variables(network.init(key, shape, shape) if instance else {"theta": jnp.ones(())}, {})

    def call(
        variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, *, strength: ArrayLike = 1.0, **hyper: Any
    ) -> Result:
        params = variables.params
        if instance:
            both = [jnp.exp(numerics.log_softmax(z)) for z in numerics.promote(s, t)]
            theta = network.apply(params, jax.lax.stop_gradient(jnp.concatenate(both, axis=-1)))[..., 0]
        else:
            theta = params["theta"]
        T = lowest + span * jax.nn.sigmoid(numerics.reverse_gradient(theta, strength))
        return loss(s, t, temperature=T, **hyper), {}, {"temperature": jnp.mean(T)}

    paths = ("student.logits", "teacher.logits")
    return stateful(call, *paths, init=init, where=where, weigh=weigh, strength=strength, **hyper)
