"""Checks of single evaluations: shape, dtype, finite values and gradients, sign, and what equal sides give."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.testing.case import Arrays, Case, Check, cast, disagreement, each, equal_sides, first, locate, settings
from jaxkd.testing.outcome import Finding, NotRun, Outcome


def shape(expected: Callable[[tuple[int, ...]], tuple[int, ...]], meaning: str) -> Check:
    """Check that the result's shape follows from the first side's."""

    def check(case: Case, arrays: Arrays) -> Outcome:
        side = arrays[case.sides[0]].shape
        got, wanted = case.shape(arrays).shape, expected(side)
        if got == wanted:
            return None
        return Finding(f"inputs {side} must give {meaning}", {}, {"shape": got, "expected": wanted})

    return check


def dtype(case: Case, arrays: Arrays) -> Outcome:
    """Result and arithmetic in at least float32 for every dtype; float64 stays float64."""
    what = "the loss must be computed in at least float32, and float64 must stay float64"
    half, single, double = np.dtype(jnp.bfloat16), np.dtype(np.float32), np.dtype(np.float64)
    for given, wanted in ((single, single), (np.dtype(np.float16), single), (half, single), (double, double)):
        got = case.shape(arrays, given).dtype
        if got != wanted:
            return Finding(what, {}, {f"dtype from {given}": got, "expected": wanted})
    side = case.sides[0]
    with settings(single):
        got = jax.eval_shape(case.jitted, {**cast(arrays, single), side: arrays[side].astype(half)}).dtype
    if got != single:
        return Finding(what, {}, {f"dtype from bfloat16 {side} among float32": got, "expected": single})
    rounded = cast(cast(arrays, half), double)
    if case.widens_first(rounded, half):
        return None
    low, full = case.values(rounded, half), case.values(rounded, single)
    return disagreement(case, rounded, what, ("value from bfloat16", low), ("the same from float32", full), 1e-4)


def strict(**promotion: str) -> Check:
    """Check that JAX raises nothing under strict promotion; the report quotes what it raises."""

    def check(case: Case, arrays: Arrays) -> Outcome:
        if not case.strictly:
            with settings(np.float32, **promotion):
                jax.eval_shape(case.call, cast(arrays, np.float32))
        return None

    return check


def not_finite(case: Case, arrays: Arrays, what: str) -> Finding | None:
    """The first value or gradient that is not finite in float32, or None."""
    values, gradients = case.gradients(arrays, np.float32)
    if found := locate(case, arrays, f"{what}, the value must be finite", ~np.isfinite(values), {"value": values}):
        return found
    for name, gradient in gradients.items():
        wrong = ~np.isfinite(gradient).reshape(len(gradient), -1).all(axis=1)
        shown = {f"gradient in {name}": gradient}
        if found := locate(case, arrays, f"{what}, the gradient must be finite", wrong, shown):
            return found
    return None


def finite(case: Case, arrays: Arrays) -> Outcome:
    """Finite value and gradients for the inputs as they are."""
    return not_finite(case, arrays, "for ordinary inputs")


def finite_at_equality(case: Case, arrays: Arrays) -> Outcome:
    """Finite value and gradients for equal sides, where roots and norms of a difference have no derivative."""
    equal = equal_sides(case, arrays)
    return equal if isinstance(equal, NotRun) else not_finite(case, equal, "for equal sides")


def equal_rows(case: Case, arrays: Arrays) -> Outcome:
    """Finite value and gradients for two equal rows, and for a batch of equal rows."""
    two = each(arrays, lambda a: np.concatenate([a[:1], a[:1], a[2:]]))
    every = each(arrays, lambda a: np.repeat(a[:1], len(a), axis=0))
    return not_finite(case, two, "for two equal rows") or not_finite(case, every, "for a batch of equal rows")


def zero_rows(case: Case, arrays: Arrays) -> Outcome:
    """Finite value and gradients for rows that are zero on one side or on all."""
    row = {n: np.concatenate([np.zeros_like(arrays[n][:1]), arrays[n][1:]]) for n in case.sides}
    tried = [({n: row[n]}, f"for a row of zeros in {n}") for n in case.sides]
    tried += [(row, "for a row of zeros on every side")]
    tried += [({n: np.zeros_like(arrays[n]) for n in case.sides}, "for nothing but zeros")]
    return first(not_finite(case, {**arrays, **change}, what) for change, what in tried)


def batch_of_one(case: Case, arrays: Arrays) -> Outcome:
    """Finite value and gradients for the first row alone."""
    return not_finite(case, each(arrays, lambda a: a[:1]), "for a batch of one")


def extreme_logits(case: Case, arrays: Arrays) -> Outcome:
    """Finite value and gradients for logits of +-1e4 and one-hot distributions, and float64's value in float32."""
    for what, extreme in _extremes(case, arrays):
        if found := not_finite(case, extreme, what):
            return found
        single, double = case.values(extreme, np.float32), case.values(extreme)
        what = f"{what}, float32 must agree with float64"
        if found := disagreement(case, extreme, what, ("value in float32", single), ("in float64", double), 1e-2):
            return found
    return None


