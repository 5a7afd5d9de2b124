"""Checks of the parts of a step, on their kinds and shapes alone, so that what does not fit fails before jit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Batch, Metric, Model, Outputs, Term, Variables

_NO_ARRAYS = (list, str, bytes, bool, int, float, complex)
"""Types of Python that a field of a batch may not have."""


def check_kinds(student: Any, teacher: Any, term: Any) -> None:
    """Refuses parts of another kind than a step is made of.

    Args:
      student: The student.
      teacher: The teacher.
      term: The objective.

    Raises:
      TypeError: In a sentence that says how to make such a part.
    """
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, Model):
            how = (
                "models.no_teacher()" if model is None and name == "teacher" else "models.from_linen or models.from_nnx"
            )
            raise TypeError(f"the {name} must be a Model, but is {_kind(model)}: make one by {how}.")
    if not isinstance(term, Term):
        how = "objectives.from_logits(losses.kd), from_labels(...) or weighted(...)"
        raise TypeError(f"the objective must be a Term, but is {_kind(term)}: make one by {how}.")


def check_optimizer(optimizer: Any) -> None:
    """Refuses what is no optax transformation.

    Args:
      optimizer: The optimizer.

    Raises:
      TypeError: If it is none.
    """
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")) or isinstance(optimizer, type):
        raise TypeError(
            f"the optimizer must be an optax transformation, but is {_kind(optimizer)}: give one such as "
            "optax.adam(1e-3)."
        )


def check_decay(decay: Any, *, needed: bool = False) -> None:
    """Refuses decays of a moving average that do not average.

    Args:
      decay: The decay, a schedule of it, or None for no average.
      needed: Whether there must be an average, since it is the teacher.

    Raises:
      ValueError: If it is no number from 0 to 1 and no schedule, or missing.
    """
    if decay is None and needed:
        raise ValueError("the teacher is the moving average of the student, which needs a decay: give ema_decay=0.99.")
    if decay is None or callable(decay) or isinstance(decay, jax.core.Tracer):
        return
    number = np.asarray(decay)
    if number.shape or number.dtype.kind not in "iuf" or not 0 <= number <= 1:
        raise ValueError(f"ema_decay is {decay!r}: give a number from 0 to 1, such as 0.999.")


def check_average(average: Any) -> None:
    """Refuses a state without the moving average that a step moves or measures.

    Args:
      average: The state's `ema`.

    Raises:
      ValueError: If there is none.
    """
    if average is None:
        raise ValueError("the state has no moving average of the student: make it by init_state(..., ema=True).")


def check_unused(teacher_variables: Variables) -> None:
    """Refuses variables of a teacher where the moving average of the student is the teacher.

    Args:
      teacher_variables: The variables that were given.

    Raises:
      ValueError: If there are any.
    """
    if jax.tree.leaves(teacher_variables):
        raise ValueError(
            "the teacher is the moving average in the state, but a teacher's variables were given too: give None in "
            "their place."
        )


def check_metrics(metrics: Mapping[str, Metric] | None) -> Mapping[str, Metric]:
    """Refuses what is no set of metrics.

    Args:
      metrics: Name -> metric, or None.

    Returns:
      The metrics; none for None.

    Raises:
      TypeError: If it is no mapping to functions.
      ValueError: If one would take the place of the loss.
    """
    metrics = {} if metrics is None else metrics
    if not isinstance(metrics, Mapping) or not all(callable(metric) for metric in metrics.values()):
        raise TypeError(
            f"metrics must map names to functions, but are {_kind(metrics)}: give metrics.CLASSIFICATION, or "
            '{"accuracy": metrics.accuracy}.'
        )
    if "loss" in metrics:
        raise ValueError("a metric is called 'loss', which is the name of the objective's value: give it another name.")
    return metrics


def check_rows(batch: Batch) -> int | None:
    """Refuses batches that are no mapping of arrays, or have no rows, or fields of different numbers of rows.

    Args:
      batch: The batch, or its shapes.

    Returns:
      The number of rows, or None if no field has any.

    Raises:
      TypeError: If it is no mapping of arrays.
      ValueError: If there are no rows, or not the same number in all fields.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f'a batch maps names to arrays, but this is {_kind(batch)}: give {{"image": ..., "label": ...}}.'
        )
    rows: dict[str, int] = {}
    for name, x in batch.items():
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            if x.dtype == object or getattr(x.dtype, "kind", "") in "SU":
                raise TypeError(
                    f"the batch's field {name!r} holds text or objects ({x.dtype}): turn it into numbers with the "
                    "pipeline's `transform`, or leave it out."
                )
            if x.ndim:
                rows[name] = x.shape[0]
        elif isinstance(x, _NO_ARRAYS) or x is None or type(x).__module__.startswith("torch"):
            raise TypeError(f"the batch's field {name!r} is {_kind(x)}: give an array, np.asarray(...).")
    if 0 in rows.values():
        raise ValueError(f"the batch has no rows ({rows}): give at least one example.")
    if len(set(rows.values())) > 1:
        raise ValueError(f"the batch's fields have different numbers of rows ({rows}): give one for every example.")
    return next(iter(rows.values()), None)


