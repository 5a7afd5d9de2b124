"""Checks that methods fit a teacher and a student, on shapes alone, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data.checks import root_cause
from jaxkd.experiment.methods.objective import applies, objective
from jaxkd.experiment.methods.pair import Pair, describe
from jaxkd.experiment.methods.table import METHODS
from jaxkd.types import Batch, Model, Outputs, PyTree, Term, Variables


def check_methods(
    flag: str,
    methods: Sequence[str],
    names: tuple[str, str],
    teacher: Model,
    student: Model,
    batch: Batch,
    *,
    examples: int,
    steps: int,
    labels: Callable[[], Any] = lambda: None,
) -> None:
    """Refuses methods that cannot compare two networks: of other channels, without stages, or too small.

    Args:
      flag: The flag that names the methods.
      methods: Names of the methods.
      names: Names of teacher and student.
      teacher: The teacher, whose outputs have a `head`.
      student: The student.
      batch: Prepared examples.
      examples: Number of training examples.
      steps: Updates of the student.
      labels: () -> labels of all training examples.

    Raises:
      ValueError: If a method does not fit; the sentence names it, both networks, and the reason.
    """
    variables = _zeros(jax.eval_shape(lambda: teacher.init(jax.random.key(0), dict(batch))))
    teacher_out = _outputs(teacher, batch)
    counts: dict[str, Any] = {"examples": examples, "steps": steps, "labels": labels}
    known = _zeros(teacher_out.features)
    pair = describe(names, teacher, student, variables, batch, teacher_features=known, **counts)
    for method in methods:
        if reason := misfit(method, pair, student, teacher_out, batch):
            raise ValueError(
                f"{flag} has {method!r}, which does not fit {' -> '.join(names)} ({reason}): leave it out, or choose "
                "other networks."
            )


def misfit(name: str, pair: Pair, student: Model, teacher_out: Outputs, batch: Batch) -> str:
    """The reason why a method cannot compare two networks, found on shapes alone.

    Args:
      name: The method.
      pair: The networks; values of the teacher's variables do not matter.
      student: The student.
      teacher_out: The teacher's outputs on the batch, or their shapes.
      batch: Prepared examples.

    Returns:
      The reason; "" if the method fits.
    """
    if not applies(name, pair):
        return "it needs the same channels in all stages"
    method = METHODS[name]
    try:
        student_out = _outputs(method.wrap(pair, student), batch)
        if method.pretrain:
            own = _try(method.pretrain(pair), student_out, teacher_out, batch)
            pair = pair._replace(pretrained=_zeros(own.params))
        if method.term_first:
            _try(method.make(pair), student_out, teacher_out, batch)
        _try(objective(name, pair), student_out, teacher_out, batch)
    except ValueError as error:
        return str(error).rstrip(".")
    except KeyError as error:
        return f"there is no feature {error}"
    except IndexError:
        return "there are too few stages"
    except (TypeError, ArithmeticError) as error:
        return root_cause(error)
    return ""


def _try(term: Term, student_out: Outputs, teacher_out: Outputs, batch: Batch) -> Variables:
    """Shapes of what a term owns, after it was applied to shapes."""

    def run(student_out: Outputs, teacher_out: Outputs, batch: Batch) -> Variables:
        key = jax.random.key(0)
        own = term.init(key, student_out, teacher_out, batch)
        term.apply(own, student_out, teacher_out, batch, key, jnp.int32(0))
        return own

    return jax.eval_shape(run, student_out, teacher_out, dict(batch))


def _outputs(model: Model, batch: Batch) -> Outputs:
    """Shapes of a network's outputs in training."""

    def run(batch: Batch) -> Outputs:
        key = jax.random.key(0)
        return model.apply(model.init(key, batch), batch, key, True)[0]

    return jax.eval_shape(run, dict(batch))


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
