"""Models made of models: ensembles, stacks, cached outputs, no teacher, a last layer among the outputs."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.labels import check_classes
from jaxkd.models.adapters import read_inputs
from jaxkd.models.top_k import KEPT, spread_tail
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables, as_variables


def mean_logits(logits: Sequence[jax.Array]) -> jax.Array:
    """Mean of the members' logits: the geometric mean of their predictive distributions.

    Args:
      logits: One array [B, ..., K] for each member.

    Returns:
      [B, ..., K].
    """
    return jnp.mean(jnp.stack(numerics.promote(*logits)), axis=0)


def mean_probabilities(logits: Sequence[jax.Array]) -> jax.Array:
    """Log of the mean of the members' probabilities, computed in log space.

    Args:
      logits: One array [B, ..., K] for each member.

    Returns:
      [B, ..., K], normalised log-probabilities.

    Raises:
      ValueError: If there is one class only, whose probability is always 1.
    """
    check_classes(logits[0])
    stacked = jnp.stack([numerics.log_softmax(z) for z in numerics.promote(*logits)])
    return jax.nn.logsumexp(stacked, axis=0) - jnp.log(jnp.asarray(len(logits), stacked.dtype))


def ensemble(*members: Model, combine: Callable[[Sequence[jax.Array]], jax.Array] = mean_logits) -> Model:
    """Several models as one: several teachers, or several students that one step trains together.

    Args:
      *members: Models that read the same batch and have the same classes.
      combine: The members' logits -> the ensemble's: `mean_logits` or `mean_probabilities`.

    Returns:
      A model whose variables are {"0": ..., "1": ...} and whose features are named "0/logits", "0/stage1", ...

    Raises:
      ValueError: If there is no member, or their logits differ in shape.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member: pass the models.")

    def init(key: jax.Array, batch: Batch) -> Variables:
        made = [m.init(jax.random.fold_in(key, i), batch) for i, m in enumerate(members)]
        return Variables({str(i): v.params for i, v in enumerate(made)}, {str(i): v.state for i, v in enumerate(made)})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outs: list[Outputs] = []
        state: dict[str, PyTree] = {}
        variables = as_variables(variables)
        for i, member in enumerate(members):
            own = pick_member(variables, i)
            out, state[str(i)] = member.apply(own, batch, None if key is None else jax.random.fold_in(key, i), train)
            outs.append(out)
        if len({out.logits.shape for out in outs}) > 1:
            raise ValueError(
                "the members of an ensemble have logits of shapes "
                f"{', '.join(str(out.logits.shape) for out in outs)}: give all of them the same classes."
            )
        return _combined(outs, combine), state

    return Model(init, apply)


def stacked(member: Model, count: int, *, combine: Callable[[Sequence[jax.Array]], jax.Array] = mean_logits) -> Model:
    """Several networks of one architecture as one model, computed side by side in one `vmap`.

    Equal to `ensemble` of as many such members, to rounding; it is traced and compiled as one network, whatever their
    number. On CPUs the unrolled ensemble may compute faster, since stacked convolutions are grouped ones.

    Args:
      member: The architecture.
      count: M, the number of members.
      combine: The members' logits -> the model's: `mean_logits` or `mean_probabilities`.

    Returns:
      A model whose variables are those of `stack`, [M, ...], and whose features are named as those of `ensemble`.

    Raises:
      ValueError: If there is no member; by the model, if its variables are not of as many.
    """
    if count < 1:
        raise ValueError(f"a stack of {count} members cannot be: give at least one.")

    def keys(key: jax.Array) -> jax.Array:
        return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))

    def init(key: jax.Array, batch: Batch) -> Variables:
        return jax.vmap(member.init, in_axes=(0, None))(keys(key), batch)

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(variables)}
        if sizes - {(count,)}:
            raise ValueError(
                f"the variables of a stack of {count} members have leading axes {sorted(sizes)}: make them by "
                "models.stack from as many variables."
            )

        def one(own: Variables, key: jax.Array | None) -> tuple[Outputs, PyTree]:
            out, state = member.apply(own, batch, key, train)
            return Outputs(out.logits, dict(out.features)), state

        own_keys = None if key is None else keys(key)
        out, state = jax.vmap(one, in_axes=(0, None if key is None else 0), axis_size=count)(variables, own_keys)
        return _combined([jax.tree.map(operator.itemgetter(i), out) for i in range(count)], combine), state

    return Model(init, apply)


def _combined(outs: Sequence[Outputs], combine: Callable[[Sequence[jax.Array]], jax.Array]) -> Outputs:
    """Outputs of several members as those of one model, in which each member's stand under its number."""
    features = {
        f"{i}/{name}": x for i, out in enumerate(outs) for name, x in (("logits", out.logits), *out.features.items())
    }
    return Outputs(combine([out.logits for out in outs]), features)


