"""Two tasks on images: the first classes of a data set, and then others with few labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from jaxkd import augment, data, models, parallel
from jaxkd.experiment.comparison import SYNTHETIC, open_all_classes, pixel_floor
from jaxkd.experiment.config import Config, check_choice
from jaxkd.experiment.context import Context
from jaxkd.experiment.domains import COUNT, POSITIVE, SIDE, WHOLE
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.images import check_network, first_rows, prepared
from jaxkd.experiment.networks import SMALL_IMAGES, make_network
from jaxkd.experiment.transfer import draw_labels
from jaxkd.experiment.trials import PERCENT, Column, Trials
from jaxkd.experiment.two_tasks import Learning, Way
from jaxkd.pytorch import Published
from jaxkd.runs.directory import Run
from jaxkd.runs.logger import Logger
from jaxkd.types import Variables

FROZEN = r"^(?!heads/)"
"""Pattern of all params of a network but the last layers of its tasks."""

COLUMNS: Mapping[str, Column] = {
    "new": Column("new task %", PERCENT),
    "before": Column("old task before %", PERCENT),
    "after": Column("old task after %", PERCENT),
}


@dataclasses.dataclass(frozen=True)
class ImageTasksConfig(Config):
    """Base configuration of an experiment in which a network learns the first classes of --source, and then others."""

    source: str = flag("npz:cifar100_{split}.npz", "images: a TFDS name, npz:PATH, folder:PATH, tar:PATH", DATA)
    classes: int = flag(20, "number of the source's first classes, the old task", DATA, COUNT)
    new_classes: int = flag(10, "number of the classes after them, the new task", DATA, COUNT)
    per_class: int = flag(50, "labels of each class of the new task", DATA, COUNT)
    image_size: int | None = flag(16, "height and width to resize images to; unchanged if absent", DATA, SIDE)
    train_split: str = flag("train[:90%]", "split of the training images", DATA)
    validation_split: str = flag("train[90%:]", "split that is evaluated during training", DATA)
    test_split: str = flag("test", "split on which each network is evaluated once, after its training", DATA)
    crop: int = flag(2, "padding of the random crop, in pixels; no crop if 0", DATA, WHOLE)
    flip: bool = flag(True, "flip images left to right at random", DATA)
    network: str = flag("convnet_8_16", "network of both tasks", NETWORKS)
    old_epochs: int = flag(12, "passes over the images of the old task, before the new one begins", TRAINING, COUNT)
    epochs: int = flag(20, "passes over the images of the new task", TRAINING, COUNT)
    batch_size: int = 64
    learning_rate: float = flag(3e-3, "highest rate of Adam; of layers that are kept a tenth", TRAINING, POSITIVE)
    seeds: int = flag(3, "students of each way, trained together", TRAINING, COUNT)

    networks: ClassVar[Mapping[str, Published]] = SMALL_IMAGES

    def check(self) -> None:
        """Checks names before the run's folder is made."""
        super().check()
        check_choice(self, "network", "network", self.networks)


SMOKE: Mapping[str, Any] = {
    "source": SYNTHETIC,
    "classes": 2,
    "new_classes": 2,
    "per_class": 8,
    "image_size": None,
    "crop": 1,
    "network": "tiny",
    "old_epochs": 1,
    "epochs": 1,
    "batch_size": 16,
    "seeds": 1,
}
"""Configuration of a smoke run."""


def open_image_tasks(config: ImageTasksConfig) -> tuple[dict[str, list[data.Source]], data.Source]:
    """Opens the images of both tasks.

    Args:
      config: The configuration.

    Returns:
      "old" and "new" -> training, validation and test images; of the new task few labels. And as few of the old one.

    Raises:
      ValueError: As `open_all_classes` says, or if there are fewer classes or labels.
    """
    sources = open_all_classes(config)
    known, last = sources[0].num_classes, config.classes + config.new_classes
    if min(config.classes, config.new_classes) < 2 or last > known:
        raise ValueError(
            f"--classes is {config.classes} and --new-classes {config.new_classes}, but {config.source} has {known}: "
            f"give at least 2 of each, at most {known} in all."
        )
    parts = {"old": range(config.classes), "new": range(config.classes, last)}
    tasks = {task: [data.of_classes(source, own) for source in sources] for task, own in parts.items()}
    few = {task: draw_labels(splits[0], config.per_class, config.seed) for task, splits in tasks.items()}
    tasks["new"][0] = few["new"]
    return tasks, few["old"]


