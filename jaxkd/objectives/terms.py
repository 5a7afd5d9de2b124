"""Terms: losses with what they own, projections and traced hyper-parameters, fed by the paths of their arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.keys import fold_name
from jaxkd.objectives.projections import Projection
from jaxkd.types import WHOLE, Batch, Outputs, PyTree, Schedule, Term, Variables, Whole

Loss: TypeAlias = Callable[..., jax.Array]
Weigh: TypeAlias = Callable[[Outputs, Outputs, Batch], jax.Array]
"""(student, teacher, batch) -> [B], the factor of each example's value; no gradient passes through it."""

Number: TypeAlias = ArrayLike | Schedule
"""A float or array (held in the term's state, so changing it never recompiles) or a schedule of the step."""


class Held(NamedTuple):
    """Hyper-parameters split by how they reach the loss: `arrays` through the state, the rest through `resolve`."""

    arrays: dict[str, np.ndarray | jax.Array]
    resolve: Callable[[Mapping[str, jax.Array], jax.Array], dict[str, Any]]


def hold(values: Mapping[str, Any], loss: Callable[..., Any] | None = None) -> Held:
    """Separates numbers, which become traced state, from schedules of the step and from static options.

    A float or an array of floats is a number; so is an integer where the loss's own default is a float. Callables are
    schedules. Booleans, integers, strings and None stay static.

    Args:
      values: Name -> value.
      loss: The function whose signature tells the names and which of them are floats.

    Returns:
      The numbers as float32 arrays, and a function (arrays, step) -> name -> value of all of them.

    Raises:
      TypeError: If the loss has no such keyword; the sentence lists those it has.
    """
    parameters = inspect.signature(loss).parameters if loss is not None else {}
    _check_keywords(values, loss, parameters)
    arrays, schedules, static = {}, {}, {}
    for name, value in values.items():
        wants_float = name in parameters and isinstance(parameters[name].default, float)
        if callable(value):
            schedules[name] = value
        elif isinstance(value, bool) or not _is_number(value, wants_float):
            static[name] = value
        else:
            arrays[name] = as_number(value)

    def resolve(state: Mapping[str, jax.Array], step: jax.Array) -> dict[str, Any]:
        return {**static, **state, **{name: schedule(step) for name, schedule in schedules.items()}}

    return Held(arrays, resolve)


def as_number(value: Any) -> np.ndarray | jax.Array:
    """A number in float32 on the host, so that making a term starts no back end; a traced one as it is."""
    return value.astype(jnp.float32) if isinstance(value, jax.core.Tracer) else np.asarray(value, np.float32)


def _is_number(value: Any, wants_float: bool) -> bool:
    if isinstance(value, int):
        return wants_float
    return isinstance(value, (float, np.ndarray, np.floating, jax.Array)) and jnp.issubdtype(
        jnp.asarray(value).dtype, jnp.floating
    )


def _check_keywords(values: Mapping[str, Any], loss: Callable[..., Any] | None, parameters: Mapping[str, Any]) -> None:
    if loss is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    keywords = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in values:
        if name not in parameters:
            raise TypeError(
                f"{getattr(loss, '__name__', 'the loss')} has no hyper-parameter {name!r}: it takes "
                f"{', '.join(keywords) or 'none'}."
            )


def pick(outputs: Outputs, name: str, whose: str) -> Any:
    """The feature of that name, or a sentence that lists the names there are.

    Args:
      outputs: A model's outputs, or their abstract shapes.
      name: Name of the feature; "logits" means the logits.
      whose: "student" or "teacher", for the message.

    Returns:
      Array [B, ...].

    Raises:
      ValueError: If the model has no feature of that name.
    """
    if name == "logits" and outputs.logits is not None:
        return outputs.logits
    if name not in outputs.features:
        if outputs.logits is None:
            raise ValueError(f"this term reads {name!r} of the {whose}, but there is no {whose}: give one to the step.")
        known = ", ".join(f"{k} {tuple(v.shape)}" for k, v in outputs.features.items()) or "none"
        raise ValueError(f"the {whose} has no feature {name!r}: choose one of those it has: {known}.")
    return outputs.features[name]


