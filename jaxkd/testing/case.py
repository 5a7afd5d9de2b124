"""A loss with its example inputs: casting, compiled evaluation and comparison, shared by all properties."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.kernels.eager import unoptimised
from jaxkd.testing.outcome import Finding, NotRun, Outcome

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""Name of an input -> array [B, ...]; floating ones are float64 until they are cast for an evaluation."""

Check: TypeAlias = "Callable[[Case, Arrays], Outcome]"
"""Search for a counter-example: (case, arrays) -> outcome."""

KINDS = ("side", "probabilities", "labels", "other")
_ROWS = 8
_UNSEEN = re.compile(r"lambda \w|\[\.\.\.\]")  # arrays among the constants, whose numbers no printed program shows


class Case:
    """One loss, its example inputs, and its values and gradients, compiled once for each shape and dtype.

    Attributes:
      names: Names of the inputs, in order.
      kinds: Name -> "side" (what models put out: logits or features), "probabilities" (soft labels), "labels"
        (integers in 0..K-1) or "other" (left alone, but for its batch axis).
      arrays: Name -> example input; the arrays of an input with several layers are stacked to [B, layers, ...].
    """

    def __init__(
        self,
        fn: Callable[..., jax.Array],
        inputs: Sequence[Any] | Mapping[str, Any],
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        self._fn = fn
        self._keyword = isinstance(inputs, Mapping)
        given = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(_names(fn, inputs), inputs, strict=True))
        self.names = tuple(given)
        self._layers = {name: len(value) for name, value in given.items() if _is_layers(value)}
        self.arrays: Arrays = _trim({name: _as_array(name, value) for name, value in given.items()})
        self.kinds = {n: "side" if _is_floating(a) else "labels" for n, a in self.arrays.items()} | dict(kinds or {})
        _check_kinds(self.kinds, self.names)
        # Most of a check's time is compilation, and nothing here runs long enough to deserve an optimised program.
        self._options = unoptimised()
        self._values = jax.jit(lambda arrays: self.jitted(arrays), compiler_options=self._options)
        self._values_and_gradients = jax.jit(self._differentiate, compiler_options=self._options)
        with settings(np.float32):
            out = jax.eval_shape(self.jitted, cast(self.arrays, np.float32))
        if not isinstance(out, jax.ShapeDtypeStruct):
            raise ValueError(f"the loss returns a {type(out).__name__}, expected one array: drop what else it returns.")

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """Names of the inputs of one kind, in order."""
        return tuple(name for name in self.names if self.kinds[name] == kind)

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of the inputs of kind "side"."""
        return self.of_kind("side")

    def call(self, arrays: Mapping[str, Any]) -> jax.Array:
        """The loss itself, of inputs by name."""
        given: dict[str, Any] = {n: arrays[n] for n in self.names}
        given |= {n: [arrays[n][:, i] for i in range(count)] for n, count in self._layers.items()}
        return self._fn(**given) if self._keyword else self._fn(*given.values())

    def values(self, arrays: Arrays, dtype: Any = np.float64) -> np.ndarray:
        """The loss, compiled, with floating inputs cast to `dtype`; the result is float64, for comparisons."""
        if dtype in (np.float32, np.float64) and all(arrays[n].shape == a.shape for n, a in self.arrays.items()):
            return self.gradients(arrays, dtype)[0]  # which other checks compile anyway
        with settings(dtype):
            return np.asarray(self._values(cast(arrays, dtype)), np.float64)

    def gradients(self, arrays: Arrays, dtype: Any = np.float64) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The loss, and the gradient of its sum in every side, compiled."""
        with settings(dtype):
            values, gradients = self._values_and_gradients(cast(arrays, dtype))
        return np.asarray(values, np.float64), {n: np.asarray(g, np.float64) for n, g in gradients.items()}

    def shape(self, arrays: Arrays, dtype: Any = np.float64) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the result, by tracing only."""
        with settings(dtype):
            return jax.eval_shape(self.jitted, cast(arrays, dtype))

    def widens_first(self, arrays: Arrays, dtype: Any) -> bool:
        """True if the program of `dtype` casts each input to float32 and then is that of float32, with its value."""
        with settings(dtype):
            given = cast(arrays, dtype)
            own = str(self.jitted.trace(given).jaxpr)
            after = str(jax.make_jaxpr(lambda arrays: self.call(_widened(arrays)))(given))
        return own == after and not _UNSEEN.search(own)

    @functools.cached_property
    def strictly(self) -> bool:
        """True if the loss can be traced under all strict settings at once, and so under each of them."""
        try:
            with settings(np.float32, rank_promotion="raise", dtype_promotion="strict"):
                jax.eval_shape(self.jitted, cast(self.arrays, np.float32))
        except Exception:
            return False  # which setting it was, and what is raised, each check finds out
        return True

    @functools.cached_property
    def tolerance(self) -> float:
        """Relative tolerance of comparisons: float64's, or float32's if the loss falls back to that."""
        return 1e-9 if self.shape(self.arrays).dtype == np.float64 else 1e-4

    @functools.cached_property
    def jitted(self) -> jax.stages.Wrapped:
        """The loss, compiled as JAX usually does; inside other programs, traced once for each shape and dtype."""
        return jax.jit(self.call)

    @functools.cached_property
    def vmapped(self) -> Callable[[Mapping[str, Any]], jax.Array]:
        """The loss mapped over a new first axis of batches."""
        return jax.jit(jax.vmap(self.jitted), compiler_options=self._options)

    @functools.cached_property
    def pmapped(self) -> Callable[[Mapping[str, Any]], jax.Array]:
        """The loss mapped over two batches on two devices."""
        return jax.pmap(self.jitted, devices=jax.local_devices()[:2])

    def _differentiate(self, arrays: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        def total(sides: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            values = self.jitted({**arrays, **sides})
            return jnp.sum(values), values

        gradients, values = jax.grad(total, has_aux=True)({name: arrays[name] for name in self.sides})
        return values, gradients


def cast(arrays: Arrays, dtype: Any) -> dict[str, np.ndarray]:
    """Casts the floating arrays to `dtype`."""
    return {n: np.asarray(a, dtype) if _is_floating(a) else a for n, a in arrays.items()}


@contextlib.contextmanager
def settings(dtype: Any, *, rank_promotion: str = "allow", dtype_promotion: str = "standard") -> Iterator[None]:
    """JAX settings of one evaluation, whatever the caller's own are, so that a report is the same everywhere."""
    with (
        jax.enable_x64(dtype == np.float64),
        jax.numpy_rank_promotion(rank_promotion),
        jax.numpy_dtype_promotion(dtype_promotion),
        jax.default_matmul_precision("highest"),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield


def rows(arrays: Arrays) -> int:
    """Number of rows B."""
    return len(next(iter(arrays.values())))


def each(arrays: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    """Applies one change to every input."""
    return {name: change(array) for name, array in arrays.items()}


def first(findings: Iterable[Finding | None]) -> Finding | None:
    """The first finding that is not None, or None."""
    return next((finding for finding in findings if finding), None)


def equal_sides(case: Case, arrays: Arrays) -> Arrays | NotRun:
    """The inputs with the second side set to the first, where there are two of one shape."""
    if len(case.sides) < 2:
        return NotRun(f"it compares two sides, and {case.sides[0]} is the only one")
    one, other = case.sides[:2]
    if arrays[one].shape != arrays[other].shape:
        return NotRun(f"the sides have different shapes, {arrays[one].shape} and {arrays[other].shape}")
    return {**arrays, other: arrays[one]}


def disagreement(
    case: Case,
    arrays: Arrays,
    what: str,
    one: tuple[str, np.ndarray],
    two: tuple[str, np.ndarray],
    tolerance: float,
    *,
    whole: bool = False,
) -> Finding | None:
    """The smallest row in which two results differ by more than `tolerance` of the largest entry, or None.

    Args:
      case: The case that they were made from.
      arrays: The inputs to show.
      what: What should have held.
      one: Name and array of one result.
      two: Name and array of the other.
      tolerance: Relative.
      whole: Whether the rows only show it together, so that all of them are in the finding.

    Returns:
      A finding, or None if they agree.
    """
    (name, left), (other, right) = one, two
    if left.shape != right.shape:
        return Finding(f"{what} (shapes differ)", {}, {name: f"shape {left.shape}", other: f"shape {right.shape}"})
    scale = max(np.max(np.abs(left), initial=0), np.max(np.abs(right), initial=0)) + 1e-3
    with np.errstate(invalid="ignore"):
        wrong = ~((np.abs(left - right) <= tolerance * scale) | (left == right))
    return locate(case, arrays, what, np.asarray(np.any(wrong)) if whole else wrong, {name: left, other: right})


def locate(case: Case, arrays: Arrays, what: str, wrong: np.ndarray, values: Mapping[str, Any]) -> Finding | None:
    """The finding of the smallest row that is marked wrong, or None if none is.

    Args:
      case: The case.
      arrays: The inputs to show, [B, ...].
      what: What should have held.
      wrong: Booleans, [B, ...] or a scalar.
      values: Name -> array of the shape of `wrong`, cut to the place that is shown, or text.

    Returns:
      A finding, or None.
    """
    if not np.any(wrong):
        return None
    if wrong.ndim == 0 or len(wrong) != rows(arrays):
        return Finding(what, arrays, values)
    places = np.argwhere(wrong)
    sizes = [sum(float(np.sum(np.abs(arrays[n][p[0]]))) for n in case.sides) for p in places]
    place = tuple(int(i) for i in places[int(np.argmin(np.nan_to_num(sizes)))])
    inputs = {n: a[place] if a.shape[: wrong.ndim] == wrong.shape else a[place[0]] for n, a in arrays.items()}
    shown = {n: np.asarray(v[place]) if isinstance(v, np.ndarray) else v for n, v in values.items()}
    return Finding(what, inputs, shown, place[0])


def _names(fn: Callable[..., Any], inputs: Sequence[Any]) -> list[str]:
    """The parameters' names of the loss, or "input 0", ... where it has too few."""
    parameters = inspect.signature(fn).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(inputs)]
    return names if len(names) == len(inputs) else [f"input {i}" for i in range(len(inputs))]


def _is_floating(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def _widened(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The same traced arrays with the floating ones in float32."""
    return {n: a.astype(np.float32) if _is_floating(a) else a for n, a in arrays.items()}


def _is_layers(value: Any) -> bool:
    """True if an input is a list or tuple of arrays, one for each layer."""
    return isinstance(value, (list, tuple)) and any(np.ndim(v) > 1 and hasattr(v, "shape") for v in value)


def _as_array(name: str, value: Any) -> np.ndarray:
    """One input as NumPy array, in float64 if it is floating; several layers are stacked to [B, layers, ...]."""
    if _is_layers(value):
        if len(shapes := {np.shape(v) for v in value}) > 1:
            raise ValueError(f"the layers of input {name!r} have shapes {sorted(shapes)}: give examples of one shape.")
        value = np.stack(value, axis=1)
    array = np.asarray(value)
    if array.ndim == 0:
        raise ValueError(f"input {name!r} is a scalar, expected a batch axis: bind it with functools.partial instead.")
    if not _is_floating(array):
        return array
    if not np.all(np.isfinite(array)):
        raise ValueError(
            f"input {name!r} holds NaN or Inf: give finite examples, the kit makes the extreme ones itself."
        )
    return array.astype(np.float64)


def _trim(arrays: Arrays) -> Arrays:
    """At most eight rows, an even number of them, so that a check is quick and the batch can be halved."""
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1 or min(sizes.values()) < 2:
        raise ValueError(
            f"inputs have {sizes} rows, expected one number of at least 2: bind what has no batch axis with "
            "functools.partial."
        )
    kept = min(_ROWS, min(sizes.values()) // 2 * 2)
    return {name: array[:kept] for name, array in arrays.items()}


def _check_kinds(kinds: Mapping[str, str], names: Sequence[str]) -> None:
    for name, kind in kinds.items():
        if name not in names or kind not in KINDS:
            raise ValueError(f"kinds has {name!r}: {kind!r}, expected an input of {list(names)} and a kind of {KINDS}.")
    if "side" not in kinds.values():
        raise ValueError(f"none of the inputs {dict(kinds)} is a side: give floating logits or features of a model.")
