"""Makers of terms: a loss, the paths of its arguments, its hyper-parameters, and the parameters and state it owns."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.keys import fold_name
from jaxkd.objectives.hyper import hold
from jaxkd.objectives.ignored import ignoring, ignoring_loss
from jaxkd.objectives.means import counting, mean_of, only_counted, weighed
from jaxkd.objectives.networks.core import Network
from jaxkd.objectives.paths import check_paths, read_paths
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables

Loss: TypeAlias = Callable[..., jax.Array]
"""(*arguments, **hyper) -> values [B, ...], or a scalar if it couples the batch."""

Weigh: TypeAlias = Callable[[Outputs, Outputs, Batch], jax.Array]
"""(student, teacher, batch) -> [B], the factor of each example's value; no gradient passes through it."""

Result: TypeAlias = tuple[jax.Array, Mapping[str, Any], Mapping[str, jax.Array]]
"""Values [B, ...] or a scalar, changed entries of the state, metrics: result of a loss that `stateful` takes."""


def from_labels(
    loss: Loss,
    *,
    label: str = "label",
    ignore: float | None = None,
    where: str | None = None,
    weigh: Weigh | None = None,
    **hyper: Any,
) -> Term:
    """Term of a loss between the student's logits and the batch's labels.

    Args:
      loss: (logits [B, ..., K], labels, **hyper) -> [B, ...].
      label: Field of the batch that holds the labels, integers [B, ...] or probabilities [B, ..., K].
      ignore: Label of what does not count in the mean, such as 255, -100 or -1; none if None.
      where: Field of the batch [B] that says which examples have a label (boolean, or a weight); all of them if None.
      weigh: Function that gives a factor for each example's value, such as `teacher_confidence()`; 1 if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.
    """
    paths = ("student.logits", f"batch.{label}")
    return from_outputs(loss, *paths, ignore=ignore, where=where, weigh=weigh, **hyper)


def from_logits(loss: Loss, *, where: str | None = None, weigh: Weigh | None = None, **hyper: Any) -> Term:
    """Term of a loss between the student's and the teacher's logits.

    Args:
      loss: (student_logits [B, ..., K], teacher_logits [B, ..., K], **hyper) -> [B, ...] or a scalar.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      weigh: Function that gives a factor for each example's value, such as `teacher_confidence()`; 1 if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.
    """
    return from_outputs(loss, "student.logits", "teacher.logits", where=where, weigh=weigh, **hyper)


def from_features(
    loss: Loss,
    *,
    student: str,
    teacher: str,
    project: Network | None = None,
    project_teacher: Network | None = None,
    pool: bool = False,
    where: str | None = None,
    weigh: Weigh | None = None,
    **hyper: Any,
) -> Term:
    """Term of a loss between one feature of the student and one of the teacher.

    Args:
      loss: (student_feature [B, ...], teacher_feature [B, ...], **hyper) -> [B] or a scalar.
      student: Name of the student's feature.
      teacher: Name of the teacher's feature.
      project: Map from the student's feature to the teacher's shape, trained with the student; none if None.
      project_teacher: Map of the teacher's feature, trained too where a method does that; none if None.
      pool: Whether the larger of two maps of different sizes is averaged to the size of the smaller one first.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      weigh: Function that gives a factor for each example's value, such as `teacher_confidence()`; 1 if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term whose parameters are the projections', {"student": ..., "teacher": ...}, and whose state holds the numbers.
    """
    sides = {side: p for side, p in (("student", project), ("teacher", project_teacher)) if p is not None}

    def init(key: jax.Array, s: Any, t: Any) -> PyTree:
        s, t = jax.eval_shape(numerics.match_resolution, s, t) if pool else (s, t)
        shapes = {"student": (tuple(s.shape), tuple(t.shape)), "teacher": (tuple(t.shape), tuple(s.shape))}
        return {side: p.init(fold_name(key, side), *shapes[side]) for side, p in sides.items()}

    def call(params: PyTree, s: jax.Array, t: jax.Array, **hyper: Any) -> jax.Array:
        s, t = numerics.match_resolution(s, t) if pool else (s, t)
        moved = {side: p.apply(params[side], {"student": s, "teacher": t}[side]) for side, p in sides.items()}
        return loss(moved.get("student", s), moved.get("teacher", t), **hyper)

    paths = (f"student.{student}", f"teacher.{teacher}")
    couples = any(p.couples for p in sides.values())
    return trained(call, *paths, init=init, hyper_of=loss, where=where, weigh=weigh, couples=couples, **hyper)


def from_outputs(
    loss: Loss,
    *paths: str | Sequence[str],
    ignore: float | None = None,
    where: str | None = None,
    weigh: Weigh | None = None,
    **hyper: Any,
) -> Term:
    """Term of any loss without parameters of its own; a path says where each of its arguments comes from.

    `from_outputs(losses.dkd, "student.logits", "teacher.logits", "batch.label", beta=8.0)`

    Args:
      loss: (*arguments, **hyper) -> [B, ...], or a scalar if it couples the batch.
      *paths: "student.<feature>", "teacher.<feature>" (`logits` is one of them) or "batch.<field>", in the order of
        the loss's arguments; a sequence of paths gives a list of arrays.
      ignore: Label of what does not count in the mean, such as 255, -100 or -1; none if None. The labels are the one
        field of the batch among the paths, or the loss's argument `labels`.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      weigh: Function that gives a factor for each example's value, such as `teacher_confidence()`; 1 if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.

    Raises:
      TypeError: If the loss takes other arguments than the paths give.
      ValueError: If a path has another form.
    """
    _check_arguments(loss, paths)
    bound = ignoring_loss(loss, ignore)
    term = trained(
        lambda params, *arguments, **hyper: bound(*arguments, **hyper),
        *paths,
        init=lambda key, *arguments: {},
        hyper_of=loss,
        where=where,
        weigh=weigh,
        **hyper,
    )
    return term if ignore is None else ignoring(term, loss, paths, ignore, hyper)


