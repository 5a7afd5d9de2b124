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
