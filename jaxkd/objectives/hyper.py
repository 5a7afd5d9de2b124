"""Hyper-parameters of terms: numbers that are traced, schedules of the step, options that are static."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.types import Schedule

Number: TypeAlias = ArrayLike | Schedule
"""A float or array (kept in the term's state, so changing it never recompiles) or a schedule of the step."""


class Held(NamedTuple):
    """Hyper-parameters, separated by how they reach the loss.

    Attributes:
      arrays: The numbers, which reach it through the term's state.
      resolve: (arrays, step) -> name -> value of all hyper-parameters, schedules and static options included.
    """

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
        if name.endswith("temperature") and not callable(value):
            numerics.check_temperature(value, name)
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
