"""Teachers as experiments use them: live, or cached once and read by every student."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jaxkd import cache, data, models
from jaxkd.cache.write import (
    write_targets,
)
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.types import Model, Variables

Keep: TypeAlias = Literal["none", "full"] | int
"""What is kept of a teacher's logits: nothing, all, or the top so many."""


def cached_teacher(
    setting: Context,
    source: data.Source,
    model: Model,
    variables: Variables,
    *,
    views: int,
    keep: Keep = "full",
    features: Sequence[str] = (),
    path: str | os.PathLike[str] | None = None,
    made_with: Mapping[str, str] | None = None,
) -> tuple[data.Source, Model, Variables]:
    """A teacher whose outputs are computed once and then read beside the data, to give to `train_phase`.

    With full logits a training has the bits of one with the live teacher, as far as the device computes a network
    alike in a program of its own. With the top k it is that of `models.top_k(model, k)`, but for log-probabilities l
    that are rounded by at most 2^-11 |l| + 2^-25; the mass of the other classes is exact in float32.

    Args:
      setting: What all trainings share; its `train_prepare` makes the views that the teacher sees.
      source: What the student learns from.
      model: The teacher.
      variables: Its variables.
      views: How many views of each example there are: the number of epochs, or fewer that come again and again.
      keep: "full" for all logits in float32, k for the top k classes, "none" for the live teacher with these views.
      features: Names of features that are kept too, in the teacher's precision.
      path: Folder of the targets, written if they are not all there; `targets` in the run's folder if None.
      made_with: Further entries of the fingerprint.

    Returns:
      The source with its views and targets, the model that reads them, and its variables, of which there are none.

    Raises:
      ValueError: Whatever `write_targets` and `data.with_targets` say.
    """
    if keep == "none":
        return dataclasses.replace(source, views=views), model, variables
    folder, top_k = setting.run.path / "targets" if path is None else Path(path), None if keep == "full" else keep
    taught, held = setting.training.teacher(model, variables)
    print_ = {"teacher": cache.fingerprint_variables(variables), "precision": setting.training.precision}
    print_ |= {"teacher_weights": setting.training.teacher_weights, **(made_with or {})}
    options: dict[str, Any] = {"plan": setting.plan, "batch_size": setting.batch_of(source)}
    options |= {"top_k": top_k, "features": features}
    same: dict[str, Any] = {"prepare": setting.train_prepare, "views": views, "made_with": print_}
    rate = write_targets(folder, source, taught, held, **options, **same)
    setting.run.examples_per_second["targets"] = rate
    read = models.cached(features=features, num_classes=None if top_k is None else source.num_classes)
    return cache.with_targets(source, folder, **same), read, NO_VARIABLES
