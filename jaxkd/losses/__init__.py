"""Losses: pure functions of arrays, student first, teacher second."""

from jaxkd.losses.features import hint
from jaxkd.losses.logits import cross_entropy, kd, logits_mse

__all__ = ["cross_entropy", "hint", "kd", "logits_mse"]