def check_outputs(returned: Any, rows: int | None) -> Outputs:
    """Checks the result of a model's `apply`.

    Args:
      returned: What it returned.
      rows: Number of rows of the batch, or None if it is unknown.

    Returns:
      Its outputs.

    Raises:
      TypeError: If it is not (Outputs, state).
      ValueError: If logits have no axis of classes, or not one row for each example.
    """
    pair = isinstance(returned, tuple) and not isinstance(returned, Outputs) and len(returned) == 2
    if not pair or not isinstance(returned[0], Outputs):
        raise TypeError(
            f"its `apply` must return (Outputs, state), but returned {_kind(returned)}: see jaxkd.types.Model."
        )
    outputs = returned[0]
    if outputs.logits is not None and jnp.ndim(outputs.logits) < 2:
        raise ValueError(
            f"its logits have shape {jnp.shape(outputs.logits)}, without an axis of classes: return [B, K], or [B, 1] "
            "for one number each."
        )
    if outputs.logits is not None and rows is not None and outputs.logits.shape[0] != rows:
        raise ValueError(
            f"its logits have shape {outputs.logits.shape} for a batch of {rows} rows: give pictures [B, H, W, C] "
            "with an axis of channels, and return one row for each example."
        )
    return outputs


@contextlib.contextmanager
def explained(part: str, student: Outputs | None = None, teacher: Outputs | None = None) -> Iterator[None]:
    """Context manager that says in errors which part of a step they are about.

    Args:
      part: "student", "teacher" or "term".
      student: The student's outputs, for the term.
      teacher: The teacher's.

    Yields:
      Nothing.

    Raises:
      ValueError: For ValueErrors of the part; where two numbers of classes do not fit, with the function that cuts one.
      TypeError: For its TypeErrors.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        text = str(error).split("\n----", 1)[0].rstrip()
        kind = TypeError if isinstance(error, TypeError) else ValueError
        if part != "term":
            raise kind(f"the {part}: {text}") from error
        if (how := _other_classes(text, student, teacher)) is not None:
            raise ValueError(f"{text.rstrip('.')}; {how}") from error
        raise


def _other_classes(text: str, student: Outputs | None, teacher: Outputs | None) -> str | None:
    """Advice for an error that names the two numbers of classes."""
    logits = [out.logits for out in (student, teacher) if out is not None and out.logits is not None]
    if len(logits) < 2:
        return None
    own, others = (z.shape[-1] for z in logits)
    if own == others or not all(re.search(rf"\b{count}\b", text) for count in (own, others)):
        return None
    if others > own:
        return (
            f"or cut the teacher's to the student's {own}: models.select_classes(teacher, {own}) keeps the first, and "
            "models.select_classes(teacher, [...]) those that are listed."
        )
    return f"or cut the student's to the teacher's {others}: models.select_classes(student, {others})."


def _kind(x: Any) -> str:
    """Such as "the number 3" or "a function"."""
    if x is None or isinstance(x, int | float | str):
        return repr(x)
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if isinstance(x, np.ndarray | jax.Array):
        return f"an array of shape {x.shape}"
    name = getattr(x, "__name__", None)
    return f"the function {name}" if isinstance(x, Callable) and name else f"a {type(x).__name__}"  # type: ignore[arg-type]
