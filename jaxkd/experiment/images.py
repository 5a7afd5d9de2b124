"""Images as experiments use them: checks of what the flags opened, before anything is trained, and prepared batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import augment, data
from jaxkd.augment.core import Augmentation
from jaxkd.data.checks import root_cause
from jaxkd.types import Batch, Model, Prepare

_SAMPLE = 512


def open_images(config: Any, *splits: str, spec: data.Spec | None = None) -> list[data.Source]:
    """Opens splits of `--source` into memory and checks them.

    Args:
      config: The configuration, an `ImageConfig`.
      *splits: The training split, then others.
      spec: The data set in place of `--source`, such as arrays that were made for a smoke run.

    Returns:
      A source for each split.

    Raises:
      ValueError: As `data.open_source`, `check_images` and `check_held_out` say.
    """
    options = {"data_dir": config.data_dir, "image_size": config.image_size}
    spec = config.source if spec is None else spec
    sources = [data.in_memory(data.open_source(spec, split, **options)) for split in splits]
    check_images(config, *sources)
    check_held_out(*sources)
    return sources


def check_held_out(training: data.Source, *others: data.Source) -> None:
    """Refuses splits to evaluate on that share rows with the training split; they may share rows with each other.

    Args:
      training: The training split.
      *others: Splits that networks are evaluated on.

    Raises:
      ValueError: If one shares a row with the training split.
    """
    for other in others:
        try:
            data.check_disjoint(training, other)
        except ValueError as error:
            raise ValueError(f"--train-split overlaps with a split to evaluate on: {error}") from error


def check_choices_held_out(validation: data.Source, test: data.Source) -> None:
    """Refuses a split for choices that shares rows with the one on which each network is evaluated once.

    Args:
      validation: The split on which choices are made.
      test: The test split.

    Raises:
      ValueError: If they share a row.
    """
    try:
        data.check_disjoint(validation, test)
    except ValueError as error:
        raise ValueError(f"--validation-split, for choices, overlaps with --test-split: {error}") from error


def first_rows(source: data.Source, count: int) -> Batch:
    """First rows of a source as a batch, the same in every process: an example for shapes and statistics.

    Args:
      source: The source.
      count: Number of rows; the last one is repeated if there are fewer.

    Returns:
      The batch, as a pipeline reads it.
    """
    return data.eval_batches(source, count, process_index=0, process_count=1)[0]


def check_images(config: Any, *sources: data.Source) -> None:
    """Refuses sources that no classifier of images can be trained and evaluated on, or that flags do not fit.

    Args:
      config: The configuration; of its fields are checked `crop`, the padding of a random crop, which must be less than
        the image, and `cache`, a number of classes, where there are such.
      *sources: The training split, then others that networks for its classes are evaluated on.

    Raises:
      ValueError: If one has no images, other shapes or more classes than the first, if there is one class only, or if a
        flag does not fit.
    """
    first, cache, crop = sources[0], getattr(config, "cache", "none"), getattr(config, "crop", 0)
    for source in sources:
        _check_like(source, first)
    if first.num_classes < 2:
        raise ValueError(
            f"{first.name} has one class only, which leaves nothing to learn: choose a --source or a split with more."
        )
    if not isinstance(cache, str) and cache > first.num_classes:
        raise ValueError(f"--cache is {cache} but {first.name} has {first.num_classes} classes: give at most that.")
    height, width, *_ = first.image_shape or (0, 0)
    if crop and crop >= min(height, width):
        raise ValueError(
            f"--crop is {crop} but images are of {height} x {width} pixels: give less than {min(height, width)}."
        )


def _check_like(source: data.Source, first: data.Source) -> None:
    """Refuses a split of other images, labels or of more classes than the training split."""
    data.check_task(source, "classification")
    if source.image_shape is None:
        raise ValueError(f"{source.name} has no images: give a set of images for --source.")
    if source.image_shape != first.image_shape:
        raise ValueError(
            f"images are {source.image_shape} in {source.name} but {first.image_shape} in {first.name}: give "
            "--image-size, and splits with as many channels."
        )
    if source.num_classes > first.num_classes:
        raise ValueError(
            f"{source.name} has {source.num_classes} classes but {first.name}, which networks are trained on, has "
            f"{first.num_classes}: choose splits of the same classes."
        )


def check_networks(config: Any, teacher: Model, student: Model, example: Batch) -> None:
    """Refuses a teacher or a student that cannot take the images.

    Args:
      config: The configuration, an `ImageConfig`.
      teacher: The teacher.
      student: The student.
      example: Prepared images.

    Raises:
      ValueError: As `check_network` says.
    """
    check_network("--teacher", config.teacher, teacher, example)
    check_network("--student", config.student, student, example)


def check_network(flag: str, name: str, model: Model, example: Batch, size: str = "--image-size") -> Any:
    """Refuses a network that cannot take the images, by running it on their shapes.

    Args:
      flag: The flag that names the network.
      name: The network's name.
      model: The network.
      example: Prepared images.
      size: The flag that gives their size.

    Returns:
      Shapes of its variables.

    Raises:
      ValueError: If it fails.
    """
    key, shape = jax.random.key(0), example["image"].shape[1:]

    def run(batch: Batch) -> Any:
        variables = model.init(key, batch)
        return variables, model.apply(variables, batch, key, True)[0], model.apply(variables, batch, None, False)[0]

    try:
        variables, outputs, _ = jax.eval_shape(run, dict(example))
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(
            f"{flag} {name} cannot take images of {shape} ({root_cause(error)}): give a larger {size}, or "
            "another network."
        ) from error
    if any(0 in x.shape for x in jax.tree.leaves((variables, outputs))):
        raise ValueError(
            f"{flag} {name} reduces images of {shape} to nothing: give a larger {size}, or another network."
        )
    return variables


def to_unit(source: data.Source) -> Augmentation:
    """The augmentation that brings a source's images to floats in [0, 1], whatever numbers they are kept in.

    Args:
      source: Images in uint8, or in floats of 0..1 or 0..255.

    Returns:
      An augmentation.

    Raises:
      ValueError: If the images are floats of another range.
    """
    if not _has_floats(source):
        return augment.to_float()
    images = source.read(np.unique(np.linspace(0, source.size - 1, _SAMPLE).astype(np.int64)))["image"]
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255:
        raise ValueError(
            f"images of {source.name} are floats from {low:.4g} to {high:.4g}, which this recipe cannot "
            "normalise: keep them from 0 to 1 or from 0 to 255, before any normalisation."
        )
    return lambda key, example: {**example, "image": example["image"] / (1 if high <= 1 else 255)}


def _has_floats(source: data.Source) -> bool:
    """True for images in floats, false for uint8."""
    return bool(source.read(np.zeros(1, np.int64))["image"].dtype != np.uint8)


def prepared(
    source: data.Source,
    moves: Sequence[Augmentation],
    *,
    seed: int,
    statistics: tuple[Any, Any] | None = None,
) -> tuple[Prepare, Prepare]:
    """Functions that prepare batches of images: for training, and for evaluation.

    Args:
      source: The training images.
      moves: Augmentations of training images, before they are normalised.
      seed: Seed of the augmentations.
      statistics: Mean and standard deviation of each channel of images in [0, 1]; the source's own if None, or if it
        has another number of channels.

    Returns:
      Preparation of training batches, and of others.

    Raises:
      ValueError: As `to_unit` says, with `statistics`.
    """
    if statistics is not None and source.image_shape and len(statistics[0]) == source.image_shape[-1]:
        scale, (mean, std) = to_unit(source), statistics
    else:  # which are in the source's own units
        scale = augment.compose() if _has_floats(source) else augment.to_float()
        mean, std = data.statistics(source)
    clean = augment.compose(scale, augment.normalize(mean, std))
    noisy = augment.compose(*moves, clean)
    return augment.augment_batch(noisy, seed=seed), augment.augment_batch(clean, seed=seed)
