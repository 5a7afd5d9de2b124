"""The few types that everything else is made of: plain tuples of arrays and of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax

PyTree: TypeAlias = Any
"""A nest of dicts, tuples and arrays."""


def leaf_name(path: Sequence[Any]) -> str:
    """Name of a leaf of a tree in rules and messages, such as "student/head/kernel", from its path in `jax.tree`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


Batch: TypeAlias = Mapping[str, Any]
"""Arrays with one leading axis B: `image`, `label`, `id`, `view`, and whatever else a source or a cache adds."""

RESERVED = ("id", "view", "mask", "aspect")
"""Fields of a batch that sources and pipelines add themselves: the number of the example in its split; which of its
views this is; false for padding of the last batch; width over height of the picture before it was stretched."""

ROW = "row"
"""Field of a batch that reads its rows from a table on the device: their numbers."""

BY_VIEW = "by_view"
"""Entry of a table on the device: name -> [N, V, ...], the fields that each view of an example has of its own."""

BY_TOKEN = "by_token"
"""Entry of a table on the device: name -> [N, L, ...], the fields that batches cut to the length of `TOKEN_MASK`."""

TOKEN_MASK = "token_mask"
"""Field of a batch of tokens: bool [B, L], false on padding."""

WHOLE = "whole"
"""Field of a micro-batch that holds the `Whole` batch, so that means over examples are those of the whole batch."""

Metrics: TypeAlias = Mapping[str, jax.Array]
"""Name -> value of one training step."""

Sums: TypeAlias = Mapping[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, count) of one evaluation batch; add them up, then divide once."""

Schedule: TypeAlias = Callable[[jax.Array], jax.Array]
"""Step -> value, as optax schedules are."""


TEACHER = "teacher"
"""Field of a training batch that holds the teacher's `Variables`, for students that run parts of their teacher."""


class Outputs(NamedTuple):
    """Outputs of a model.

    Attributes:
      logits: [B, ..., K].
      features: Name -> intermediate [B, ...].
      head: The last layer, for losses that apply it themselves: {"kernel": [D, K]} and, if it has one, "bias" [K];
        None unless `models.with_head` adds it. All examples share it, so it has no batch axis.
    """

    logits: Any
    features: Mapping[str, Any] = {}
    head: Mapping[str, Any] | None = None


class Variables(NamedTuple):
    """Arrays of a model or term: `params` are differentiated, `state` (statistics, banks, temperatures) is carried."""

    params: PyTree
    state: PyTree


def as_variables(given: Any) -> Variables:
    """Variables from the forms in which other code keeps them.

    Args:
      given: Variables; a mapping of Flax's collections, {"params": ..., "batch_stats": ...}; {"params", "state"}, as
        checkpoints restore Variables; a pair (params, state); params alone; None where there are none.

    Returns:
      Variables, in which frozen dicts are dicts.

    Raises:
      TypeError: If it is something else, such as a state or a module.
    """
    if given is None:
        return Variables({}, {})
    if isinstance(given, Mapping):
        if given.keys() == {"params", "state"}:
            return as_variables((given["params"], given["state"]))
        if "params" in given:
            return Variables(_thawed(given["params"]), {k: _thawed(x) for k, x in given.items() if k != "params"})
        return Variables(_thawed(given), {})
    if isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[1], Mapping | tuple | list | None):
        params, state = given
        if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping) and not state:
            return as_variables(params)  # all of Flax's collections in the place of the params
        return Variables(_thawed(params), _thawed({} if state is None else state))
    how = "give Variables(params=..., state=...), with the batch statistics and the like as its state"
    if isinstance(given, TrainState):
        how = 'give Variables(state.params["student"], state.state["student"]), or its moving average, state.ema'
    raise TypeError(f"a model's variables were expected, but a {type(given).__name__} was given: {how}.")


def _thawed(tree: PyTree) -> PyTree:
    """The tree with dicts in place of other mappings, so that its structure is that of any other's."""
    return {name: _thawed(x) for name, x in tree.items()} if isinstance(tree, Mapping) else tree


class Model(NamedTuple):
    """A network as two pure functions.

    init:  (key, batch) -> Variables
    apply: (variables, batch, key | None, train) -> (Outputs, new_state)

    Attributes:
      init: See above.
      apply: See above.
      reads_teacher: Whether it is a student that runs parts of its teacher: a training step then gives it the teacher's
        variables in the batch's field `TEACHER`, without a gradient and without a copy in the state.
    """

    init: Callable[[jax.Array, Batch], Variables]
    apply: Callable[[Variables, Batch, jax.Array | None, bool], tuple[Outputs, PyTree]]
    reads_teacher: bool = False


class Term(NamedTuple):
    """A part of the objective as two pure functions.

    init:  (key, student, teacher, batch) -> Variables; sees abstract shapes only, so it fails before anything compiles
    apply: (variables, student, teacher, batch, key, step) -> (scalar, new_state, metrics)

    Attributes:
      init: See above.
      apply: See above.
      couples: Whether one example's value depends on the others by what the term owns: a batch norm or a memory.
    """

    init: Callable[[jax.Array, Outputs, Outputs, Batch], Variables]
    apply: Callable[[Variables, Outputs, Outputs, Batch, jax.Array, jax.Array], tuple[jax.Array, PyTree, Metrics]]
    couples: bool = False


@flax.struct.dataclass
class Whole:
    """The batch that a micro-batch is a part of.

    Attributes:
      batch: All its rows.
      approximate: Whether losses that couple the batch may see one micro-batch alone.
    """

    batch: PyTree
    approximate: bool = flax.struct.field(pytree_node=False, default=False)


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, and nothing else: no functions and no teacher.

    Attributes:
      step: int32 scalar, the number of updates done.
      params: {"student": ..., "term": ...}, what the optimizer updates.
      state: {"student": ..., "term": ...}, batch statistics, memory banks, temperatures.
      opt_state: the optax state.
      key: one typed PRNG key, never split: randomness of step k is `fold_in(key, k)`.
      ema: Variables, the moving average of the student's params and running statistics, or None.
      hyper: name -> scalar, the hyper-parameters in which the students of a sweep differ; empty outside sweeps.
      skipped: int32 scalar, the number of updates that were left out because something was not finite, or None.
    """

    step: jax.Array
    params: PyTree
    state: PyTree
    opt_state: PyTree
    key: jax.Array
    ema: PyTree = None
    skipped: PyTree = None
    hyper: PyTree = flax.struct.field(default_factory=dict)


StepFn: TypeAlias = Callable[[TrainState, Variables, Batch], tuple[TrainState, Metrics]]
"""(state, teacher, batch) -> (state, metrics)."""

EvalFn: TypeAlias = Callable[[TrainState, Variables, Batch], Sums]
"""(state, teacher, batch) -> name -> (sum, count)."""

Prepare: TypeAlias = Callable[[Batch], Batch]
"""Augmentation and normalisation of a batch, on the device: a pure function."""

Metric: TypeAlias = Callable[[Outputs, Outputs, Batch], Any]
"""(student's outputs, teacher's outputs, batch) -> accumulator, a tuple of sums that are added over batches."""
