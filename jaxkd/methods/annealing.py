"""Annealing-KD: the student copies logits of the teacher that grow to their full size, and learns from labels after.

    term = annealing(1000)

Reference:
  Jafari, Rezagholizadeh, Sharma, Ghodsi, "Annealing Knowledge Distillation", EACL 2021,
  https://arxiv.org/abs/2104.07163
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses, objectives
from jaxkd.objectives.schedules import switched
from jaxkd.types import Schedule, Term


def annealing(steps: int, *, max_temperature: int = 10, label: str = "label") -> Term:
    """Objective of both phases, in one run: regression on annealed logits, then cross-entropy of the labels alone.

    ||z_s - Phi(T) z_t||^2 / K before `steps`,  CE(z_s, y) from then on;  Phi(T) = 1 - (T - 1) / T_max

    Args:
      steps: Updates of the first phase.
      max_temperature: T_max; T falls from it to 1 in as many parts of the first phase, of one length.
      label: Field of the batch with the labels.

    Returns:
      A weighted sum of the terms `logits` and `label`.

    Raises:
      ValueError: If there are no steps, or fewer than temperatures, or no temperature.
    """
    phi = annealed(steps, max_temperature=max_temperature)

    def regression(student_logits: jax.Array, teacher_logits: jax.Array, *, factor: float = 1.0) -> jax.Array:
        return losses.logits_mse(student_logits, jnp.asarray(factor, teacher_logits.dtype) * teacher_logits)

    first, second = switched(steps, before=1.0, after=0.0), switched(steps)
    return objectives.weighted(
        logits=(first, objectives.from_logits(regression, factor=phi)),
        label=(second, objectives.from_labels(losses.cross_entropy, label=label)),
    )


def annealed(steps: int, *, max_temperature: int = 10) -> Schedule:
    """Schedule of the factor of the teacher's logits.

    Phi = 1 / T_max, 2 / T_max, ..., 1, each for one of T_max parts of the steps; then 1

    Args:
      steps: Updates until the end of the last part.
      max_temperature: T_max.

    Returns:
      Step -> Phi.

    Raises:
      ValueError: If there are no steps, or fewer than temperatures, or no temperature.
    """
    if max_temperature < 1 or steps < max_temperature:
        raise ValueError(
            f"{steps} steps are too few to anneal from {max_temperature}: give a temperature of at least 1, and "
            "as many steps, by more --epochs for instance."
        )

    def schedule(step: jax.Array) -> jax.Array:
        part = jnp.floor(jnp.asarray(step, jnp.float32) * max_temperature / steps) + 1
        return jnp.minimum(part, max_temperature) / max_temperature

    return schedule
