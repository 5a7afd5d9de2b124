"""Weighted sums of terms, and weights of single examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import losses, numerics
from jaxkd.keys import fold_name
from jaxkd.labels import check_classes, check_labels, label_field, of_classes
from jaxkd.objectives.hyper import Number, as_number, hold
from jaxkd.objectives.paths import pick
from jaxkd.objectives.terms import Weigh
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables


def weighted(**terms: Term | tuple[Number, Term]) -> Term:
    """Weighted sum of terms; reports each raw value under its name and each weighted one under `<name>_weighted`.

    sum_i w_i(step) * term_i

    Args:
      **terms: Name -> term (weight 1) or (weight, term); a weight is a float, an array or a schedule of the step.

    Returns:
      A term whose params and state are keyed by the names; the weights stand in `state["weights"]`.

    Raises:
      TypeError: If something is neither a term nor a pair of weight and term.
      ValueError: If there is no term, one is called "weights", or a weight is not one finite number.
    """
    if not terms or "weights" in terms:
        raise ValueError('weighted() needs at least one term, none of them called "weights": name each after its loss.')
    pairs = {name: _weight_and_term(name, t) for name, t in terms.items()}
    held = hold({n: w if callable(w) else as_number(w) for n, (w, _) in pairs.items()})

    terms_alone = {name: term for name, (_, term) in pairs.items()}

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        params, state = init_each(terms_alone, key, student, teacher, batch)
        return Variables(params, {"weights": {name: jnp.asarray(v) for name, v in held.arrays.items()}, **state})

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        raws, state, metrics = apply_each(terms_alone, variables, student, teacher, batch, key, step)
        weights, total = held.resolve(variables.state["weights"], step), jnp.zeros(())
        for name, raw in raws.items():
            value = jnp.asarray(weights[name], raw.dtype) * raw
            total = total.astype(raw.dtype) + value
            metrics |= {name: raw, f"{name}_weighted": value}
        return total, {"weights": variables.state["weights"], **state}, metrics

    return Term(init, apply, any(term.couples for term in terms_alone.values()))


def _weight_and_term(name: str, given: Any) -> tuple[Number, Term]:
    """One term of a sum with its weight, after the checks of `weighted`."""
    if isinstance(given, Term):
        return 1.0, given
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], Term):
        raise TypeError(
            f"{name!r} is neither a term nor (weight, term): give {name}=(0.5, objectives.from_logits(losses.kd)), or "
            "the term alone for a weight of 1."
        )
    weight = given[0]
    if callable(weight) or isinstance(weight, jax.core.Tracer):
        return weight, given[1]
    number = np.asarray(weight)
    if number.shape or number.dtype.kind in "OUSbc" or not np.isfinite(number):
        what = f"has shape {number.shape}" if number.shape else f"is {weight!r}"
        raise ValueError(f"the weight of {name!r} {what}: give one finite number or a schedule of the step.")
    return weight, given[1]


def init_each(terms: Mapping[str, Term], key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
    """Variables of several terms by name; each term has a PRNG stream of its own.

    Args:
      terms: Name -> term.
      key: Typed PRNG key.
      student: Abstract outputs.
      teacher: Abstract outputs.
      batch: Abstract batch.

    Returns:
      Params and state by the terms' names.
    """
    owned = {n: t.init(fold_name(key, n), student, teacher, batch) for n, t in terms.items()}
    return Variables({n: v.params for n, v in owned.items()}, {n: v.state for n, v in owned.items()})


def apply_each(
    terms: Mapping[str, Term],
    variables: Variables,
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, PyTree], dict[str, jax.Array]]:
    """Values, new states and metrics of several terms, by name.

    Args:
      terms: Name -> term.
      variables: Params and state by name, as `init_each` makes them; they may hold other names too.
      student: The student's outputs.
      teacher: The teacher's outputs.
      batch: The batch.
      key: Typed PRNG key of the step.
      step: Number of the step.

    Returns:
      Name -> value, name -> new state, and the terms' own metrics under `<name>/<metric>`.
    """
    raws, state = {}, {}
    metrics: dict[str, jax.Array] = {}
    for name, term in terms.items():
        owned = Variables(variables.params[name], variables.state[name])
        own_key = fold_name(key, name)
        raws[name], state[name], inner = term.apply(owned, student, teacher, batch, own_key, step)
        metrics |= {f"{name}/{k}": v for k, v in inner.items()}
    return raws, state, metrics


def uncertainty_weighted(**terms: Term) -> Term:
    """Sum of terms weighted by trained uncertainties: a term that stays large gets a smaller weight.

    sum_i exp(-s_i) term_i + s_i / 2,  s_i = log sigma_i^2, which starts at 0

    Only for terms that are not negative: exp(-s) has no bound where a term can be.

    Args:
      **terms: Name -> term.

    Returns:
      A term with parameters `log_variance` and the terms' own; reports each raw value under its name, the weighted one
      under `<name>_weighted` and the weight under `<name>_weight`.

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
    """Weight of each example: the teacher's probability of its label, so that the teacher's mistakes count less.

    w = softmax(z_t / T)[label]

    Args:
      label: Field of the batch with the labels, integers.
      temperature: T > 0.

    Returns:
      A factor [B] in 0..1 for a term's `weigh`.
    """

    def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
        (z,) = numerics.promote(pick(teacher, "logits", "teacher"))
        y = check_labels(z, batch[label])
        return y.mark(jnp.exp(numerics.pick(numerics.log_softmax(z, temperature), y.values)))

    return weigh