def _extremes(case: Case, arrays: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Descriptions and inputs: extreme on each side alone, then on all sides."""
    steep = {n: np.where(arrays[n] >= 0, 1e4, -1e4) for n in case.sides}
    opposite = {n: a * (-1) ** i for i, (n, a) in enumerate(steep.items())}
    hot = {n: np.where(_one_hot(arrays[n]), 1e4, 0) for n in case.sides}
    soft = {n: _one_hot(arrays[n]).astype(np.float64) for n in case.of_kind("probabilities")}
    for n in case.sides:
        yield f"for {n} of +-1e4", {**arrays, n: steep[n]}
        yield f"for one-hot {n} (1e4 at one class)", {**arrays, n: hot[n]}
    yield "for +-1e4 on every side", {**arrays, **steep}
    yield "for +-1e4 on one side and its negative on the other", {**arrays, **opposite, **soft}
    yield "for one-hot inputs everywhere", {**arrays, **hot, **soft}


def _one_hot(array: np.ndarray) -> np.ndarray:
    return np.arange(array.shape[-1]) == np.argmax(array, axis=-1)[..., None]


def masked_classes(case: Case, arrays: Arrays) -> Outcome:
    """Finite value and gradients for a class of -inf on every side, in all rows but the last; no gradient there."""
    shapes = {arrays[n].shape for n in case.sides}
    *leading, K = arrays[case.sides[0]].shape
    if len(shapes) > 1 or K < 3:
        return NotRun(
            f"it masks one class on every side, which needs one shape and three classes, not {sorted(shapes)}"
        )
    masked = np.arange(K) == ((_labelled(case, arrays, tuple(leading)) + 1) % K)[..., None]
    masked[-1] = False
    inputs = {**arrays, **{n: np.where(masked, -np.inf, arrays[n]) for n in case.sides}}
    for n in case.of_kind("probabilities"):
        left = np.where(masked, 0, arrays[n])
        inputs[n] = left / left.sum(-1, keepdims=True)
    if found := not_finite(case, inputs, "for a class masked with -inf on every side"):
        return found
    for name, gradient in case.gradients(inputs)[1].items():
        wrong = (masked & (gradient != 0)).reshape(len(gradient), -1).any(axis=1)
        what = "the gradient at a class masked with -inf must be 0"
        if found := locate(case, inputs, what, wrong, {f"gradient in {name}": gradient}):
            return found
    return None


def _labelled(case: Case, arrays: Arrays, leading: tuple[int, ...]) -> np.ndarray:
    """A class of each row that must not be masked: its label, or its likeliest one, or the first without labels."""
    kept = [arrays[n] for n in case.of_kind("labels")]
    kept += [np.argmax(arrays[n], axis=-1) for n in case.of_kind("probabilities")]
    return next((k for k in kept if k.shape == leading), np.zeros(leading, int))


def labels_outside(case: Case, arrays: Arrays) -> Outcome:
    """NaN, as value and as gradient, in the first row if a label of it is no class."""
    if not case.of_kind("labels"):
        return NotRun("none of the inputs are labels")
    what = "a label outside 0..K-1 must give NaN as value and as gradient"
    for name in case.of_kind("labels"):
        for label in (-1, -100, 1000, 2**31 - 1):
            changed = arrays[name].astype(np.int32)
            changed[(0,) * changed.ndim] = label
            inputs = {**arrays, name: changed}
            values, gradients = case.gradients(inputs)
            first_row = values.reshape(-1)[0]
            slope = next(iter(gradients.values()))[0]
            if not np.isnan(first_row) or not np.isnan(slope).any():
                shown = {"value": first_row, f"gradient in {case.sides[0]}": slope, "expected": "NaN"}
                return Finding(f"{what} ({name} of {label})", {n: a[0] for n, a in inputs.items()}, shown, 0)
    return None


def zero_at_equality(case: Case, arrays: Arrays) -> Outcome:
    """Equal sides give 0."""
    equal = equal_sides(case, arrays)
    if isinstance(equal, NotRun):
        return equal
    values = case.values(equal)
    wrong = ~(np.abs(values) <= case.tolerance * max(1.0, np.max(np.abs(case.values(arrays)))))
    return locate(case, equal, "equal sides must give 0", wrong, {"value": values, "expected": "0"})


def flat_at_equality(case: Case, arrays: Arrays) -> Outcome:
    """Equal sides give gradient 0."""
    equal = equal_sides(case, arrays)
    if isinstance(equal, NotRun):
        return equal
    for name, gradient in case.gradients(equal)[1].items():
        wrong = ~(np.abs(gradient) <= case.tolerance).reshape(len(gradient), -1).all(axis=1)
        shown = {f"gradient in {name}": gradient, "expected": "0 everywhere"}
        if found := locate(case, equal, "the gradient at equal sides must be 0", wrong, shown):
            return found
    return None


def non_negative(case: Case, arrays: Arrays) -> Outcome:
    """No value is below 0: of the inputs, ten times the inputs, and the first side paired with other rows."""
    larger = {n: 10 * arrays[n] for n in case.sides}
    paired = {n: arrays[n][::-1] for n in case.sides[:1]}
    for inputs in (arrays, {**arrays, **larger}, {**arrays, **paired}):
        values = case.values(inputs)
        wrong = ~(values >= -case.tolerance * max(1.0, np.max(np.abs(values))))
        shown = {"value": values, "expected": "at least 0"}
        if found := locate(case, inputs, "the value must not be negative", wrong, shown):
            return found
    return None
