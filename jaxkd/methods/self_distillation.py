"""Self-distillation: the shallow exits of one network learn from its deepest one, in one training.

    student = models.with_exits(network, ("stage1", "stage2"), num_classes)
    term = self_distillation.deepest_teaches(("stage1", "stage2"))
    state = train_phase(..., student=student, objective=(term, optax.adam(1e-3)))
    early = models.at_head(student, "stage1")  # the network up to its first exit

There is no other teacher. The deepest exit is a constant for the shallow ones, and learns from the labels alone; by
the stages that all exits share, their gradients reach it all the same.

Reference:
  Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
  ICCV 2019, https://arxiv.org/abs/1905.08094
"""

from __future__ import annotations

from collections.abc import Sequence

import jax

from jaxkd import losses, objectives
from jaxkd.objectives.hyper import Number
from jaxkd.types import Term


def deepest_teaches(
    exits: Sequence[str],
    *,
    alpha: float = 0.3,
    temperature: float = 3.0,
    weight: Number = 0.03,
    deepest: str = "pooled",
    label: str = "label",
) -> Term:
    """Objective of a network with exits: labels for all of them, and the deepest one as the teacher of the others.

    CE(z, y) + sum_i [ (1 - alpha) CE(z_i, y) + alpha T^2 KL(softmax(z / T) || softmax(z_i / T)) + w mean((h_i - h)^2) ]

    z and h, the deepest exit's logits and feature, are constants in the sum. The paper has no T^2, and for the hint the
    squared norm, where `losses.hint` has the mean over channels.

    Args:
      exits: Names of the features that have exits, as given to `models.with_exits`.
      alpha: Weight of the deepest exit's soft labels in 0..1; with 0 and w = 0 exits learn from labels alone.
      temperature: T > 0.
      weight: w, the weight of the hints, a float, an array or a schedule of the step.
      deepest: Name of the network's last feature, as given to `models.with_exits`.
      label: Field of the batch that holds the labels.

    Returns:
      A term for students made by `models.with_exits`.

    Raises:
      ValueError: If no exit is named, or alpha is not from 0 to 1; by the term, if the student has no such exit.

    Reference:
      Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
      Distillation", ICCV 2019, https://arxiv.org/abs/1905.08094
    """
    if isinstance(exits, str) or not exits:
        raise ValueError(f"the exits are {exits!r}: name at least one, such as ('stage1',).")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}: give a weight from 0 to 1.")

    def soft(own: jax.Array, other: jax.Array, *, temperature: jax.Array) -> jax.Array:
        return losses.kd(own, jax.lax.stop_gradient(other), temperature=temperature)

    def near(own: jax.Array, other: jax.Array) -> jax.Array:
        return losses.hint(own, jax.lax.stop_gradient(other))

    terms: dict[str, Term | tuple[Number, Term]] = {"label": objectives.from_labels(losses.cross_entropy, label=label)}
    for name in exits:
        logits = f"student.logits_{name}"
        hard = objectives.from_outputs(losses.cross_entropy, logits, f"batch.{label}")
        kd = objectives.from_outputs(soft, logits, "student.logits", temperature=temperature)
        hint = objectives.from_outputs(near, f"student.hint_{name}", f"student.{deepest}")
        terms |= {f"label_{name}": (1 - alpha, hard), f"kd_{name}": (alpha, kd), f"hint_{name}": (weight, hint)}
    return objectives.weighted(**terms)
