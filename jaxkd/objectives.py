"""Terms: losses with what they own (projections, traced temperatures and weights), and their weighted sum."""

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
from jaxkd.types import Batch, Outputs, PyTree, Schedule, Term, Variables

Loss: TypeAlias = Callable[..., jax.Array]
Number: TypeAlias = ArrayLike | Schedule
"""A float or array (held in the term's state, so changing it never recompiles) or a schedule of the step."""


class Held(NamedTuple):
    """Hyper-parameters split by how they reach the loss: `arrays` through the state, the rest through `resolve`."""

    arrays: dict[str, np.ndarray]
    resolve: Callable[[Mapping[str, jax.Array], jax.Array], dict[str, Any]]


def hold(values: Mapping[str, Any], loss: Loss | None = None) -> Held:
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
            arrays[name] = np.asarray(value, np.float32)

    def resolve(state: Mapping[str, jax.Array], step: jax.Array) -> dict[str, Any]:
        return {**static, **state, **{name: schedule(step) for name, schedule in schedules.items()}}

    return Held(arrays, resolve)


def _is_number(value: Any, wants_float: bool) -> bool:
    if isinstance(value, int):
        return wants_float
    return isinstance(value, (float, np.ndarray, np.floating, jax.Array)) and jnp.issubdtype(
        jnp.asarray(value).dtype, jnp.floating
    )


def _check_keywords(values: Mapping[str, Any], loss: Loss | None, parameters: Mapping[str, Any]) -> None:
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


def _field(batch: Batch, name: str) -> Any:
    if name not in batch:
        raise ValueError(f"the batch has no field {name!r}: it has {', '.join(sorted(batch))}; add it in the pipeline.")
    return batch[name]


def _mean(values: jax.Array, batch: Batch, where: str | None) -> jax.Array:
    """Takes the one mean over examples, with the batch's padding mask and the term's own."""
    masks = [batch["mask"]] if "mask" in batch else []
    masks += [_field(batch, where)] if where else []
    if values.ndim == 0:
        if masks:
            raise ValueError(
                "this loss couples the batch and returns a scalar, so a mask over examples cannot be applied to it: "
                "give it whole batches (drop the remainder) and no `where`."
            )
        return values
    weight = math.prod(numerics.per_example(m, values) for m in masks) if masks else None
    return numerics.masked_mean(values, weight)


def from_outputs(loss: Loss, *paths: str | Sequence[str], where: str | None = None, **hyper: Any) -> Term:
    """Term of any loss without parameters of its own; a path says where each of its arguments comes from.

    `from_outputs(losses.dkd, "student.logits", "teacher.logits", "batch.label", beta=8.0)`

    Args:
      loss: (*arguments, **hyper) -> [B, ...], or a scalar if it couples the batch.
      *paths: "student.<feature>", "teacher.<feature>" (`logits` is one of them) or "batch.<field>", in the order of
        the loss's arguments; a sequence of paths gives a list of arrays.
      where: Field of the batch [B] with the examples' weights (boolean or not); all of them count alike if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.

    Raises:
      ValueError: If a path has another form.
    """
    for path in (p for given in paths for p in ([given] if isinstance(given, str) else given)):
        if path.split(".", 1)[0] not in ("student", "teacher", "batch") or "." not in path:
            raise ValueError(f"{path!r} is no path: write student.<feature>, teacher.<feature> or batch.<field>.")
    held = hold(hyper, loss)

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        return Variables({}, {name: jnp.asarray(v) for name, v in held.arrays.items()})

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        def read(path: str | Sequence[str]) -> Any:
            if not isinstance(path, str):
                return [read(p) for p in path]
            whose, name = path.split(".", 1)
            if whose == "batch":
                return _field(batch, name)
            return pick(student if whose == "student" else teacher, name, whose)

        values = loss(*map(read, paths), **held.resolve(variables.state, step))
        return _mean(values, batch, where), variables.state, {}

    return Term(init, apply)


def from_labels(loss: Loss, *, label: str = "label", where: str | None = None, **hyper: Any) -> Term:
    """Term of a loss between the student's logits and the batch's labels.

    Args:
      loss: (logits [B, ..., K], labels, **hyper) -> [B, ...].
      label: Field of the batch that holds the labels, integers [B, ...] or probabilities [B, ..., K].
      where: Field of the batch [B] that says which examples have a label (boolean, or a weight); all of them if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.
    """
    return from_outputs(loss, "student.logits", f"batch.{label}", where=where, **hyper)


def from_logits(loss: Loss, *, where: str | None = None, **hyper: Any) -> Term:
    """Term of a loss between the student's and the teacher's logits.

    Args:
      loss: (student_logits [B, ..., K], teacher_logits [B, ..., K], **hyper) -> [B, ...] or a scalar.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.
    """
    return from_outputs(loss, "student.logits", "teacher.logits", where=where, **hyper)


