"""Checks that compare evaluations: invariances, rows and batches, JAX's transformations, finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.testing.case import Arrays, Case, Check, cast, disagreement, each, equal_sides, first, locate, rows, settings
from jaxkd.testing.outcome import Finding, NotRun, Outcome

Changes: TypeAlias = Callable[[Case, Arrays], "Iterator[tuple[str, Arrays]] | NotRun"]
"""(case, arrays) -> descriptions of changes that must not matter, each with the changed inputs."""


def invariant(what: str, changes: Changes) -> Check:
    """Check that no change alters the value."""

    def check(case: Case, arrays: Arrays) -> Outcome:
        changed = changes(case, arrays)
        if isinstance(changed, NotRun):
            return changed
        before = ("value", case.values(arrays))
        return first(
            disagreement(case, arrays, what, before, (f"after {done}", case.values(inputs)), case.tolerance)
            for done, inputs in changed
        )

    return check


def swapped_sides(case: Case, arrays: Arrays) -> Iterator[tuple[str, Arrays]] | NotRun:
    """The first two sides in each other's place."""
    equal = equal_sides(case, arrays)
    if isinstance(equal, NotRun):
        return equal
    one, other = case.sides[:2]
    return iter([("swapping the sides", {**arrays, one: arrays[other], other: arrays[one]})])


def per_side(done: str, *changes: Callable[[np.ndarray], np.ndarray]) -> Changes:
    """Each change to each side alone."""
    return lambda case, arrays: (
        (f"{done} {n}", {**arrays, n: change(arrays[n])}) for change in changes for n in case.sides
    )


def jointly(done: str, change: Callable[[np.ndarray], np.ndarray]) -> Changes:
    """One change to all sides."""
    return lambda case, arrays: iter([(f"{done} all sides", {**arrays, **{n: change(arrays[n]) for n in case.sides}})])


def permuted_classes(case: Case, arrays: Arrays) -> Iterator[tuple[str, Arrays]]:
    """The classes of all inputs in another order, labels renamed accordingly; sides of one width share one order."""

    def order(classes: int) -> np.ndarray:
        return np.random.default_rng(0).permutation(classes)

    moved = {n: arrays[n] for n in (*case.sides, *case.of_kind("probabilities"))}
    inputs = {**arrays, **{n: a[..., order(a.shape[-1])] for n, a in moved.items()}}
    renamed = np.argsort(order(arrays[case.sides[0]].shape[-1]))
    inputs |= {n: renamed.astype(arrays[n].dtype)[arrays[n]] for n in case.of_kind("labels")}
    yield "reordering the classes", inputs


def shift(array: np.ndarray) -> np.ndarray:
    """Adds one constant to each row."""
    return array + 3 * _random(*array.shape[:-1], 1)


def rotate(array: np.ndarray) -> np.ndarray:
    """Multiplies the last axis by an orthogonal matrix."""
    return array @ np.linalg.qr(_random(array.shape[-1], array.shape[-1]))[0]


def _random(*shape: int) -> np.ndarray:
    """The same standard normal numbers every time."""
    return np.random.default_rng(0).standard_normal(shape)


def batch_permutation(case: Case, arrays: Arrays) -> Outcome:
    """Values follow their rows; a scalar stays."""
    order = np.random.default_rng(0).permutation(rows(arrays))
    before, after = case.values(arrays), case.values(each(arrays, lambda a: a[order]))
    if after.ndim and len(after) == len(order):
        after = after[np.argsort(order)]
    what = "permuting the batch must permute the values, or leave a scalar as it is"
    moved = ("in the permuted batch", after)
    return disagreement(case, arrays, what, ("value", before), moved, case.tolerance, whole=True)


def independent_rows(case: Case, arrays: Arrays) -> Outcome:
    """Changing one row changes only that row's value."""
    what = "changing row 0 must leave the values of the other rows alone"
    before = case.values(arrays)
    if before.ndim == 0 or len(before) != rows(arrays):
        wanted = f"one value for each of {rows(arrays)} rows"
        return Finding(what, {}, {"shape": before.shape, "expected": wanted})
    changed = each(arrays, lambda a: np.concatenate([a[1:2], a[1:]]))
    changed |= {n: np.concatenate([1 - 2 * arrays[n][:1], arrays[n][1:]]) for n in case.sides}
    after = np.concatenate([before[:1], case.values(changed)[1:]])
    later = ("after row 0 changed", after)
    return disagreement(case, arrays, what, ("value", before), later, case.tolerance, whole=True)