class ImageTasks:
    """Ways to learn the new task after the old one, and the table that compares them.

    Args:
      config: The configuration.
      run: The run.
      logger: The logger.
      plan: The plan that spreads steps over devices.
    """

    def __init__(self, config: ImageTasksConfig, run: Run, logger: Logger, plan: parallel.Plan) -> None:
        self._config, (self._sources, rehearsed) = config, open_image_tasks(config)
        old = self._sources["old"][0]
        moves = [augment.random_crop(config.crop)] * bool(config.crop) + [augment.flip()] * config.flip
        noisy, clean = prepared(old, moves, seed=config.seed)
        context = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config)
        # Its own last layer answers no task: each has one on the features below it.
        model = make_network(config.network, old.num_classes, config.networks)
        check_network("--network", config.network, model, clean(first_rows(old, 8)))
        self._learning = Learning(context, self._sources, model, config.learning_rate / 10, rehearsed=rehearsed)
        self._trials = Trials(context, config.seeds, COLUMNS, [])
        self._old: Variables | None = None
        self._before = float("nan")

    def check(self, ways: Mapping[str, Way]) -> None:
        """Refuses ways of which the part to train does not fit the network, before anything is trained.

        Args:
          ways: Name -> way.

        Raises:
          ValueError: If one does not fit.
        """
        for name, way in ways.items():
            try:
                self._learning.check(way)
            except ValueError as error:
                raise ValueError(f"the way {name} does not fit --network {self._config.network}: {error}") from error

    def add_floor(self) -> None:
        """Adds the row of logistic regression on pixels, fitted for each task."""
        found, count = {}, 0
        for task, column in (("old", "before"), ("new", "new")):
            logits, parameters = pixel_floor(*self._sources[task])
            found[column] = float(np.mean(logits.argmax(axis=1) == data.labels_of(self._sources[task][2])))
            count += parameters
        self._trials.add("logistic regression", found, parameters=count)

    def learn_old(self) -> None:
        """Trains the network on the old task, once."""
        self._old, found = self._learning.learn_old(None, self._config.old_epochs)
        self._before = float(found["old"]["accuracy"][0])

    def learn(self, name: str, way: Way) -> None:
        """Trains students on the new task in one way, evaluates each once, and adds their row.

        Args:
          name: Name of the phase and of the row.
          way: The way.
        """
        seeds, old = range(self._config.seeds), self._old
        start, teacher, after = None, {}, way.start == "old"
        if after:
            if old is None:
                raise ValueError(f"{name} begins with the network of the old task: call learn_old first.")
            start = self._learning.begin(old, "^heads/new/", way, seeds)
            teacher = {"teacher": self._learning.side("old"), "teacher_variables": old} if way.taught else {}
        measured = ["new", "old"] if after else ["new"]
        options: dict[str, Any] = {"start": start, "epochs": self._config.epochs, "measured": measured, **teacher}
        variables, found = self._learning.fit(name, way, "new", seeds=seeds, **options)
        rows = [{"new": float(value)} for value in found["new"]["accuracy"]]
        if after:
            rows = [{**row, "after": float(x)} for row, x in zip(rows, found["old"]["accuracy"], strict=True)]
            rows[0]["before"] = self._before  # of one network, with which all of them began
        count = models.count_parameters(variables) // len(seeds)
        self._trials.add(name, rows, parameters=count)

    def conclude(self) -> None:
        """Prints the table and finishes the run."""
        tests = [self._sources[task][2] for task in ("new", "old")]
        title = " after ".join(f"{test.name} ({len(test):,} images)" for test in tests)
        title += f", {self._config.per_class} labels a class, {self._config.seeds} seed(s)"
        self._trials.conclude(title=title, headers={"network": "way", "parameters": "trained parameters"})