class Projection(NamedTuple):
    """A small map from the student's feature to the teacher's shape, with parameters of its own.

    init:  (key, student_shape, teacher_shape) -> params
    apply: (params, x) -> projected x
    """

    init: Callable[[jax.Array, tuple[int, ...], tuple[int, ...]], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]


def linear(*, bias: bool = True) -> Projection:
    """Linear projection of the last axis; on feature maps [B, H, W, C] that is a 1x1 convolution.

    x W + b, W drawn with variance 1 / C_student

    Args:
      bias: Whether there is a b.

    Returns:
      A projection with parameters `kernel` [C_student, C_teacher] and `bias` [C_teacher].
    """

    def init(key: jax.Array, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> PyTree:
        if student_shape[:-1] != teacher_shape[:-1]:
            raise ValueError(
                f"a linear projection changes the last axis only, but the student's feature has shape {student_shape} "
                f"and the teacher's {teacher_shape}: choose stages of one resolution, or pool one of them first."
            )
        size = (student_shape[-1], teacher_shape[-1])
        kernel = jax.nn.initializers.lecun_normal()(key, size, jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros(size[1])} if bias else {"kernel": kernel}

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        (x,) = numerics.promote(x)
        y = x @ params["kernel"].astype(x.dtype)
        return y + params["bias"].astype(x.dtype).reshape((1,) * (y.ndim - 1) + (-1,)) if bias else y

    return Projection(init, apply)


def from_features(
    loss: Loss,
    *,
    student: str,
    teacher: str,
    project: Projection | None = None,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of a loss between one feature of the student and one of the teacher.

    Args:
      loss: (student_feature [B, ...], teacher_feature [B, ...], **hyper) -> [B] or a scalar.
      student: Name of the student's feature.
      teacher: Name of the teacher's feature.
      project: Map from the student's feature to the teacher's shape, trained with the student; none if None.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term whose parameters are the projection's and whose state holds the numbers.
    """
    held = hold(hyper, loss)

    def init(key: jax.Array, student_out: Outputs, teacher_out: Outputs, batch: Batch) -> Variables:
        s, t = pick(student_out, student, "student"), pick(teacher_out, teacher, "teacher")
        params = project.init(key, tuple(s.shape), tuple(t.shape)) if project else {}
        return Variables(params, {name: jnp.asarray(v) for name, v in held.arrays.items()})

    def apply(
        variables: Variables, student_out: Outputs, teacher_out: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        s, t = pick(student_out, student, "student"), pick(teacher_out, teacher, "teacher")
        s = project.apply(variables.params, s) if project else s
        values = loss(s, t, **held.resolve(variables.state, step))
        return _mean(values, batch, where), variables.state, {}

    return Term(init, apply)


def weighted(**terms: Term | tuple[Number, Term]) -> Term:
    """Weighted sum of terms; reports each raw value under its name and each weighted one under `<name>_weighted`.

    sum_i w_i(step) * term_i

    Args:
      **terms: Name -> term (weight 1) or (weight, term); a weight is a float, an array or a schedule of the step.

    Returns:
      A term whose params and state are keyed by the names; the weights stand in `state["weights"]`.

    Raises:
      ValueError: If there is no term, one is called "weights", or a weight is not one number.
    """
    if not terms or "weights" in terms:
        raise ValueError('weighted() needs at least one term, none of them called "weights": name each after its loss.')
    pairs = {name: t if not isinstance(t, Term) else (1.0, t) for name, t in terms.items()}
    for name, (weight, _) in pairs.items():
        if not callable(weight) and np.shape(weight):
            raise ValueError(f"the weight of {name!r} has shape {np.shape(weight)}: give one number or a schedule.")
    held = hold({n: w if callable(w) else np.asarray(w, np.float32) for n, (w, _) in pairs.items()})

    def init(key: jax.Array, student: Outputs, teacher: Outputs, batch: Batch) -> Variables:
        owned = {n: t.init(numerics.fold_name(key, n), student, teacher, batch) for n, (_, t) in pairs.items()}
        weights = {name: jnp.asarray(v) for name, v in held.arrays.items()}
        return Variables(
            {n: v.params for n, v in owned.items()}, {"weights": weights, **{n: v.state for n, v in owned.items()}}
        )

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        params, state = variables
        weights = held.resolve(state["weights"], step)
        total, new_state = jnp.zeros(()), {"weights": state["weights"]}
        metrics: dict[str, jax.Array] = {}
        for name, (_, term) in pairs.items():
            raw, new_state[name], inner = term.apply(
                Variables(params[name], state[name]), student, teacher, batch, numerics.fold_name(key, name), step
            )
            share = jnp.asarray(weights[name], raw.dtype) * raw
            total = total.astype(raw.dtype) + share
            metrics |= {name: raw, f"{name}_weighted": share, **{f"{name}/{k}": v for k, v in inner.items()}}
        return total, new_state, metrics

    return Term(init, apply)