def teacher_certainty(*, temperature: float = 1.0) -> Weigh:
    """Weight of each example: the teacher's certainty, one minus its entropy over that of the uniform distribution.

    w = 1 - H(softmax(z_t / T)) / log K

    Args:
      temperature: T > 0.

    Returns:
      A factor [B, ...] in 0..1 for a term's `weigh`.
    """

    def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
        (z,) = numerics.promote(pick(teacher, "logits", "teacher"))
        check_classes(z)
        log_p = numerics.log_softmax(z, temperature)
        p = jnp.exp(log_p)
        return 1 - jnp.sum(-numerics.xlogy(p, p), axis=-1) / jnp.log(jnp.asarray(z.shape[-1], z.dtype))

    return weigh


def student_doubt(*, label: str = "label", power: float = 1.0) -> Weigh:
    """Weight of each example: the student's own doubt of its label, so that it learns on where it has not learnt yet.

    w = (1 - softmax(z_s)[label])^power

    Args:
      label: Field of the batch with the labels, integers.
      power: Greater ones leave learnt examples sooner, as gamma of the focal loss does.

    Returns:
      A factor [B] in 0..1 for a term's `weigh`; no gradient passes through it.

    Reference:
      Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", ICCV 2017,
      https://arxiv.org/abs/1708.02002
    """

    def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
        (z,) = numerics.promote(pick(student, "logits", "student"))
        y = check_labels(z, batch[label])
        doubt = -jnp.expm1(numerics.pick(numerics.log_softmax(z), y.values))
        return y.mark(jnp.maximum(doubt, 0) ** power)

    return weigh


def class_weight(weights: ArrayLike, *, label: str = "label") -> Weigh:
    """Weight of each example: that of its class, so that rare classes count as much as common ones.

    The mean stays that over the examples, sum_i w[y_i] loss_i / N. PyTorch's `weight=` divides by sum_i w[y_i] instead,
    which differs by a factor for each batch, near 1 with `inverse_frequency`.

    Args:
      weights: [K], at least 0, such as `inverse_frequency` gives.
      label: Field of the batch with the labels, integers.

    Returns:
      A factor [B] for a term's `weigh`; NaN where the label is no class.

    Raises:
      ValueError: If there are not at least two weights, or one is negative or not finite.
    """
    w = np.asarray(weights, np.float32)
    if w.ndim != 1 or w.size < 2 or not np.isfinite(w).all() or (w < 0).any():
        raise ValueError(f"class weights are {weights!r}: give one number of 0 or more for each of at least 2 classes.")

    def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
        y = of_classes(jnp.asarray(label_field(batch, label)), w.size)
        return y.mark(jnp.asarray(w)[y.values])

    return weigh


def inverse_frequency(labels: ArrayLike, num_classes: int) -> np.ndarray:
    """Class weights that are inverse to the classes' numbers of examples, and 1 in the mean over the examples.

    w_k = N / (C N_k), with N_k of N examples in class k, and C classes that have examples

    Args:
      labels: [N] integers, those of the training set.
      num_classes: K.

    Returns:
      float32 [K]; 1 for classes without examples.

    Raises:
      ValueError: If there is no label, or one is outside 0..K-1.

    Reference:
      King, Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001,
      https://doi.org/10.1093/oxfordjournals.pan.a004868
    """
    y = np.asarray(labels)
    if y.ndim != 1 or not y.size or y.dtype.kind not in "iub" or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(
            f"labels have shape {y.shape} and dtype {y.dtype}: give at least one integer in 0..{num_classes - 1}, [N]."
        )
    counts = np.bincount(y, minlength=num_classes)
    there = counts > 0
    return np.where(there, y.size / (there.sum() * np.maximum(counts, 1)), 1).astype(np.float32)


def wsld_weight(*, label: str = "label") -> Weigh:
    """Weight of each example in WSLD, from the ratio of the student's and the teacher's cross-entropy.

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
