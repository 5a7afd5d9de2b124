"""Optimizers of experiments: AdamW, whose rate rises over the first updates and falls along a cosine."""

from __future__ import annotations

from collections.abc import Callable

import optax

from jaxkd.train import optimizers


def adamw_of(rate: float) -> Callable[[int], optax.GradientTransformation]:
    """Makes AdamW of a number of updates, for networks that begin anew.

    Args:
      rate: Highest rate.

    Returns:
      Updates of the training -> the optax transformation.
    """
    return lambda steps: adamw(warmed_up(rate, steps))


def adamw(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """AdamW with weight decay 0.01 on kernels alone, and gradients of a norm of at most 1.

    Args:
      rate: The learning rate.

    Returns:
      An optax transformation.
    """
    decayed = optax.adamw(rate, weight_decay=0.01, mask=optimizers.kernels_only)
    return optax.chain(optax.clip_by_global_norm(1.0), decayed)


def warmed_up(rate: float, steps: int) -> optax.Schedule:
    """Learning rate that rises over the first tenth of the steps and falls along a cosine.

    Args:
      rate: The highest rate.
      steps: Updates of the training.

    Returns:
      Step -> rate.
    """
    return optax.warmup_cosine_decay_schedule(0.0, rate, max(1, steps // 10), max(2, steps))
