"""Adaptive weighting: temperatures and weights that are learned, and factors of single examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import losses, numerics
from jaxkd.objectives.projections import mlp
from jaxkd.objectives.sums import apply_each, init_each
from jaxkd.objectives.terms import Loss, Number, Weigh, hold, pick, stateful
from jaxkd.types import Batch, Outputs, PyTree, Schedule, Term, Variables


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
    """Curriculum temperature (CTKD): the temperature is trained against the student, by gradient reversal.

    T = lowest + span * sigmoid(r_lambda(theta));  r_lambda is the identity, and multiplies the gradient by -lambda

    Args:
      loss: (student_logits, teacher_logits, *, temperature, **hyper) -> [B].
      strength: lambda, usually `cosine_ramp(steps)`, from 0 to 1 over the first epochs.
      lowest: The least temperature.
      span: The greatest temperature is lowest + span.
      instance: Whether each example has a temperature of its own, from a perceptron on both sides' probabilities, or
        all share one number.
      hidden: Width of that perceptron.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      weigh: Factor of each example's value; 1 if None.
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
    ) -> tuple[jax.Array, dict, dict]:
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


def cosine_ramp(steps: int, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """Schedule that goes from one value to another along half a cosine, and stays there, as CTKD's strength does.

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


def uncertainty_weighted(**terms: Term) -> Term:
    """Sum of terms weighted by trained uncertainties: a term that stays large is believed less.

    sum_i exp(-s_i) term_i + s_i / 2,  s_i = log sigma_i^2, which starts at 0

    Only for terms that are not negative: exp(-s) has no bound where a term can be.

    Args:
      **terms: Name -> term.

    Returns:
      A term with parameters `log_variance` and the terms' own; reports each raw value under its name, its share under
      `<name>_weighted` and its weight under `<name>_weight`.

    Raises:
      ValueError: If there is no term, or one is called "log_variance".

    Reference:
      Kendall, Gal, Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics",
      CVPR 2018, https://arxiv.org/abs/1705.07115
    """
    if not terms or "log_variance" in terms:
        raise ValueError(
            'uncertainty_weighted() needs at least one term, none of them called "log_variance": name each after its '
            "loss."
        )

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        params, state = init_each(terms, key, student, teacher, batch)
        return Variables({"log_variance": {name: jnp.zeros(()) for name in terms}, **params}, state)

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        raws, state, metrics = apply_each(terms, variables, student, teacher, batch, key, step)
        total = jnp.zeros(())
        for name, raw in raws.items():
            s = variables.params["log_variance"][name].astype(raw.dtype)
            weight = jnp.exp(-s)
            total = total.astype(raw.dtype) + weight * raw + s / 2
            metrics |= {name: raw, f"{name}_weighted": weight * raw, f"{name}_weight": weight}
        return total, state, metrics

    return Term(init, apply, any(term.couples for term in terms.values()))


def teacher_confidence(*, label: str = "label", temperature: float = 1.0) -> Weigh:
    """Examples count by the teacher's probability of the label, so that its mistakes teach less.

    w = softmax(z_t / T)[label]

    Args:
      label: Field of the batch with the labels, integers.
      temperature: T > 0.

    Returns:
      A factor [B] in 0..1 for a term's `weigh`.
    """

    def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
        (z,) = numerics.promote(pick(teacher, "logits", "teacher"))
        return jnp.exp(numerics.pick(numerics.log_softmax(z, temperature), numerics.check_labels(z, batch[label])))

    return weigh


def teacher_certainty(*, temperature: float = 1.0) -> Weigh:
    """Examples count by the teacher's certainty, one minus its entropy relative to the uniform distribution's.

    w = 1 - H(softmax(z_t / T)) / log K

    Args:
      temperature: T > 0.

    Returns:
      A factor [B, ...] in 0..1 for a term's `weigh`.
    """

    def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
        (z,) = numerics.promote(pick(teacher, "logits", "teacher"))
        log_p = numerics.log_softmax(z, temperature)
        p = jnp.exp(log_p)
        return 1 - jnp.sum(-numerics.xlogy(p, p), axis=-1) / jnp.log(jnp.asarray(z.shape[-1], z.dtype))

    return weigh


def wsld_weight(*, label: str = "label") -> Weigh:
    """WSLD's weight of an example's soft label, from how the student's and the teacher's cross-entropies compare.

    w = 1 - exp(-CE(z_s, y) / (CE(z_t, y) + 1e-7))

    Args:
      label: Field of the batch with the labels, integers.

    Returns:
      A factor [B] in 0..1 for a term's `weigh`, with which `losses.kd` becomes the soft part of `losses.wsld`.

    Reference:
      Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021,
      https://arxiv.org/abs/2102.00650
    """

    def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
        s, t = (losses.cross_entropy(out.logits, batch[label]) for out in (student, teacher))
        return -jnp.expm1(-s / (t + 1e-7))

    return weigh