def last_layer(outputs: Outputs, whose: str) -> Any:
    """What a model says its last layer is, or a sentence on how to make it say so."""
    if outputs.head is None:
        raise ValueError(f"the {whose} does not tell its last layer: give the step models.with_head({whose}).")
    return outputs.head


def read_field(batch: Batch, name: str) -> Any:
    """The field of that name, or a sentence that lists those there are."""
    if name not in batch:
        raise ValueError(f"the batch has no field {name!r}: it has {', '.join(sorted(batch))}; add it in the pipeline.")
    return batch[name]


def _mean(values: jax.Array, batch: Batch, where: str | None) -> jax.Array:
    """Takes the one mean over examples, with the batch's padding mask and the term's own.

    The means of micro-batches are scaled so that their own mean is that of the whole batch.
    """
    if values.ndim == 0:
        _check_coupled(_weight(values, batch, where), batch.get(WHOLE))
        return values
    return mean_over(values, lambda weight: numerics.masked_mean(values, weight), batch, where)


def mean_over(like: jax.Array, mean: Callable[[Any], jax.Array], batch: Batch, where: str | None) -> jax.Array:
    """A weighted mean over examples or tokens, scaled in a micro-batch so that all of them give the whole batch's.

    Args:
      like: Array [B, ...] of the examples or tokens, for the shape of the weights.
      mean: (weights, whose axes broadcast against `like`, or None) -> scalar, sum(w v) / sum(w).
      batch: The batch; its field `mask`, if there is one, counts as a weight.
      where: Field of the batch with the term's own weights, over leading axes; none if None.

    Returns:
      Scalar.
    """
    weight, whole = _weight(like, batch, where), batch.get(WHOLE)
    if weight is None or whole is None:
        return mean(weight)
    usual = jnp.mean(_weight(like, whole.batch, where))
    return mean(weight) * jnp.mean(weight) / jnp.where(usual > 0, usual, 1)


def _weight(values: jax.Array, batch: Batch, where: str | None) -> Any:
    """Product of the masks that there are, with axes appended to broadcast against the values; or None."""
    masks = [batch["mask"]] if "mask" in batch else []
    masks += [read_field(batch, where)] if where else []
    return math.prod(numerics.per_example(m, values) for m in masks) if masks else None


def _check_coupled(weight: Any, whole: Whole | None) -> None:
    if weight is not None:
        raise ValueError(
            "this loss couples the batch and returns a scalar, so a mask over examples cannot be applied to it: "
            "give it whole batches (drop the remainder) and no `where`."
        )
    if whole is not None and not whole.approximate:
        raise ValueError(
            "this loss couples the batch, so its gradient is not the mean of those of micro-batches: use "
            "micro_batches=1, or approximate=True for the loss within each micro-batch."
        )


