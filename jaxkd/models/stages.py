"""Networks cut into stages at their named features: each stage as a function, features replaced where they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables

Replace: TypeAlias = Callable[[str, jax.Array], jax.Array]
"""(name of a feature, its value) -> the value that the layers after it read, of the same shape."""


class Stages:
    """One application of a network, cut at some of its features.

    Stage 0 leads from the batch to the first of these features, stage m from the m-th one to the next, and the last
    stage to the logits. It holds for any model whose features are the arrays that its next layers read: the network is
    traced, and no layer of it is written twice. Parts that layers of several stages read, such as a mask made from the
    batch, are computed in each of them.

    Args:
      model: Any model.
      names: Names of its features, in any order.
      variables: Its variables.
      batch: The batch.
      key: PRNG key, or None.
      train: Whether it is applied in training mode.

    Attributes:
      names: The names in the order in which the network computes the features.
      shapes: Name -> shape and dtype of each of these features.

    Raises:
      ValueError: If the model has no such feature, or the feature does not cut it: if layers after it also read what
        was computed before it.
    """

    def __init__(
        self,
        model: Model,
        names: Iterable[str],
        variables: Variables,
        batch: Batch,
        key: jax.Array | None = None,
        train: bool = False,
    ) -> None:
        wanted, given = list(dict.fromkeys(names)), (as_variables(variables), dict(batch), key)
        closed, shapes = jax.make_jaxpr(lambda v, b, k: model.apply(v, b, k, train), return_shape=True)(*given)
        self._program, self._equations, self._outvars = closed.jaxpr, closed.jaxpr.eqns, closed.jaxpr.outvars
        inputs = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
        self._inputs = dict(zip(inputs, [*closed.consts, *jax.tree.leaves(given)], strict=True))
        self._structure = jax.tree.structure(shapes)
        number = jax.tree.unflatten(self._structure, range(len(self._outvars)))
        features: Mapping[str, int] = number[0].features
        if missing := [name for name in wanted if name not in features]:
            known = ", ".join(features) or "none"
            raise ValueError(f"the model has no feature {missing[0]!r} to cut it at: its features are {known}.")
        made = {v: i for i, equation in enumerate(self._equations) for v in equation.outvars}
        cuts = {name: self._outvars[features[name]] for name in wanted}
        if outside := [name for name, v in cuts.items() if isinstance(v, Literal) or v not in made]:
            raise ValueError(f"the feature {outside[0]!r} is not computed by the model: cut it at another one.")
        self.names = tuple(sorted(cuts, key=lambda name: made[cuts[name]]))
        self.shapes = {name: shapes[0].features[name] for name in self.names}
        self._cuts, self._made = {name: cuts[name] for name in self.names}, made
        if len(set(self._cuts.values())) < len(self._cuts):
            raise ValueError(f"two of the features {', '.join(self.names)} are the same array: name one of them.")
        self._answers, self._states = jax.tree.leaves(number[0].logits), jax.tree.leaves(number[1])
        self._levels = self._count_levels()
        self._check_clean(len(closed.jaxpr.constvars) + len(jax.tree.leaves(given[0].params)))

    def run(self, replace: Replace) -> tuple[Outputs, PyTree]:
        """Applies the whole network, with each cut feature replaced for the layers after it.

        Args:
          replace: See `Replace`; `lambda name, x: x` leaves the network as it is.

        Returns:
          Outputs, in which the cut features are as their stage computed them, and the new state.
        """
        computed: dict[str, jax.Array] = {}
        at = {v: name for name, v in self._cuts.items()}

        def write(v: Any, x: jax.Array) -> jax.Array:
            if v not in at:
                return x
            computed[at[v]] = x
            return self._checked(at[v], replace(at[v], x))

        leaves = self._evaluate(self._outvars, {}, write)
        outputs, state = jax.tree.unflatten(self._structure, leaves)
        return outputs._replace(features={**outputs.features, **computed}), state

    def stage(self, number: int, given: Mapping[str, jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        """Applies one stage.

        Args:
          number: Its number, 0 to the number of cuts.
          given: Values of the features before it, which it reads; of all of them, for layers that read an early one.

        Returns:
          The feature that it ends in, or the logits for the last one; and the leaves of the new state that it makes,
          for `join`.
        """
        known = {self._cuts[name]: self._checked(name, given[name]) for name in self.names[:number]}
        ends = [self._outvars[i] for i in self._answers]
        ends = [self._cuts[self.names[number]]] if number < len(self.names) else ends
        value, *leaves = self._evaluate([*ends, *(self._outvars[i] for i in self._own(number))], known)
        return value, leaves

    def join(self, leaves: Sequence[Sequence[jax.Array]]) -> PyTree:
        """The whole new state, from what the stages made.

        Args:
          leaves: The leaves that `stage` gave for each stage.

        Returns:
          The state.
        """
        found = {i: x for number, each in enumerate(leaves) for i, x in zip(self._own(number), each, strict=True)}
        whole = jax.tree.unflatten(self._structure, [found.get(i) for i in range(len(self._outvars))])
        return whole[1]

    def before(self, number: int, state: PyTree) -> list[jax.Array]:
        """Leaves of the state that a stage changes, as they were.

        Args:
          number: Number of the stage.
          state: The state before this application.

        Returns:
          Its leaves, in the order of those that `stage` gives.

        Raises:
          ValueError: If the new state has another structure.
        """
        leaves: list[jax.Array] = jax.tree.leaves(state)
        structure: Any = jax.tree.structure(state)
        new: Any = jax.tree.structure(jax.tree.unflatten(self._structure, [0] * len(self._outvars))[1])
        if structure != new:
            raise ValueError(f"the model's state is {structure}, but {new} after a step: keep its structure.")
        places = dict(zip(self._states, leaves, strict=True))
        return [places[i] for i in self._own(number)]

    def _own(self, number: int) -> list[int]:
        """Places of the leaves of the new state that a stage makes."""
        return [i for i in self._states if self._level(self._outvars[i]) == number]

    def _checked(self, name: str, x: jax.Array) -> jax.Array:
        """A value for a cut feature, if it has its shape."""
        shape = self.shapes[name]
        if jnp.shape(x) != shape.shape:
            raise ValueError(
                f"the feature {name!r} has shape {shape.shape}, but {jnp.shape(x)} was given in its place."
            )
        return jnp.asarray(x, shape.dtype)

    def _evaluate(
        self, wanted: Sequence[Any], known: Mapping[Any, jax.Array], write: Callable[[Any, Any], Any] | None = None
    ) -> list[jax.Array]:
        """Values of variables of the program, computed from the known ones."""
        values, needed = {**self._inputs, **known}, self._slice(wanted, known)
        for i in sorted(needed):
            equation = self._equations[i]
            reads = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, Literal)))
            one = self._program.replace(constvars=[], invars=reads, outvars=equation.outvars, eqns=[equation])
            found = jax.core.eval_jaxpr(one, [], *(values[v] for v in reads))
            for v, x in zip(equation.outvars, found, strict=True):
                if v not in known:
                    values[v] = x if write is None else write(v, x)
        return [_constant(v) if isinstance(v, Literal) else values[v] for v in wanted]

    def _slice(self, wanted: Iterable[Any], known: Iterable[Any]) -> set[int]:
        """Equations that variables need, if some are known."""
        needed: set[int] = set()
        left, stop = [v for v in wanted if not isinstance(v, Literal)], set(known)
        while left:
            v = left.pop()
            if v in stop or v not in self._made or self._made[v] in needed:
                continue
            needed.add(self._made[v])
            left += [x for x in self._equations[self._made[v]].invars if not isinstance(x, Literal)]
        return needed

    def _count_levels(self) -> dict[Any, int]:
        """Variable -> number of the stage that computes it: how far the features go that it depends on."""
        levels: dict[Any, int] = {}
        after = {v: number for number, v in enumerate(self._cuts.values(), 1)}
        for equation in self._equations:
            level = max((levels.get(v, 0) for v in equation.invars if not isinstance(v, Literal)), default=0)
            levels |= {v: after.get(v, level) for v in equation.outvars}
        return levels

    def _level(self, v: Any) -> int:
        return 0 if isinstance(v, Literal) else self._levels.get(v, 0)

    def _check_clean(self, count: int) -> None:
        """Raises ValueError if two stages compute the same: `count` inputs are constants and params."""
        inputs = list(self._inputs)
        layers = self._depending(inputs[:count]) & self._depending(inputs[count:])
        ends: list[tuple[str, list[Any]]] = [(repr(name), [v]) for name, v in self._cuts.items()]
        ends.append(("the logits", [self._outvars[i] for i in self._answers]))
        seen: dict[int, str] = {}
        for number, (name, wanted) in enumerate(ends):
            for i in self._slice(wanted, list(self._cuts.values())[:number]) & layers:
                if i in seen:
                    raise ValueError(
                        f"the feature {self.names[number - 1]!r} does not cut the network: layers between it and "
                        f"{name} also read what was computed before it, or the model is compiled, cast or wrapped so "
                        "that its features are copies; cut it at other features, such as the output of each stage."
                    )
                seen[i] = name

    def _depending(self, inputs: Iterable[Any]) -> set[int]:
        """Equations that depend on some of the inputs."""
        reached, found = set(inputs), set()
        for i, equation in enumerate(self._equations):
            if any(v in reached for v in equation.invars if not isinstance(v, Literal)):
                found.add(i)
                reached.update(equation.outvars)
        return found


def _constant(literal: Any) -> jax.Array:
    """Value of a variable that is a number in the program."""
    return jnp.asarray(literal.val, literal.aval.dtype)