def _check_arguments(loss: Loss, paths: Sequence[str | Sequence[str]]) -> None:
    """Raises TypeError if a loss wants other arguments than the paths give, as far as its signature tells."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):  # of functions in C
        return
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names, needed = [p.name for p in given], [p.name for p in given if p.default is p.empty]
    labels = [path for name, path in zip(names, paths, strict=False) if name == "labels" and not _of_batch(path)]
    many = len(paths) > len(names) and not any(p.kind == p.VAR_POSITIONAL for p in parameters)
    if labels or many or len(paths) < len(needed):
        name = getattr(loss, "__name__", "the loss")
        raise TypeError(
            f"{name} takes {', '.join(needed) or 'nothing'}, but is given {', '.join(map(str, paths)) or 'nothing'}: "
            f"use from_labels for logits and labels, or from_outputs({name}, ...) with one path such as "
            "'student.logits', 'teacher.logits' or 'batch.label' for each argument."
        )


def _of_batch(path: str | Sequence[str]) -> bool:
    return isinstance(path, str) and path.startswith("batch.")


def trained(
    loss: Loss,
    *paths: str | Sequence[str],
    init: Callable[..., PyTree],
    hyper_of: Callable[..., Any] | None = None,
    where: str | None = None,
    weigh: Weigh | None = None,
    couples: bool = False,
    **hyper: Any,
) -> Term:
    """Term of a loss with parameters of its own, which the optimizer updates with the student's.

    Args:
      loss: (params, *arguments, **hyper) -> [B, ...], or a scalar if it couples the batch.
      *paths: Where each argument comes from, as in `from_outputs`.
      init: (key, *arguments) -> params; sees shapes only.
      hyper_of: The function whose signature tells the hyper-parameters' names, if it is not `loss`.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      weigh: Function that gives a factor for each example's value, such as `teacher_confidence()`; 1 if None.
      couples: As in `stateful`.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term; its state holds the numbers.

    Raises:
      ValueError: If a path has another form.
    """

    def call(variables: Variables, key: jax.Array, *arguments: Any, **hyper: Any) -> tuple[jax.Array, dict, dict]:
        return loss(variables.params, *arguments, **hyper), {}, {}

    return stateful(
        call,
        *paths,
        init=lambda key, *arguments: Variables(init(key, *arguments), {}),
        hyper_of=hyper_of or loss,
        where=where,
        weigh=weigh,
        couples=couples,
        **hyper,
    )


def stateful(
    loss: Callable[..., Result],
    *paths: str | Sequence[str],
    init: Callable[..., Variables],
    hyper_of: Callable[..., Any] | None = None,
    where: str | None = None,
    weigh: Weigh | None = None,
    couples: bool = False,
    **hyper: Any,
) -> Term:
    """Term of a loss that owns parameters, a state that it changes itself (banks, queues), or randomness.

    Args:
      loss: (variables, key, *arguments, **hyper) -> (values [B, ...] or a scalar, changed entries of the state,
        metrics); the variables are those that `init` made.
      *paths: Where each argument comes from, as in `from_outputs`.
      init: (key, *arguments) -> Variables(params, state) with a dict as state; sees shapes only.
      hyper_of: The function whose signature tells the hyper-parameters' names, if it is not `loss`.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      weigh: Function that gives a factor for each example's value, such as `teacher_confidence()`; 1 if None.
      couples: Whether the values depend on each other although there is one per example: by a batch norm or a memory.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term; its state holds the numbers and the entries that `init` put there.

    Raises:
      ValueError: If a path has another form.
    """
    check_paths(paths)
    held = hold(hyper, hyper_of or loss)

    def begin(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        params, state = init(key, *read_paths(paths, student, teacher, batch))
        return Variables(params, {**{name: jnp.asarray(v) for name, v in held.arrays.items()}, **state})

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        params, state = variables
        numbers = held.resolve({name: state[name] for name in held.arrays}, step)
        counts = counting(batch, where)
        arguments = only_counted(read_paths(paths, student, teacher, batch), counts)
        values, changed, metrics = loss(Variables(params, state), key, *arguments, **numbers)
        if weigh is not None:
            factor = jax.lax.stop_gradient(only_counted(weigh(student, teacher, batch), counts))
            values = weighed(values, factor)
        if counts is not None:  # a batch in which nothing counts leaves memories as they are
            old = {name: state[name] for name in changed}
            changed = jax.tree.map(functools.partial(jnp.where, jnp.any(counts)), dict(changed), old)
        return mean_of(values, batch, where), {**state, **changed}, dict(metrics)

    return Term(begin, apply, couples)