def join(*members: Variables) -> Variables:
    """Variables of `ensemble(...)` from those of its members, in the same order.

    Args:
      *members: Each member's trained variables.

    Returns:
      The ensemble's variables.
    """
    made = [as_variables(member) for member in members]
    return Variables({str(i): v.params for i, v in enumerate(made)}, {str(i): v.state for i, v in enumerate(made)})


def stack(*members: Variables) -> Variables:
    """Variables of `stacked(...)` from those of its members, in the same order.

    Args:
      *members: Each member's trained variables.

    Returns:
      The same tree of arrays [M, ...].

    Raises:
      ValueError: If there is none, or they are not of one architecture.
    """
    made = [as_variables(member) for member in members]
    if not made:
        raise ValueError("a stack needs the variables of at least one member: pass them.")
    layouts = [(jax.tree.structure(one), [jnp.shape(x) for x in jax.tree.leaves(one)]) for one in made]
    for number, layout in enumerate(layouts):
        if layout != layouts[0]:
            raise ValueError(
                f"the variables of members 0 and {number} of a stack have other names or shapes: give those of one "
                "architecture, or use models.ensemble."
            )
    return jax.tree.map(lambda *x: jnp.stack(x), *made)


def pick_member(variables: Variables, number: int) -> Variables:
    """Variables of one member from those of `ensemble(...)`: the way back from `join`.

    Args:
      variables: The ensemble's variables.
      number: The member's number.

    Returns:
      Its variables.

    Raises:
      ValueError: If there is no such member.
    """
    params, state = as_variables(variables)
    if str(number) not in params:
        raise ValueError(f"an ensemble of {len(params)} members has no member {number}: give 0 to {len(params) - 1}.")
    return Variables(params[str(number)], state[str(number)])


def cached(*, logits: str = "teacher_logits", features: Sequence[str] = (), num_classes: int | None = None) -> Model:
    """Teacher whose outputs were written earlier and are read from the batch; it has no variables.

    Args:
      logits: Field of the batch that holds the logits [B, ..., K].
      features: Fields that are features, under the same names.
      num_classes: K, where the batch holds the top k (`KEPT`) in place of the logits: outputs are then `top_k`'s.

    Returns:
      A model; `Variables({}, {})` are its variables.

    Raises:
      ValueError: If the batch lacks a field.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        return Variables({}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        names = (*features, *((logits,) if num_classes is None else KEPT))
        read = dict(zip(names, read_inputs(batch, names, "`logits=` and `features=`"), strict=True))
        return Outputs(read.pop(logits) if num_classes is None else spread_tail(read, num_classes), read), as_variables(
            variables
        ).state

    return Model(init, apply)


def with_head(model: Model, path: str = "head") -> Model:
    """Model with its last layer in its outputs, for losses that apply the layer to hidden states themselves.

    Under `jit` the logits then cost nothing unless a loss or a metric reads them.

    Args:
      model: Any model.
      path: Where the layer stands in the params, with slashes: one with a `kernel` [D, K] and perhaps a `bias` [K], or
        an `embedding` [K, D], whose transpose is the kernel of a model that ties them.

    Returns:
      A model with the same variables.

    Raises:
      ValueError: If there is no such layer at the path (the sentence lists the names there).
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        outputs, state = model.apply(variables, batch, key, train)
        return outputs._replace(head=_head(variables.params, path)), state

    return Model(model.init, apply)


def _head(params: PyTree, path: str) -> dict[str, jax.Array]:
    """Kernel and bias of the layer at a path."""
    layer, trail = params, ""
    for name in path.split("/"):
        if not isinstance(layer, Mapping) or name not in layer:
            known = ", ".join(sorted(layer)) if isinstance(layer, Mapping) else "an array"
            raise ValueError(
                f"the params have no {path!r}: under {trail or 'the top'} there is {known}; name the path."
            )
        layer, trail = layer[name], f"{trail}/{name}".strip("/")
    if isinstance(layer, Mapping) and "embedding" in layer:
        return {"kernel": layer["embedding"].T}
    if not isinstance(layer, Mapping) or "kernel" not in layer:
        raise ValueError(f"the params at {path!r} are no linear layer: name one with a `kernel` or an `embedding`.")
    return {name: layer[name] for name in ("kernel", "bias") if name in layer}


def no_teacher() -> Model:
    """Model that stands for no teacher, where a student learns from labels alone; no outputs, no variables.

    Returns:
      A model; `Variables({}, {})` are its variables, and terms that need a teacher refuse it.
    """

    def init(key: jax.Array, batch: Batch) -> Variables:
        return Variables({}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return Outputs(None, {}), as_variables(variables).state

    return Model(init, apply)
