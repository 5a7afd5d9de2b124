"""`check_loss` and `check_no_teacher_gradient`: run checks, make counter-examples small, report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.testing.case import Arrays, Case
from jaxkd.testing.outcome import Finding, NotRun, Outcome, Report, Result
from jaxkd.testing.properties import ALWAYS, Property
from jaxkd.types import PyTree, leaf_name

_CHUNKS = 16


def check_loss(
    fn: Callable[..., jax.Array],
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    properties: Sequence[Property] = ALWAYS,
    kinds: Mapping[str, str] | None = None,
) -> Report:
    """Checks the declared properties of a loss on example inputs, and shows a small counter-example where one fails.

    `assert report, str(report)` is the whole of a test. The same inputs always give the same report.

    Args:
      fn: The loss, a pure function of the inputs; bind hyper-parameters with `functools.partial`.
      inputs: Example arrays, all [B, ...] with B >= 2: a tuple for positional or a mapping for keyword arguments, the
        student's side first, the teacher's second. At most eight rows are used. Values must be finite. A list of
        arrays of one shape stands for an argument that takes several layers.
      properties: `LOGITS`, `FEATURES`, `COUPLED`, `ALWAYS`, ... and single properties that should hold.
      kinds: Name of an argument -> "side" (what models put out; default of floating inputs), "probabilities" (soft
        labels), "labels" (classes; default of integers) or "other" (weights and masks). Only sides are varied.

    Returns:
      The report, true if nothing failed.

    Raises:
      ValueError: If the inputs do not fit together, or the loss does not return one array.
    """
    case = Case(fn, inputs, kinds)
    return Report(_subject(fn), tuple(Result(p.name, _outcome(case, p)) for p in properties))


def check_no_teacher_gradient(step_loss: Callable[[PyTree], jax.Array], teacher_variables: PyTree) -> Report:
    """Checks that no gradient reaches the teacher through a step's loss.

    Args:
      step_loss: Teacher variables -> scalar, everything else bound.
      teacher_variables: The point at which the gradient is taken; floating leaves are differentiated.

    Returns:
      The report, true if the gradient is exactly 0 everywhere.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(teacher_variables)
    leaves = [leaf for _, leaf in paths]
    floating = {i: leaf for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)}

    def loss(moving: dict[int, jax.Array]) -> jax.Array:
        return step_loss(jax.tree.unflatten(treedef, [moving.get(i, leaf) for i, leaf in enumerate(leaves)]))

    gradients = jax.jit(jax.grad(loss))(floating)
    largest = {i: float(np.max(np.abs(np.asarray(g, np.float64)), initial=0)) for i, g in gradients.items()}
    outcome: Outcome = None if floating else NotRun("the teacher has no floating variables")
    if wrong := [i for i, size in largest.items() if size != 0]:
        worst = max(wrong, key=lambda i: np.nan_to_num(largest[i], nan=np.inf))
        path = leaf_name(paths[worst][0])
        what = f"the gradient in all {len(floating)} leaves of the teacher must be 0, but is not in {len(wrong)}"
        outcome = Finding(what, {}, {f"largest |gradient| in {path}": largest[worst], "expected": 0.0})
    return Report(_subject(step_loss), (Result("no teacher gradient", outcome),))


def _subject(fn: Callable[..., Any]) -> str:
    """The function's name, with bound hyper-parameters."""
    if isinstance(fn, functools.partial):
        bound = ", ".join(f"{k}={v}" if len(str(v)) < 40 else f"{k}=..." for k, v in fn.keywords.items())
        return f"{_subject(fn.func)}({bound})"
    return getattr(fn, "__name__", type(fn).__name__)


def _outcome(case: Case, prop: Property) -> Outcome:
    """The outcome of one check; a loss that raises has failed it."""
    try:
        outcome = prop.check(case, case.arrays)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        return Finding(f"it raised {type(error).__name__}: {text}", {}, {})
    return _shrink(case, prop, outcome) if isinstance(outcome, Finding) and outcome.rows else outcome


def _shrink(case: Case, prop: Property, found: Finding) -> Finding:
    """Keeps each simplification under which the same check still fails: fewer rows, rounder numbers, zeros."""
    arrays = case.arrays

    def attempt(simpler: Arrays) -> None:
        nonlocal arrays, found
        try:
            outcome = prop.check(case, simpler)
        except Exception:
            return  # the loss has no value there, so that the simpler inputs show nothing
        if isinstance(outcome, Finding) and outcome.rows and outcome.what == found.what:
            arrays, found = simpler, outcome

    for size in (4, 2) if found.row is None else ():
        attempt({n: a[:size] for n, a in arrays.items()})
    for decimals in (1, 0):
        attempt({**arrays, **{n: np.round(arrays[n], decimals) + 0.0 for n in case.sides}})
    for name in case.sides:
        size = arrays[name].size if found.row is None else arrays[name][0].size
        for chunk in np.array_split(np.arange(size), min(size, _CHUNKS)):
            zeroed = arrays[name].copy()
            (zeroed if found.row is None else zeroed[found.row]).reshape(-1)[chunk] = 0
            attempt({**arrays, name: zeroed})
    return found