def stateful(
    loss: Callable[..., tuple[jax.Array, Mapping[str, Any], Mapping[str, jax.Array]]],
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
      where: Field of the batch [B] with the examples' weights; all of them count alike if None.
      weigh: Factor of each example's value (see `jaxkd.objectives.adaptive`); 1 if None.
      couples: Whether the values depend on each other although there is one an example: by a batch norm or a memory.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term; its state holds the numbers beside what `init` put there.

    Raises:
      ValueError: If a path has another form.
    """
    _check_paths(paths)
    held = hold(hyper, hyper_of or loss)

    def begin(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        params, state = init(key, *_read(paths, student, teacher, batch))
        return Variables(params, {**{name: jnp.asarray(v) for name, v in held.arrays.items()}, **state})

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        params, state = variables
        numbers = held.resolve({name: state[name] for name in held.arrays}, step)
        arguments = _read(paths, student, teacher, batch)
        values, changed, metrics = loss(Variables(params, state), key, *arguments, **numbers)
        if weigh is not None:
            factor = jax.lax.stop_gradient(weigh(student, teacher, batch))
            values = _weigh(values, factor)
        return _mean(values, batch, where), {**state, **changed}, dict(metrics)

    return Term(begin, apply, couples)


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
      where: Field of the batch [B] with the examples' weights; all of them count alike if None.
      weigh: Factor of each example's value (see `jaxkd.objectives.adaptive`); 1 if None.
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


def from_outputs(
    loss: Loss, *paths: str | Sequence[str], where: str | None = None, weigh: Weigh | None = None, **hyper: Any
) -> Term:
    """Term of any loss without parameters of its own; a path says where each of its arguments comes from.

    `from_outputs(losses.dkd, "student.logits", "teacher.logits", "batch.label", beta=8.0)`

    Args:
      loss: (*arguments, **hyper) -> [B, ...], or a scalar if it couples the batch.
      *paths: "student.<feature>", "teacher.<feature>" (`logits` is one of them) or "batch.<field>", in the order of
        the loss's arguments; a sequence of paths gives a list of arrays.
      where: Field of the batch [B] with the examples' weights (boolean or not); all of them count alike if None.
      weigh: Factor of each example's value (see `jaxkd.objectives.adaptive`); 1 if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.

    Raises:
      ValueError: If a path has another form.
    """
    return trained(
        lambda params, *arguments, **hyper: loss(*arguments, **hyper),
        *paths,
        init=lambda key, *arguments: {},
        hyper_of=loss,
        where=where,
        weigh=weigh,
        **hyper,
    )


def features_of(whose: str, names: Sequence[str]) -> list[str]:
    """Paths of several features of one side, "student" or "teacher": together one argument of a loss, a list."""
    return [f"{whose}.{name}" for name in names]


def _check_paths(paths: Sequence[str | Sequence[str]]) -> None:
    for path in (p for given in paths for p in ([given] if isinstance(given, str) else given)):
        if path.split(".", 1)[0] not in ("student", "teacher", "batch") or "." not in path:
            raise ValueError(f"{path!r} is no path: write student.<feature>, teacher.<feature> or batch.<field>.")


def _read(paths: Sequence[str | Sequence[str]], student: Outputs, teacher: Outputs, batch: Batch) -> list[Any]:
    """What stands at the paths, a list where there is a sequence of them."""

    def read(path: str | Sequence[str]) -> Any:
        if not isinstance(path, str):
            return [read(p) for p in path]
        whose, name = path.split(".", 1)
        if whose == "batch":
            return read_field(batch, name)
        return pick(student if whose == "student" else teacher, name, whose)

    return [read(path) for path in paths]


def _weigh(values: jax.Array, factor: jax.Array) -> jax.Array:
    if values.ndim == 0:
        raise ValueError(
            "this loss couples the batch and returns a scalar, so its examples cannot be weighed: leave `weigh` out."
        )
    return values * numerics.per_example(factor.astype(values.dtype), values)


def from_labels(
    loss: Loss, *, label: str = "label", where: str | None = None, weigh: Weigh | None = None, **hyper: Any
) -> Term:
    """Term of a loss between the student's logits and the batch's labels.

    Args:
      loss: (logits [B, ..., K], labels, **hyper) -> [B, ...].
      label: Field of the batch that holds the labels, integers [B, ...] or probabilities [B, ..., K].
      where: Field of the batch [B] that says which examples have a label (boolean, or a weight); all of them if None.
      weigh: Factor of each example's value (see `jaxkd.objectives.adaptive`); 1 if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.
    """
    return from_outputs(loss, "student.logits", f"batch.{label}", where=where, weigh=weigh, **hyper)


def from_logits(loss: Loss, *, where: str | None = None, weigh: Weigh | None = None, **hyper: Any) -> Term:
    """Term of a loss between the student's and the teacher's logits.

    Args:
      loss: (student_logits [B, ..., K], teacher_logits [B, ..., K], **hyper) -> [B, ...] or a scalar.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      weigh: Factor of each example's value (see `jaxkd.objectives.adaptive`); 1 if None.
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
    project: Projection | None = None,
    project_teacher: Projection | None = None,
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
      where: Field of the batch [B] with the examples' weights; all of them if None.
      weigh: Factor of each example's value (see `jaxkd.objectives.adaptive`); 1 if None.
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
