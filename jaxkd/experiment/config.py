"""The configuration that all experiments share: where a run is kept, its seed, its data, how its steps are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from jaxkd.experiment.domains import COUNT, NON_NEGATIVE, SEED, SIDE, check_domains, check_value, flag_name
from jaxkd.experiment.flags import DATA, NETWORKS, RUN, TRAINING, StepOptions, flag
from jaxkd.experiment.networks import SMALL_IMAGES
from jaxkd.pytorch import Published


@dataclasses.dataclass(frozen=True)
class Config(StepOptions):
    """Base configuration; an experiment inherits it, gives its own defaults and adds its own flags."""

    name: str = flag("run", "folder of this run, in --root", RUN)
    root: str = flag("runs", "folder of all runs", RUN)
    seed: int = flag(0, "seed of all random choices: initial weights, order of the examples, augmentation", RUN, SEED)
    wandb: bool = flag(False, "log to Weights & Biases as well", RUN)
    data_dir: str | None = flag(None, "folder of the prepared data sets; TFDS's own if absent", DATA)
    batch_size: int = flag(64, "examples per step, over all devices", TRAINING, COUNT)

    def check(self) -> None:
        """Checks the values before the run's folder is made; an experiment extends it.

        Raises:
          ValueError: If a value is outside its domain.
        """
        check_domains(self)


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
    image_size: int | None = flag(
        None, "height and width to resize images to, in pixels; unchanged if absent", DATA, SIDE
    )
    teacher: str = flag(
        "resnet56", "teacher's network: mlp, convnet, resnet8 to resnet110, wrn_40_2, vgg13, ...", NETWORKS
    )
    student: str = flag("resnet20", "student's network: as --teacher, also MobileNetV2, ShuffleV1, ...", NETWORKS)
    epochs: int = flag(100, "passes over the training data, of the teacher and of the students", TRAINING, COUNT)

    networks: ClassVar[Mapping[str, Published]] = SMALL_IMAGES

    def check(self) -> None:
        """Checks values and the networks' names before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain, or there is no such network.
        """
        super().check()
        for side in ("teacher", "student"):
            check_choice(self, side, "network", self.networks)


@dataclasses.dataclass(frozen=True)
class SweepConfig(ImageConfig):
    """Base configuration of an experiment with several students of one teacher, whose logits may be cached."""

    weight_decay: float = flag(5e-4, "factor of the parameters that is added to the gradient", TRAINING, NON_NEGATIVE)
    seeds: int = flag(1, "students of each kind, trained together with one teacher", TRAINING, COUNT)
    cache: Literal["none", "full"] | int = flag(
        "none", "logits of the teacher to compute once: none, full, or a number k for its top k", TRAINING, COUNT
    )
    views: int | None = flag(
        None, "views of an image that students with a cached teacher see; one per epoch if absent", TRAINING, COUNT
    )

    @property
    def number_of_views(self) -> int:
        """Views of an image that students with a cached teacher see, at most one per epoch."""
        return self.epochs if self.views is None else min(self.views, self.epochs)


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
    choices, values = list(choices), (value,) if isinstance(value, str) else tuple(value)
    for one in values:
        if one not in choices:
            raise ValueError(f"there is no {what} {one!r}: choose one of {', '.join(choices)} for {flag_name(name)}.")
    if repeated := [one for one in values if values.count(one) > 1]:
        raise ValueError(f"{flag_name(name)} has {repeated[0]!r} twice: give each once.")


def check_file(config: Any, name: str) -> None:
    """Refuses a configuration that names a file which is not there.

    Args:
      config: The configuration.
      name: A field that holds a path or None.

    Raises:
      ValueError: If there is no such file.
    """
    path = getattr(config, name)
    if path is not None and not Path(path).expanduser().is_file():
        what = "is a folder" if Path(path).expanduser().is_dir() else "does not exist"
        raise ValueError(f"{flag_name(name)} is {path}, which {what}: give the path of a file.")


def parse_grid(config: Any, name: str, names: Sequence[str]) -> dict[str, list[float]]:
    """Reads the points of a sweep, such as `temperature=1,2,4`.

    Args:
      config: The configuration, whose fields declare the domains of the values.
      name: Its field of words, one for each name that is varied.
      names: All fields that may be varied.

    Returns:
      Name -> values, in the order given.

    Raises:
      ValueError: If a word has another form, a name is unknown, or a name or a value is given twice, or a value is
        outside its field's domain.
    """
    found: dict[str, list[float]] = {}
    for word in getattr(config, name):
        field, _, values = word.partition("=")
        if field not in names or field in found:
            what = (
                f"is given twice in {flag_name(name)}" if field in found else f"cannot be varied by {flag_name(name)}"
            )
            raise ValueError(f"{field!r} {what}: give each of {', '.join(names)} once at most.")
        try:
            found[field] = [float(value) for value in values.split(",")]
        except ValueError:
            raise ValueError(f"{word!r} is no part of {flag_name(name)}: write {field}=1,2,4.") from None
        for value in found[field]:
            check_value(type(config), field, value, f"{field} in {flag_name(name)}")
            if sum(np.float32(other) == np.float32(value) for other in found[field]) > 1:
                raise ValueError(f"{flag_name(name)} has {field}={value:g} twice: give each value once.")
    return found
