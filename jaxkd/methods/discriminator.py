"""Adversarial distillation: a discriminator tells the teacher's outputs from the student's, which learns to pass.

min_S max_D E log D(t) + E log(1 - D(s)),  D = sigmoid(score),  s and t outputs or features of student and teacher

Both players are trained in one step, each by an optimizer of its own, and neither is moved by the other's loss:

    term = objectives.weighted(label=label, adversary=discriminator.adversarial())
    optimizer = discriminator.two_optimizers(optax.adamw(1e-3), optax.adam(1e-3))

The discriminator's parameters are the term's, so stacks of students have one each, and checkpoints hold both players.
If s and t have the same distribution, the best D is 1/2 everywhere, and the discriminator's loss is 2 log 2 = log 4.
The loss of the whole term need not fall: `adversary/telling` and `adversary/fooling` say which player is ahead.

Reference:
  Xu, Hsu, Huang, "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional
  Adversarial Networks", ICLR workshop 2018, https://arxiv.org/abs/1709.00513;
  Wang, Zhang, Sun, Qi, "KDGAN: Knowledge Distillation with Generative Adversarial Networks", NeurIPS 2018;
  Chung, Park, Kim, Kwak, "Feature-map-level Online Adversarial Knowledge Distillation", ICML 2020,
  https://arxiv.org/abs/2002.01775
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import train
from jaxkd.keys import fold_name
from jaxkd.objectives.hyper import Number, as_number, hold
from jaxkd.objectives.means import counting, mean_of, only_counted
from jaxkd.objectives.networks import Network
from jaxkd.objectives.networks.discriminator import discriminator
from jaxkd.objectives.paths import read_paths
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables

_OWN = "discriminator"
PATH = rf"^term/(.*/)?{_OWN}/"
"""Regular expression of the paths of discriminators, for `train.optimizers.by_path`."""


def adversarial(
    *,
    student: str = "logits",
    teacher: str = "logits",
    hidden: Sequence[int] = (64, 64),
    num_classes: int | None = None,
    label: str = "label",
    project: Network | None = None,
    weight: Number = 1.0,
    penalty: float = 0.0,
    where: str | None = None,
) -> Term:
    """Term of both players: the student's non-saturating loss, and the discriminator's.

    weight * mean(-log D(s)) + mean(-log(1 - D(s)) - log D(t)) + penalty / 2 * mean ||d score(t) / d t||^2

    The first part moves the student (and its projection) alone, the others the discriminator alone.

    Args:
      student: Name of the student's feature, such as "pooled" or "stage2"; "logits" are centred over the classes.
      teacher: Name of the teacher's feature.
      hidden: Widths of the discriminator's layers: linear ones, or on maps 3x3 convolutions.
      num_classes: K, for a discriminator of the outputs given the class; None for one of the outputs alone.
      label: Field of the batch with the class, where `num_classes` is given.
      project: Map from the student's feature to the teacher's width, trained with the student; none if None.
      weight: Weight of the student's part, a number or a schedule of the step. A weight that `objectives.weighted`
        gives to the term is one of both players, which Adam does not feel in the discriminator.
      penalty: Weight of the penalty on the discriminator's gradient at the teacher's outputs (R1), at least 0.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.

    Returns:
      A term with the parameters `discriminator` and `project`; it reports `fooling`, the student's part (log 2 if D is
      1/2), `telling`, the discriminator's (log 4 if D is 1/2), and `told`, the share of outputs on the right side.

    Raises:
      ValueError: If the penalty is negative; when the step is made, if a feature is missing or the two differ in shape.

    Reference:
      Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, https://arxiv.org/abs/1406.2661; Mescheder,
      Geiger, Nowozin, "Which Training Methods for GANs do actually Converge?", ICML 2018,
      https://arxiv.org/abs/1801.04406
    """
    if not penalty >= 0:
        raise ValueError(f"the penalty of a discriminator is {penalty}: give a number of 0 or more.")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: give the number of classes, or None for outputs alone.")
    network = discriminator(hidden, num_classes=num_classes)
    held = hold({"weight": weight if callable(weight) else as_number(weight)})
    paths = [f"student.{student}", f"teacher.{teacher}"] + [f"batch.{label}"] * (num_classes is not None)

    def init(key: jax.Array, s_out: Outputs, t_out: Outputs, batch: Batch) -> Variables:
        s, t, *_ = read_paths(paths, s_out, t_out, batch)
        shapes = tuple(s.shape), tuple(t.shape)
        params = {_OWN: network.init(fold_name(key, _OWN), shapes[1], shapes[1])}
        if project is not None:
            params["project"] = project.init(fold_name(key, "project"), *shapes)
        elif shapes[0] != shapes[1]:
            raise ValueError(
                f"the student's {student!r} has shape {shapes[0]} and the teacher's {teacher!r} {shapes[1]}: give a "
                "discriminator a `project`, such as objectives.linear(), or features of one shape."
            )
        return Variables(params, {name: jnp.asarray(x) for name, x in held.arrays.items()})

    def apply(
        variables: Variables, s_out: Outputs, t_out: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        params, numbers = variables.params, held.resolve(variables.state, step)
        s, t, *y = only_counted(read_paths(paths, s_out, t_out, batch), counting(batch, where))
        s = s if project is None else project.apply(params["project"], s)
        s, t = (_centred(x) if name == "logits" else x for x, name in ((s, student), (t, teacher)))
        own, still = params[_OWN], jax.lax.stop_gradient
        fooled, to_student = network.apply(still(own), s, *y), network.apply(own, still(s), *y)
        to_teacher = network.apply(own, still(t), *y)
        mean = lambda values: mean_of(values, batch, where)  # noqa: E731
        fooling = mean(jax.nn.softplus(-fooled))
        telling = mean(jax.nn.softplus(to_student) + jax.nn.softplus(-to_teacher))
        told = mean(((to_student < 0).astype(fooled.dtype) + (to_teacher > 0).astype(fooled.dtype)) / 2)
        total = jnp.asarray(numbers["weight"], fooling.dtype) * fooling + telling
        if penalty:
            total = total + penalty / 2 * mean(_steepness(network, own, still(t), y))
        return total, variables.state, {"fooling": fooling, "telling": telling, "told": told}

    return Term(init, apply, couples=project is not None and project.couples)


def two_optimizers(
    student: optax.GradientTransformation, discriminator: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for the discriminators and one for all else: the student, and what other terms train.

    Args:
      student: That of the student.
      discriminator: That of every `adversarial` term's discriminator.

    Returns:
      The optax transformation of a step.
    """
    return train.optimizers.by_path({PATH: discriminator}, student)


def _centred(logits: jax.Array) -> jax.Array:
    """Logits whose mean over the classes is 0, since a shift of all of them changes no probability."""
    return logits - jnp.mean(logits, axis=-1, keepdims=True)


def _steepness(network: Network, params: PyTree, x: jax.Array, y: Sequence[Any]) -> jax.Array:
    """Squared norm of the gradient of each example's score, [B]."""
    slope = jax.grad(lambda x: jnp.sum(network.apply(params, x, *y)))(x)
    return jnp.sum(jnp.square(slope), axis=tuple(range(1, slope.ndim)))
