"""Schedules of weights and temperatures: functions of the step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.types import Schedule


def cosine_ramp(steps: int, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Schedule from one value to another along half a cosine, which stays there, such as CTKD's strength.

    Args:
      steps: Number of steps until the end.
      start: Value at step 0.
      end: Value from step `steps` on.

    Returns:
      Step -> value.

    Raises:
      ValueError: If there are no steps.
    """
    if steps < 1:
        raise ValueError(f"a ramp of {steps} steps has no slope: give at least 1.")

    def schedule(step: jax.Array) -> jax.Array:
        done = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0, 1)
        return end + (start - end) * (1 + jnp.cos(jnp.pi * done)) / 2

    return schedule


def switched(at: int, *, before: float = 0.0, after: float = 1.0) -> Schedule:
    """Schedule of one value and then another, such as the weights of two phases in one run: features, then logits.

    Args:
      at: First step of the second value.
      before: Value until then.
      after: Value from then on.

    Returns:
      Step -> value.

    Raises:
      ValueError: If the first value would have no step.
    """
    if at < 1:
        raise ValueError(f"a switch at step {at} leaves no step for the first value: give at least 1.")
    return lambda step: jnp.where(jnp.asarray(step) < at, jnp.float32(before), jnp.float32(after))


def sigmoid_ramp(steps: int, *, end: float = 1.0) -> Schedule:
    """Schedule from nearly 0 to a value, which stays there, such as the weight of a mean teacher's consistency.

    end * exp(-5 (1 - min(step / steps, 1))^2)

    Args:
      steps: Number of steps until the end.
      end: Value from step `steps` on.

    Returns:
      Step -> value.

    Raises:
      ValueError: If there are no steps.

    Reference:
      Laine, Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, https://arxiv.org/abs/1610.02242
    """
    if steps < 1:
        raise ValueError(f"a ramp of {steps} steps has no slope: give at least 1.")

    def schedule(step: jax.Array) -> jax.Array:
        missing = 1 - jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0, 1)
        return end * jnp.exp(-5 * missing**2)

    return schedule


def warm_decay(decay: float) -> Schedule:
    """Schedule of a moving average's decay that lets the average follow the first steps closely.

    min(1 - 1 / (step + 2), decay)

    Until the decay is reached, the average is the mean of the first variables and those after each step.

    Args:
      decay: Decay from 0 to 1 that is reached after 1 / (1 - decay) steps.

    Returns:
      Step -> decay.

    Raises:
      ValueError: If the decay is not from 0 to 1.

    Reference:
      Tarvainen, Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"the decay of a moving average is {decay}: give a number from 0 to 1, such as 0.999.")
    return lambda step: jnp.minimum(1 - 1 / (jnp.asarray(step, jnp.float32) + 2), decay)
