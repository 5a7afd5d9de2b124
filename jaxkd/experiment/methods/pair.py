"""A teacher and a student as methods see them: their stages, the teacher's last layer, their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import Batch, Model, Variables


class Pair(NamedTuple):
    """A teacher, a student and their data, as a method asks for them.

    Attributes:
      names: Names of teacher and student.
      student_stages: The student's stages, shallow first.
      teacher_stages: As many of the teacher's.
      same_channels: Whether both networks have the same channels in each stage.
      classifier: Kernel [C, K] and bias [K] of the teacher's last layer.
      map_size: Height and width of the teacher's last feature map; (1, 1) if it has none.
      preact_statistics: () -> standard deviation and mean [C] of each of the teacher's stages before its last ReLU.
      examples: Number of training examples.
      labels: () -> labels [N] of all training examples, or None.
      steps: Updates of the student.
      pretrained: Parameters of a term that was trained before the student, or None.
    """

    names: tuple[str, str]
    student_stages: Sequence[str]
    teacher_stages: Sequence[str]
    same_channels: bool
    classifier: tuple[Any, Any]
    map_size: tuple[int, int]
    preact_statistics: Callable[[], Sequence[tuple[Any, Any]]]
    examples: int
    labels: Callable[[], Any]
    steps: int
    pretrained: Any = None


def preacts(stages: Sequence[str]) -> list[str]:
    """Names of the stages' features before their last ReLU.

    Args:
      stages: Names of stages.

    Returns:
      As many names.
    """
    return [f"{name}_preact" for name in stages]


def matching_stages(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> tuple[list[str], list[str], bool]:
    """Pairs the stages of two networks from the deepest on, as many as both have.

    Args:
      student: The student's features, or their shapes.
      teacher: The teacher's.

    Returns:
      Names of the student's stages, of as many of the teacher's, and whether these have the same channels; no names if
      one of them has no stages.
    """
    sides = [sorted(n for n in side if n.startswith("stage") and n[5:].isdecimal()) for side in (student, teacher)]
    number = min(map(len, sides))
    own, other = (names[len(names) - number :] for names in sides)
    channels = ([side[n].shape[-1] for n in names] for side, names in ((student, own), (teacher, other)))
    return own, other, len({*map(tuple, channels)}) == 1


def describe(
    names: tuple[str, str],
    teacher: Model,
    student: Model,
    teacher_variables: Variables,
    batch: Batch,
    *,
    examples: int,
    steps: int,
    labels: Callable[[], Any] = lambda: None,
    teacher_features: Mapping[str, Any] | None = None,
) -> Pair:
    """Describes a teacher and a student for the methods.

    Args:
      names: Their names, the teacher's first.
      teacher: The teacher.
      student: The student.
      teacher_variables: The teacher's variables.
      batch: Prepared examples, from which shapes and `preact_statistics` come.
      examples: Number of training examples.
      steps: Updates of the student.
      labels: () -> labels of all training examples.
      teacher_features: The teacher's features on `batch` where they are known already.

    Returns:
      The pair.
    """

    def features(model: Model, variables: Variables) -> Mapping[str, Any]:
        return model.apply(variables, batch, None, False)[0].features

    def shapes(model: Model) -> Mapping[str, Any]:
        return jax.eval_shape(lambda key: features(model, model.init(key, batch)), jax.random.key(0))

    def statistics() -> list[tuple[Any, Any]]:
        wanted = preacts(teacher_stages)
        found = teacher_features or jax.jit(lambda v: {n: features(teacher, v)[n] for n in wanted})(teacher_variables)
        return [(jnp.std(found[n], (0, 1, 2)), jnp.mean(found[n], (0, 1, 2))) for n in wanted]

    student_shapes, teacher_shapes = shapes(student), shapes(teacher)
    student_stages, teacher_stages, same = matching_stages(student_shapes, teacher_shapes)
    head = teacher_variables.params["head"]
    last = teacher_shapes.get("last", teacher_shapes[teacher_stages[-1]] if teacher_stages else None)
    return Pair(
        names,
        student_stages,
        teacher_stages,
        same,
        classifier=(head["kernel"], head["bias"]),
        map_size=(1, 1) if last is None else last.shape[1:3],
        preact_statistics=statistics,
        examples=examples,
        labels=labels,
        steps=steps,
    )
