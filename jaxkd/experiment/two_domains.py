"""Two domains of pictures with the same classes: labelled ones of a source, and ones of a target to label."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import augment, data, models, parallel
from jaxkd.augment.channels import to_channels
from jaxkd.experiment.comparison import SYNTHETIC, Comparison, compare, pixel_floor, synthetic
from jaxkd.experiment.context import Context
from jaxkd.experiment.images import check_network, first_rows, open_images, prepared
from jaxkd.runs.directory import Run
from jaxkd.runs.logger import Logger
from jaxkd.types import Model, Variables

DIGITS = "digits"
"""Value of `--source` that stands for scikit-learn's digits."""


@dataclasses.dataclass(frozen=True)
class Domains:
    """The pictures of two domains, and the networks that see them.

    Attributes:
      config: The configuration.
      compared: The comparison of students on the target.
      own: Training and validation pictures of the source, as the teacher sees them.
      labelled: Training pictures of the source in the size and the channels of the target's.
      held_out: Validation pictures of the source in that form.
    """

    config: Any
    compared: Comparison
    own: data.Source
    labelled: data.Source
    held_out: data.Source

    def add_floor(self) -> None:
        """Adds the row of logistic regression on the source's pixels, applied to the target's."""
        logits, parameters = pixel_floor(self.labelled, self.held_out, self.compared.test)
        self.compared.trials.add("logistic regression", self.compared.score(logits), parameters=parameters)

    def fit_teacher(self) -> tuple[Model, Variables]:
        """Trains the teacher on the source, and adds the row of its answers for the target.

        Returns:
          The teacher as one that sees the target's pictures, at its own resolution and with its own channels; and its
          variables.
        """
        compared, config = self.compared, self.config
        steps = compared.updates(config.teacher_epochs, self.own)
        noisy, clean = prepared(self.own, [augment.random_crop(1)], seed=config.seed)
        trials = compared.trials._replace(context=_with(compared.context, noisy, clean))
        optimizer = compared.optimizer(steps)
        variables = trials.fit("teacher", self.own, compared.teacher, compared.label, optimizer, steps)
        height, width, channels = self.own.image_shape or (1, 1, 1)
        teacher = models.at_resolution(models.with_channels(compared.teacher, channels), (height, width))
        trials.add("teacher", compared.scorer(teacher)(variables), parameters=models.count_parameters(variables))
        return teacher, variables

    def learn_noised(self, name: str, model: Model, rows: np.ndarray, labels: np.ndarray, seed: int) -> Variables:
        """Trains a noisy student on the source's labels and on pseudo-labels of the target, with RandAugment.

        Args:
          name: Name of the phase.
          model: The network.
          rows: Rows of the target's training pictures.
          labels: Their pseudo-labels.
          seed: Seed of the student.

        Returns:
          Its variables.
        """
        compared, config = self.compared, self.config
        chosen = data.with_pseudo_labels(compared.train, rows, labels, compared.train.num_classes)
        channels = self.labelled.image_shape[-1] if self.labelled.image_shape else 1
        source = data.join_tasks(labelled=self.labelled, answered=_in_channels(chosen, channels))
        moves = [augment.to_float(), augment.rand_augment(2, 5.0)]
        trials = compared.trials._replace(
            context=_with(compared.context, prepared(compared.train, moves, seed=config.seed)[0])
        )
        steps, key = compared.updates(config.epochs, source), jax.random.key(config.seed)
        options = {"key": jax.random.fold_in(key, seed)}
        return trials.fit(name, source, model, compared.label, compared.optimizer(steps), steps, **options)


def open_domains(config: Any, run: Run, logger: Logger, plan: parallel.Plan) -> Domains:
    """Opens the pictures of both domains and makes the networks.

    Args:
      config: The configuration, a `ComparisonConfig` whose splits are the target's, with `target`, `source_split`,
        `source_validation_split` and `teacher_size`.
      run: The run.
      logger: The logger.
      plan: The plan that spreads steps over devices.

    Returns:
      The domains.

    Raises:
      ValueError: As the parts say, if the two have other numbers of classes, or if the source's splits share a row.
    """
    spec = synthetic() if config.target == SYNTHETIC else config.target
    splits = open_images(config, config.train_split, config.validation_split, config.test_split, spec=spec)
    target = splits[0]
    height, width, channels = target.image_shape or (1, 1, 1)
    own = _labelled(config, config.source_split, config.teacher_size or (height, width))
    if own.num_classes != target.num_classes:
        raise ValueError(
            f"{own.name} has {own.num_classes} classes but {target.name} has {target.num_classes}: give a --source and "
            "a --target of the same classes."
        )
    kept = [_labelled(config, s, (height, width)) for s in (config.source_split, config.source_validation_split)]
    try:
        data.check_disjoint(*kept)
    except ValueError as error:
        raise ValueError(f"--source-validation-split overlaps with --source-split: {error}") from error
    large = [_in_channels(source, channels) for source in kept]
    compared = compare(config, run, logger, plan, splits=splits)
    example = prepared(own, [], seed=config.seed)[1](first_rows(own, 8))
    check_network("--teacher", config.teacher, compared.teacher, example, "--teacher-size")
    return Domains(config, compared, own, *large)


def _labelled(config: Any, split: str, size: int | tuple[int, int]) -> data.Source:
    """Pictures of the source at a resolution."""
    spec: Any = synthetic() if config.source == SYNTHETIC else config.source
    if config.source == DIGITS:
        spec = data.prepare_digits(Path(config.data_dir or "~/tensorflow_datasets").expanduser())
    source = data.open_source(spec, split, data_dir=config.data_dir, image_size=size)
    data.check_task(source, "classification")
    if source.image_shape is None:
        raise ValueError(f"{source.name} has no images: give a set of images for --source.")
    return data.in_memory(source)


def _in_channels(source: data.Source, channels: int) -> data.Source:
    """The same pictures in grey or in colour, with their labels and without other fields."""
    fields = source.read(np.arange(source.size))
    arrays = {"image": np.asarray(to_channels(jnp.asarray(fields["image"]), channels)), "label": fields["label"]}
    return dataclasses.replace(data.open_source(arrays, num_classes=source.num_classes), name=source.name)


def _with(context: Context, noisy: Any, clean: Any = None) -> Context:
    """The context with other preparations of batches."""
    return context._replace(train_prepare=noisy, eval_prepare=context.eval_prepare if clean is None else clean)
