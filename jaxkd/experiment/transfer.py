"""Transfer from one data set to another: both sets, and optimizers that spare the layers that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxkd import data, models
from jaxkd.experiment.images import check_held_out, check_images
from jaxkd.train import check_parts, optimizers
from jaxkd.types import Batch, Model, Term

GROUPS = (r"head|term/", r"stage[34]", r"stage2", r".")
"""Groups of layers as regular expressions of their paths, deepest first."""


def open_source_and_target(
    source: str,
    target: str,
    splits: tuple[str, str, str, str],
    *,
    per_class: int,
    source_classes: int | None = None,
    target_classes: int | None = None,
    data_dir: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> tuple[data.Source, data.Source, data.Source, data.Source]:
    """Opens a set to pre-train on, and one with few labels to transfer to.

    Args:
      source: The set to pre-train on, as `data.open_source` takes it.
      target: The set to transfer to.
      splits: Split of the source; the target's splits for training, validation and test.
      per_class: Labels of each class of the target.
      source_classes: Number of the source's first classes to use; all if None.
      target_classes: Number of the target's last classes to use; all if None.
      data_dir: Folder of the prepared data sets.
      image_size: Height and width to resize images to.
      seed: Seed of the draw of the labels.

    Returns:
      The source; few examples of the target, its validation and its test split.

    Raises:
      ValueError: If the images of the two have different shapes, or there are fewer classes or labels than asked for.
    """

    def opened(spec: str, split: str) -> data.Source:
        source = data.open_source(spec, split, data_dir=data_dir, image_size=image_size)
        data.check_task(source, "classification")
        return data.in_memory(source)

    first, *rest = splits
    pretraining, targets = opened(source, first), [opened(target, split) for split in rest]
    if source_classes is not None:
        _check_classes("--source-classes", source_classes, pretraining)
        pretraining = data.of_classes(pretraining, range(source_classes))
    if target_classes is not None:
        _check_classes("--target-classes", target_classes, targets[0])
        last = range(targets[0].num_classes - target_classes, targets[0].num_classes)
        targets = [data.of_classes(t, last) for t in targets]
    whole, validation, test = targets
    check_images(None, pretraining)
    check_images(None, *targets)
    few = draw_labels(whole, per_class, seed)
    if pretraining.image_shape != whole.image_shape:
        raise ValueError(
            f"images are {pretraining.image_shape} in the source but {whole.image_shape} in the target: "
            "give --image-size, and sets with as many channels."
        )
    check_held_out(*targets)
    return pretraining, few, validation, test


def draw_labels(whole: data.Source, per_class: int, seed: int, flag: str = "--per-class") -> data.Source:
    """Draws a few examples of each class.

    Args:
      whole: All examples.
      per_class: Examples of each class.
      seed: Seed of the draw.
      flag: The flag that gave their number.

    Returns:
      The examples.

    Raises:
      ValueError: If a class has fewer.
    """
    most = int(np.bincount(data.labels_of(whole), minlength=whole.num_classes).min())
    if per_class > most:
        what = f"give at most {most}" if most else "choose a --train-split that has examples of each class"
        raise ValueError(f"{flag} is {per_class} but a class of {whole.name} has {most} examples: {what}.")
    return data.few_labels(whole, per_class, seed=seed)


def _check_classes(flag: str, count: int, source: data.Source) -> None:
    """Refuses more classes than there are."""
    if count > source.num_classes:
        raise ValueError(f"{flag} is {count} but {source.name} has {source.num_classes} classes: give at most that.")


def check_kinds(
    config: Any, kinds: Mapping[str, tuple[Term, Mapping[str, Any]]], tuned: Model, student: Model, example: Batch
) -> None:
    """Refuses kinds of students whose objective does not fit the networks, and a teacher that cannot be thawed.

    Args:
      config: The configuration, with the fields `students`, `teacher` and `student`.
      kinds: Kind -> its term, and {"teacher": model} if it has a teacher.
      tuned: The teacher with a last layer for the target.
      student: The student.
      example: Prepared images with labels.

    Raises:
      ValueError: If one does not fit; the sentence names it, both networks, and the reason.
    """
    params = jax.eval_shape(lambda: tuned.init(jax.random.key(0), dict(example))).params
    for optimizer in (thawing(1.0, 10), last_layer(1.0, 10)):
        try:
            jax.eval_shape(optimizer.init, {"student": params, "term": {}})
        except ValueError as error:
            raise ValueError(
                f"--teacher {config.teacher} cannot be thawed stage by stage ({str(error).rstrip('.')}): "
                "choose another network."
            ) from error
    for kind in config.students:
        term, given = kinds[kind]
        teacher = given.get("teacher", models.no_teacher())
        shapes = jax.eval_shape(lambda model=teacher: model.init(jax.random.key(0), dict(example)))
        try:
            check_parts(student, teacher, term, batch=example, teacher_variables=shapes)
        except ValueError as error:
            raise ValueError(
                f"--students has {kind!r}, which does not fit {config.teacher} -> {config.student} "
                f"({str(error).rstrip('.')}): leave it out, or choose other networks."
            ) from error


def sgd(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """SGD with momentum 0.9 and weight decay 5e-4.

    Args:
      rate: The learning rate.

    Returns:
      An optax transformation.
    """
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


def thawing(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
    """Gradual unfreezing: shallower groups of layers join later, a tenth of the steps apart, and with smaller rates.

    Args:
      rate: The learning rate of the deepest group.
      steps: Updates of the training.

    Returns:
      An optax transformation.
    """
    return optimizers.unfreezing(sgd, GROUPS, rate, every=steps // 10)


def last_layer(rate: optax.ScalarOrSchedule, steps: int) -> optax.GradientTransformation:
    """SGD of the last layer; all others stay as they are.

    Args:
      rate: The learning rate.
      steps: Updates of the training.

    Returns:
      An optax transformation.
    """
    return optimizers.by_path({"head": sgd(rate)}, optax.set_to_zero())
