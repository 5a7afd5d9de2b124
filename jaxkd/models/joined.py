"""Networks whose stages were trained apart, joined by linear maps where their features are as wide as a teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.keys import fold_name
from jaxkd.models.stages import Stages
from jaxkd.types import TEACHER, Batch, Model, Outputs, PyTree, Variables, as_variables

ADAPTERS = "adapters"
"""Entry of the params that holds the adapters, by the names of the student's features."""

Pairs: TypeAlias = Mapping[str, str] | Sequence[str]
"""Feature of the student that a stage ends in -> that of the teacher; or names that both have."""


def pairs_of(stages: Pairs) -> dict[str, str]:
    """Feature of the student -> feature of the teacher, for every stage but the last.

    Args:
      stages: See `Pairs`.

    Returns:
      The pairs.

    Raises:
      ValueError: If there is none, or one name stands for several.
    """
    pairs = dict(stages) if isinstance(stages, Mapping) else dict(zip(stages, stages, strict=True))
    if isinstance(stages, str) or not pairs or len(pairs) < len(stages) or len(set(pairs.values())) < len(pairs):
        raise ValueError(
            f'the stages are {stages!r}: give different features that they end in, such as ("stage1", "stage2"), or '
            "feature of the student -> feature of the teacher."
        )
    return pairs


def joined(teacher: Model, student: Model, stages: Pairs) -> Model:
    """Student whose stages were trained on a teacher's features, as one network.

    The stages follow each other. Where the features at a seam have other widths, the adapter from the student's stage
    to the teacher's width and that from there to the next stage become one linear map (a 1x1 convolution on maps)
    between the student's stages; where there is no such seam, it is the student itself.

    Args:
      teacher: The teacher, which tells its widths; it is not computed.
      student: The student.
      stages: Features that the stages end in.

    Returns:
      A model that needs no teacher, for the variables that `merge` makes.

    Raises:
      ValueError: By the model, if features of the two differ in more than their width.
    """
    pairs = pairs_of(stages)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return merge(with_adapters(student.init(key, batch), teacher, student, pairs, key, batch))

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        own, adapters = split_adapters(variables)
        rows = {name: x for name, x in batch.items() if name != TEACHER}
        if not adapters:
            return student.apply(own, rows, key, train)
        cut = Stages(student, pairs, own, rows, key, train)
        return cut.run(lambda name, x: adapted(adapters.get(name), x))

    return Model(init, apply)


def with_adapters(
    variables: Variables, teacher: Model, student: Model, pairs: Mapping[str, str], key: jax.Array, batch: Batch
) -> Variables:
    """Variables of a student with adapters at those of its seams where the teacher has another width.

    Args:
      variables: The student's.
      teacher: The teacher.
      student: The student.
      pairs: Feature of the student -> feature of the teacher.
      key: Typed PRNG key.
      batch: A batch.

    Returns:
      The same variables, and in the params, unless all widths are equal, `ADAPTERS`: name -> {"write": map [Cs, Ct]
      from the student's feature, "read": map [Ct, Cs] of what its next stage reads}.

    Raises:
      ValueError: If features of the two differ in more than their width.
    """
    variables = as_variables(variables)
    own = _features(student, lambda: variables, batch)
    known = _features(teacher, lambda: teacher.init(key, batch), batch)
    adapters = {}
    for name, other in pairs.items():
        s, t = (_shape(found, each, who) for found, each, who in ((own, name, "student"), (known, other, "teacher")))
        if s[:-1] != t[:-1]:
            raise ValueError(
                f"the student's {name!r} has shape {s} and the teacher's {other!r} {t}: choose features of one "
                "resolution, which may differ in their width alone."
            )
        if s != t:
            keys = [fold_name(key, f"{ADAPTERS}/{name}/{way}") for way in ("write", "read")]
            adapters[name] = {"write": _linear(keys[0], s[-1], t[-1]), "read": _linear(keys[1], t[-1], s[-1])}
    return variables._replace(params={**variables.params, ADAPTERS: adapters}) if adapters else variables


def split_adapters(variables: Variables) -> tuple[Variables, Mapping[str, Any]]:
    """The student's own variables, and its adapters.

    Args:
      variables: Variables that `with_adapters` or `merge` made.

    Returns:
      Both; the adapters are empty if all widths are equal.
    """
    variables = as_variables(variables)
    own = {name: x for name, x in variables.params.items() if name != ADAPTERS}
    return variables._replace(params=own), variables.params.get(ADAPTERS, {})


def merge(variables: Variables) -> Variables:
    """Variables of `joined(...)`, in which the two adapters of each seam are one linear map.

    (x W + a) R + b = x (W R) + (a R + b)

    Args:
      variables: Those with adapters.

    Returns:
      The variables; the same ones if there are no adapters.
    """
    own, adapters = split_adapters(variables)
    if not adapters:
        return own

    def one(write: Any, read: Any) -> dict[str, jax.Array]:
        shift = adapted(read, write["bias"])
        return {"kernel": jnp.matmul(write["kernel"], read["kernel"]), "bias": shift}

    return own._replace(params={**own.params, ADAPTERS: {name: one(**each) for name, each in adapters.items()}})


def adapted(params: Any, x: jax.Array) -> jax.Array:
    """A feature after an adapter.

    Args:
      params: `kernel` [C, D] and `bias` [D]; None leaves the feature as it is.
      x: [..., C].

    Returns:
      [..., D], in at least float32.
    """
    if params is None:
        return x
    x, kernel, bias = numerics.promote(x, params["kernel"], params["bias"])
    return jnp.matmul(x, kernel) + jnp.broadcast_to(bias, (*x.shape[:-1], bias.size))


def _linear(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.nn.initializers.lecun_normal()(key, (inputs, outputs), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _features(model: Model, make: Any, batch: Batch) -> Mapping[str, Any]:
    """Shapes of a model's features."""
    return jax.eval_shape(lambda: model.apply(make(), batch, None, False)[0]).features


def _shape(found: Mapping[str, Any], name: str, who: str) -> tuple[int, ...]:
    if name not in found:
        raise ValueError(
            f"the {who} has no feature {name!r} that a stage ends in: it has {', '.join(found) or 'none'}."
        )
    return tuple(found[name].shape)
