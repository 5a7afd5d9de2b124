"""The configuration that all experiments share: where a run is kept, its seed, its data, how its steps are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from jaxkd.experiment.flags import DATA, NETWORKS, RUN, TRAINING, StepOptions, flag


@dataclasses.dataclass(frozen=True)
class Config(StepOptions):
    """Base configuration; an experiment inherits it, gives its own defaults and adds its own flags."""

    name: str = flag("run", "folder of this run, in --root", RUN)
    root: str = flag("runs", "folder of all runs", RUN)
    seed: int = flag(0, "seed of all random choices: initial weights, order of the examples, augmentation", RUN)
    wandb: bool = flag(False, "log to Weights & Biases as well", RUN)
    data_dir: str | None = flag(None, "folder of the prepared data sets; TFDS's own if absent", DATA)
    batch_size: int = flag(64, "examples per step, over all devices", TRAINING)

    def check(self) -> None:
        """Checks the values before the run's folder is made; an experiment extends it.

        Raises:
          ValueError: If a value is outside its domain.
        """
        check_positive(self, "batch_size", "micro_batches", "at_once")


@dataclasses.dataclass(frozen=True)
class ImageConfig(Config):
    """Base configuration of an experiment with two networks by name on a set of images."""

    source: str = flag(
        "cifar100",
        "data set: a TFDS name, npz:PATH ({split} in it if each split has its own file), folder:PATH of images, or a "
        "prepared TFDS folder",
        DATA,
    )
    train_split: str = flag("train", "split of the training data, in TFDS's syntax", DATA)
    image_size: int | None = flag(None, "height and width to resize images to, in pixels; unchanged if absent", DATA)
    teacher: str = flag(
        "resnet56", "teacher's network: mlp, convnet, resnet8 to resnet110, wrn_40_2, vgg13, ...", NETWORKS
    )
    student: str = flag("resnet20", "student's network: as --teacher, also MobileNetV2, ShuffleV1, ...", NETWORKS)
    epochs: int = flag(100, "passes over the training data, of the teacher and of the students", TRAINING)

    def check(self) -> None:
        """Checks the values before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain.
        """
        super().check()
        check_positive(self, "epochs", *(["image_size"] if self.image_size is not None else []))


def check_positive(config: Any, *names: str) -> None:
    """Refuses a configuration in which a count is not positive.

    Args:
      config: The configuration.
      *names: Fields that must be at least 1.

    Raises:
      ValueError: If one is smaller.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{flag_name(name)} is {getattr(config, name)}: give at least 1.")


def check_choice(config: Any, name: str, what: str, choices: Iterable[str]) -> None:
    """Refuses a configuration that names something unknown.

    Args:
      config: The configuration.
      name: A field that holds one name or several.
      what: The kind of thing that it names, for the message.
      choices: All known names.

    Raises:
      ValueError: If a name is not one of them.
    """
    value: str | Sequence[str] = getattr(config, name)
    choices = list(choices)
    for one in (value,) if isinstance(value, str) else value:
        if one not in choices:
            raise ValueError(f"there is no {what} {one!r}: choose one of {', '.join(choices)} for {flag_name(name)}.")


def flag_name(field: str) -> str:
    """The flag of a field, as `--batch-size` of `batch_size`.

    Args:
      field: The field's name.

    Returns:
      The flag.
    """
    return "--" + field.replace("_", "-")