def _means(case: Case, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the batch, and the mean of the means over its halves."""
    half = rows(arrays) // 2
    halves = each(arrays, lambda a: a[:half]), each(arrays, lambda a: a[half:])
    return np.asarray(np.mean(case.values(arrays))), np.asarray(np.mean([np.mean(case.values(h)) for h in halves]))


def accumulation(case: Case, arrays: Arrays) -> Outcome:
    """Mean over micro-batches equal to that over the batch."""
    what = "the mean over two half batches must be the mean over the batch"
    whole, halves = _means(case, arrays)
    return disagreement(
        case, arrays, what, ("mean of the batch", whole), ("mean of its halves", halves), case.tolerance
    )


def coupling(case: Case, arrays: Arrays) -> Outcome:
    """The batch's value differs from the mean of its halves', as is declared."""
    whole, halves = _means(case, arrays)
    if abs(whole - halves) > 1e-6 * max(abs(whole), abs(halves)):
        return None
    what = "a loss declared to couple the batch must not be a mean over rows: let it return one value for each row"
    return Finding(what, {}, {"value": whole, "mean of two half batches": halves})


def leading_axes(case: Case, arrays: Arrays) -> Outcome:
    """Inputs [2, B/2, ...] give what [B, ...] give."""
    B = rows(arrays)
    flat, folded = case.values(arrays), case.values(each(arrays, lambda a: a.reshape(2, B // 2, *a.shape[1:])))
    what = "a second leading axis, [2, B/2, ...] for [B, ...], must not change the values"
    wanted = (2, B // 2, *flat.shape[1:])
    if flat.ndim == 0 or folded.shape != wanted:
        return Finding(what, {}, {"shape": folded.shape, "expected": wanted})
    unfolded = ("with two leading axes", folded.reshape(flat.shape))
    return disagreement(case, arrays, what, ("value", flat), unfolded, case.tolerance, whole=True)


def jit(case: Case, arrays: Arrays) -> Outcome:
    """Same value compiled as JAX usually does, and op by op."""
    with settings(np.float64):
        inputs = {n: jnp.asarray(a) for n, a in arrays.items()}
        eager, compiled = (np.asarray(run(inputs), np.float64) for run in (case.call, case.jitted))
    what = "jit must not change the value"
    return disagreement(case, arrays, what, ("value", eager), ("under jit", compiled), case.tolerance)


def vmap(case: Case, arrays: Arrays) -> Outcome:
    """Same values under vmap over two batches."""
    return _mapped(case, arrays, "vmap", case.vmapped)


def pmap(case: Case, arrays: Arrays) -> Outcome:
    """Same values under pmap over two batches; not run with one device, which the report says."""
    if jax.local_device_count() < 2:
        return NotRun("JAX sees one device here; jax_num_cpu_devices makes more of a CPU")
    return _mapped(case, arrays, "pmap", case.pmapped)


def _mapped(case: Case, arrays: Arrays, name: str, run: Callable[[Any], jax.Array]) -> Outcome:
    """Compares one mapped call over the batch and its reverse with two plain calls."""
    what = f"{name} over two batches must give each of them its own value"
    batches = (arrays, each(arrays, lambda a: a[::-1]))
    with settings(np.float64):
        mapped = np.asarray(
            run(cast({n: np.stack([b[n] for b in batches]) for n in case.names}, np.float64)), np.float64
        )
    return first(
        disagreement(case, batch, what, ("value", case.values(batch)), (f"under {name}", got), case.tolerance)
        for batch, got in zip(batches, mapped, strict=True)
    )


def derivative(sides: slice) -> Check:
    """Check that the derivative along a random direction, in each row of each side, is that of central differences."""

    def check(case: Case, arrays: Arrays) -> Outcome:
        if case.shape(arrays).dtype != np.float64:
            return NotRun("finite differences need float64, and the loss does not stay in it")
        values, gradients = case.gradients(arrays)
        for name in case.sides[sides]:
            direction = _random(*arrays[name].shape)
            products = (gradients[name] * direction).reshape(rows(arrays), -1)
            exact = products.sum(axis=1)
            allowed = 1e-5 * np.abs(products).sum(axis=1) + 1e-8 * (1 + np.max(np.abs(values)))
            numeric = np.array([_difference(case, arrays, name, row, direction, 1e-5) for row in range(rows(arrays))])
            for row in np.flatnonzero(~(np.abs(numeric - exact) <= allowed)):
                # A kink of the loss within the step disagrees too, but not a hundred times closer.
                numeric[row] = _difference(case, arrays, name, int(row), direction, 1e-7)
            what = f"the derivative in {name} along a random direction must be that of finite differences"
            wrong = ~(np.abs(numeric - exact) <= allowed)
            if found := locate(case, arrays, what, wrong, {"derivative": exact, "finite differences": numeric}):
                return found
        return None

    return check


def _difference(case: Case, arrays: Arrays, name: str, row: int, direction: np.ndarray, step: float) -> float:
    """Central difference of the sum of the values along `direction` in one row of one side."""
    move = np.zeros_like(direction)
    move[row] = step * direction[row]
    up, down = (case.values({**arrays, name: arrays[name] + sign * move}) for sign in (1, -1))
    return float(np.sum(up - down)) / (2 * step)
