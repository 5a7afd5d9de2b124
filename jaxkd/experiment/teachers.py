"""Teachers as experiments use them: live, or with outputs that are computed once and read by every student."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jaxkd import cache, data, models
from jaxkd.cache.write import write_targets
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.types import Model, Variables

Keep: TypeAlias = Literal["none", "full"] | int
"""The part of a teacher's logits that is cached: nothing, all classes, or the top k."""


def cached_teacher(
    context: Context,
    source: data.Source,
    teacher: Model,
    teacher_variables: Variables,
    *,
    views: int,
    keep: Keep = "full",
    features: Sequence[str] = (),
    path: str | os.PathLike[str] | None = None,
    made_with: Mapping[str, str] | None = None,
) -> tuple[data.Source, Model, Variables]:
    """Computes a teacher's outputs once, for `train_phase` to read them together with the data.

    With full logits, a training ends with the same bits as one with the live teacher, on a device that computes a
    network alike in a program of its own. With the top k it is a training with `models.top_k(teacher, k)`, except that
    log-probabilities l are rounded by at most 2^-11 |l| + 2^-25; the mass of the other classes is exact in float32.

    Args:
      context: The context of the experiment's trainings; its `train_prepare` makes the views that the teacher sees.
      source: The students' training data.
      teacher: The teacher.
      teacher_variables: Its variables.
      views: Views of each example: the number of epochs, or fewer, which are then repeated.
      keep: "full" for all logits in float32, k for the top k classes, "none" for the live teacher on these views.
      features: Names of features that are cached too, in the teacher's precision.
      path: Folder of the targets, written if they are incomplete; `targets` in the run's folder if None.
      made_with: Further entries of the fingerprint.

    Returns:
      The source with its views and targets, the model that reads them, and its variables, which are empty.

    Raises:
      ValueError: As `write_targets` and `cache.with_targets` say.
    """
    if keep == "none":
        return dataclasses.replace(source, views=views), teacher, teacher_variables
    if keep != "full" and not source.num_classes:
        raise ValueError(f"{source.name} does not say how many classes the teacher has: open it with num_classes=.")
    context.run.settle()
    folder = context.run.path / "targets" if path is None else Path(path)
    top_k, options = None if keep == "full" else keep, context.step_options
    fingerprint = {"teacher": cache.fingerprint_variables(teacher_variables), "precision": options.precision}
    fingerprint |= {"teacher_weights": options.teacher_weights, **(made_with or {})}
    same: dict[str, Any] = {"prepare": context.train_prepare, "views": views, "made_with": fingerprint}
    context.run.examples_per_second["targets"] = write_targets(
        folder,
        source,
        *options.cast_teacher(teacher, teacher_variables),
        plan=context.plan,
        batch_size=context.batch_of(source),
        top_k=top_k,
        features=features,
        **same,
    )
    reader = models.cached(features=features, num_classes=None if top_k is None else source.num_classes)
    return cache.with_targets(source, folder, **same), reader, NO_VARIABLES
