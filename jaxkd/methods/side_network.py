"""A side network: small student modules on the features of a frozen teacher, whose answers are summed.

y = sum_l F_s^l(F_t^l(x)),  F_t^l(x) the teacher's feature l and F_s^l a student module that reads it

**It needs the teacher at inference**: only the modules are trained, and the teacher is computed up to the last feature
that they read. It is a way to transfer a teacher cheaply, not to make it smaller. For a network alone, distil it
afterwards:

    student = side_network.reading(teacher, modules)
    phase 1: `student`, its teacher `teacher`, by any term
    phase 2: any small network, its teacher `side_network.whole(teacher, modules)` with the variables
             side_network.finish(variables of phase 1, teacher_variables), by losses.kd

Reference:
  Sung, Cho, Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", NeurIPS 2022,
  https://arxiv.org/abs/2206.06522; Zhang et al., "Side-Tuning: A Baseline for Network Adaptation via Additive Side
  Networks", ECCV 2020, https://arxiv.org/abs/1912.13503
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.keys import fold_name
from jaxkd.types import TEACHER, Batch, Model, Outputs, PyTree, Variables, as_variables

_TEACHER, _MODULES = "teacher", "modules"


def reading(teacher: Model, modules: Mapping[str, Model], *, field: str = "image") -> Model:
    """The modules as a student that is trained, with the teacher's variables from the step.

    Args:
      teacher: The teacher, in evaluation mode; give the same model to the step.
      modules: Name of a feature of the teacher -> a model that reads it in the place of the images, such as
        `models.mlp(K)` or `models.convnet(K, widths=(8,))`; all give logits of one shape.
      field: Field of the batch that the modules read.

    Returns:
      A model whose variables are the modules' by their names, whose logits are the sum of theirs, and whose features
      have `logits/<name>` for each. It needs the teacher in training and in evaluation; `whole` has it inside.

    Raises:
      ValueError: If there is no module; by the model, if the teacher has no such feature, the logits differ in shape,
        or there are no variables of the teacher.
    """
    _check(modules)

    def init(key: jax.Array, batch: Batch) -> Variables:
        known = jax.eval_shape(lambda: teacher.apply(teacher.init(key, batch), batch, None, False)[0].features)
        seen = {name: jnp.zeros(x.shape, x.dtype) for name, x in _chosen(known, modules).items()}
        made = {n: as_variables(m.init(fold_name(key, n), {**batch, field: seen[n]})) for n, m in modules.items()}
        return Variables({n: v.params for n, v in made.items()}, {n: v.state for n, v in made.items()})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        if TEACHER not in batch:
            raise ValueError(
                "this student reads its teacher's features and needs the teacher's variables: train it with the "
                "teacher, and evaluate side_network.whole with the variables of side_network.finish."
            )
        rows = {name: x for name, x in batch.items() if name != TEACHER}
        features = jax.lax.stop_gradient(teacher.apply(batch[TEACHER], rows, None, False)[0].features)
        return _sum(modules, as_variables(variables), _chosen(features, modules), rows, field, key, train)

    return Model(init, apply, reads_teacher=True)


def whole(teacher: Model, modules: Mapping[str, Model], *, field: str = "image") -> Model:
    """The teacher and the modules as one network, with the teacher frozen in its state.

    Args:
      teacher: As given to `reading`.
      modules: As given to `reading`.
      field: As given to `reading`.

    Returns:
      A model for the variables that `finish` makes, with the outputs of `reading`'s.
    """
    inner = reading(teacher, modules, field=field)

    def init(key: jax.Array, batch: Batch) -> Variables:
        return finish(inner.init(key, batch), teacher.init(key, batch))

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        variables = as_variables(variables)
        if _TEACHER not in variables.state:
            raise ValueError("the variables have no teacher: make them by side_network.finish.")
        known = variables.state[_TEACHER]
        own = Variables(variables.params, variables.state[_MODULES])
        outputs, state = inner.apply(own, {**batch, TEACHER: Variables(**known)}, key, train)
        return outputs, {_TEACHER: known, _MODULES: state}

    return Model(init, apply)


def finish(variables: Variables, teacher_variables: Variables) -> Variables:
    """Variables of `whole` from those of the modules and of the teacher.

    Args:
      variables: Those of `reading`'s student.
      teacher_variables: The teacher's.

    Returns:
      The variables; the teacher's are no params, so they are neither trained nor counted as such.
    """
    modules, known = as_variables(variables), as_variables(teacher_variables)
    return Variables(modules.params, {_MODULES: modules.state, _TEACHER: known._asdict()})


def _check(modules: Mapping[str, Any]) -> None:
    if not modules:
        raise ValueError("a side network needs at least one module: give a feature of the teacher -> a model.")


def _chosen(features: Mapping[str, Any], modules: Mapping[str, Any]) -> dict[str, Any]:
    """The features that the modules read."""
    if missing := [name for name in modules if name not in features]:
        known = ", ".join(features) or "none"
        raise ValueError(f"the teacher has no feature {missing[0]!r} for a module to read: it has {known}.")
    return {name: features[name] for name in modules}


def _sum(
    modules: Mapping[str, Model],
    variables: Variables,
    features: Mapping[str, jax.Array],
    rows: Batch,
    field: str,
    key: jax.Array | None,
    train: bool,
) -> tuple[Outputs, PyTree]:
    """Sum of the modules' logits, and their new states."""
    logits: dict[str, jax.Array] = {}
    state: dict[str, PyTree] = {}
    for name, module in modules.items():
        own = Variables(variables.params[name], variables.state[name])
        own_key = None if key is None else fold_name(key, name)
        out, state[name] = module.apply(own, {**rows, field: features[name]}, own_key, train)
        logits[name] = out.logits
    if len({z.shape for z in logits.values()}) > 1:
        shapes = ", ".join(f"{name} {z.shape}" for name, z in logits.items())
        raise ValueError(f"the modules give logits of different shapes, {shapes}: give all of them the same classes.")
    total = sum(logits.values(), start=jnp.zeros_like(next(iter(logits.values()))))
    return Outputs(total, {f"logits/{name}": z for name, z in logits.items()}), state
