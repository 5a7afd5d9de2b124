"""Comparisons of methods: a pair of networks by name on a set of images, and the rows that every table begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import augment, data, losses, metrics, models, objectives, parallel
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.config import ImageConfig
from jaxkd.experiment.context import Context
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, TEMPERATURE, WHOLE
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.flags import DATA, TRAINING, flag
from jaxkd.experiment.images import check_choices_held_out, check_networks, first_rows, open_images, prepared
from jaxkd.experiment.networks import make_network
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.trials import PERCENT, Column, Scores, Trials
from jaxkd.runs.directory import Run
from jaxkd.runs.logger import Logger
from jaxkd.types import Batch, Metric, Model, Outputs, Term, Variables

SYNTHETIC = "synthetic"
"""Value of `--source` that stands for `synthetic`."""

SMOKE: Mapping[str, Any] = {
    "source": SYNTHETIC,
    "classes": None,
    "image_size": None,
    "train_split": "train[:90%]",
    "validation_split": "train[90%:]",
    "crop": 1,
    "teacher": "tiny",
    "student": "tiny",
    "teacher_epochs": 1,
    "epochs": 1,
    "batch_size": 16,
    "seeds": 1,
}
"""Configuration of a smoke run."""

MEASURES: Mapping[str, Metric] = {name: metrics.CLASSIFICATION[name] for name in ("accuracy", "nll", "ece")}
"""Figures of every network on the test split."""


@dataclasses.dataclass(frozen=True)
class ComparisonConfig(ImageConfig):
    """Base configuration of an experiment that compares methods for one pair of networks on images."""

    source: str = "npz:cifar100_{split}.npz"
    classes: int | None = flag(20, "number of the source's first classes to use; all if absent", DATA, COUNT)
    image_size: int | None = 16
    train_split: str = "train[:90%]"
    validation_split: str = flag("train[90%:]", "split on which choices are made", DATA)
    test_split: str = flag("test", "split on which each network is evaluated once, after its training", DATA)
    crop: int = flag(2, "padding of the random crop, in pixels; no crop if 0", DATA, WHOLE)
    flip: bool = flag(True, "flip images left to right at random", DATA)
    teacher: str = "convnet"
    student: str = "convnet_8_16"
    teacher_epochs: int = flag(15, "passes of the teacher over the training images", TRAINING, COUNT)
    epochs: int = flag(10, "passes of each student over the training images", TRAINING, COUNT)
    batch_size: int = 128
    learning_rate: float = flag(3e-3, "highest rate of AdamW", TRAINING, POSITIVE)
    temperature: float = flag(4.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.1, "weight of the labels; the soft labels have the rest", TRAINING, FRACTION)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    @property
    def columns(self) -> Mapping[str, Column]:
        """Name -> column of each figure of the table."""
        return {
            "accuracy": Column("accuracy %", PERCENT),
            "nll": Column("NLL", digits=3),
            "ece": Column("ECE %", PERCENT),
        }


@dataclasses.dataclass(frozen=True)
class FewDigitsConfig(ComparisonConfig):
    """Configuration of a comparison on few images of digits, for networks that a CPU trains in seconds."""

    source: str = "npz:mnist_{split}.npz"
    classes: int | None = None
    image_size: int | None = None
    train_split: str = "train[:1500]"
    validation_split: str = "train[1500:3000]"
    flip: bool = False
    teacher: str = "lenet"
    student: str = "mlp"
    batch_size: int = 64
    teacher_epochs: int = 12
    epochs: int = 8


@dataclasses.dataclass(frozen=True)
class SmallDigitsConfig(FewDigitsConfig):
    """Configuration of a comparison on few small images of digits, for two convolutional networks."""

    image_size: int | None = 14
    teacher: str = "convnet"
    student: str = "convnet_8_16"
    epochs: int = 40
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"


def synthetic() -> dict[str, np.ndarray]:
    """Makes small coloured pictures of four classes for smoke runs, a bright quarter each, always the same.

    Returns:
      Arrays of the splits train and test.
    """
    random = np.random.RandomState(0)  # its stream is frozen for good
    arrays: dict[str, np.ndarray] = {}
    for split, size in (("train", 80), ("test", 32)):
        labels = (np.arange(size) % 4).astype(np.uint8)
        images = random.randint(0, 160, (size, 12, 12, 3))
        for image, label in zip(images, labels, strict=True):
            row, column = 6 * (label // 2), 6 * (label % 2)
            image[row : row + 6, column : column + 6] += 90
        arrays |= {f"{split}_image": images.astype(np.uint8), f"{split}_label": labels}
    return arrays


def open_all_classes(config: Any) -> list[data.Source]:
    """Opens the training, validation and test images of `--source`.

    Args:
      config: The configuration, with the three splits.

    Returns:
      The three sources, in memory.

    Raises:
      ValueError: As `open_images` and `check_choices_held_out` say.
    """
    spec = synthetic() if config.source == SYNTHETIC else None
    sources = open_images(config, config.train_split, config.validation_split, config.test_split, spec=spec)
    check_choices_held_out(*sources[1:])
    return sources


def open_splits(config: ComparisonConfig) -> list[data.Source]:
    """Opens the training, validation and test images, of the first `--classes` classes.

    Args:
      config: The configuration.

    Returns:
      The three sources, in memory.

    Raises:
      ValueError: As `open_all_classes` says, or if there are fewer classes.
    """
    sources = open_all_classes(config)
    if config.classes is None:
        return sources
    known = sources[0].num_classes
    if not 2 <= config.classes <= known:
        raise ValueError(f"--classes is {config.classes} but {config.source} has {known} classes: give 2 to {known}.")
    return [data.of_classes(source, range(config.classes)) for source in sources]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One pair of networks on three splits of images, and the table that compares methods for it.

    Attributes:
      config: The configuration.
      context: The context of the trainings.
      train: Training images.
      validation: Images on which choices are made.
      test: Images on which each network is evaluated once.
      teacher: The teacher's network.
      student: The students' network.
      trials: The rows of the table so far.
    """

    config: ComparisonConfig
    context: Context
    train: data.Source
    validation: data.Source
    test: data.Source
    teacher: Model
    student: Model
    trials: Trials
    _answers: dict[Model, Callable[[Variables], Any]] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> Term:
        """The loss of a network alone: cross-entropy of the labels."""
        return objectives.from_labels(losses.cross_entropy)

    @property
    def kd(self) -> Term:
        """The loss of plain distillation: alpha CE + (1 - alpha) T^2 KL."""
        kd = objectives.from_logits(losses.kd, temperature=self.config.temperature)
        return objectives.weighted(label=(self.config.alpha, self.label), kd=(1 - self.config.alpha, kd))

    @property
    def example(self) -> Batch:
        """Prepared images, for shapes."""
        return self.context.eval_prepare(first_rows(self.train, 8))

    def updates(self, epochs: int, source: data.Source | None = None) -> int:
        """Number of updates of a training.

        Args:
          epochs: Passes over the source.
          source: The training data, `train` if None.

        Returns:
          The number.
        """
        source = self.train if source is None else source
        return epochs * data.steps_per_epoch(source, self.context.batch_of(source))

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """AdamW whose rate rises to `--learning-rate` and falls along a cosine.

        Args:
          steps: Updates of the training.

        Returns:
          The optax transformation.
        """
        return adamw_of(self.config.learning_rate)(steps)

    def answers(self, model: Model, variables: Variables, source: data.Source) -> np.ndarray:
        """Logits of a network on a source, in evaluation mode.

        Args:
          model: The network; its program is compiled once.
          variables: Its variables, of one network.
          source: The source.

        Returns:
          [N, K], in the source's order.
        """
        if model not in self._answers:
            self._answers[model] = predictor(self.context, model)
        return np.asarray(self._answers[model](variables)(source)[1])

    def score(self, logits: np.ndarray, source: data.Source | None = None) -> Scores:
        """Figures of logits.

        Args:
          logits: [N, K], in the source's order.
          source: The source that has the labels, `test` if None.

        Returns:
          Name of each of `MEASURES` -> its value.
        """
        source = self.test if source is None else source
        out, batch = Outputs(jnp.asarray(logits)), {"label": jnp.asarray(data.labels_of(source))}
        found = {name: metric(out, out, batch) for name, metric in MEASURES.items()}
        return {name: float(value) for name, value in metrics.values(found).items()}

    def scorer(self, model: Model) -> Callable[[Variables], Scores]:
        """Makes the function that evaluates one network on the test split.

        Args:
          model: The network.

        Returns:
          Variables -> its figures.
        """
        return lambda variables: self.score(self.answers(model, variables, self.test))

    def add_floor(self) -> None:
        """Adds the row of logistic regression on pixels, whose strength is chosen on the validation split."""
        logits, parameters = pixel_floor(self.train, self.validation, self.test)
        self.trials.add("logistic regression", self.score(logits), parameters=parameters)

    def fit_teacher(self, name: str = "teacher", model: Model | None = None, **options: Any) -> Variables:
        """Trains a single network on the labels for `--teacher-epochs`, and adds its row.

        Args:
          name: Name of the phase and of the row.
          model: The network; the teacher's if None.
          **options: Further ones of `train_phase`, such as a `key` of its own.

        Returns:
          Its variables.
        """
        model, steps = self.teacher if model is None else model, self.updates(self.config.teacher_epochs)
        variables = self.trials.fit(name, self.train, model, self.label, self.optimizer(steps), steps, **options)
        self.trials.add(name, self.scorer(model)(variables), parameters=models.count_parameters(variables))
        return variables

    def teach(
        self,
        name: str,
        term: Term,
        *,
        model: Model | None = None,
        source: data.Source | None = None,
        epochs: int | None = None,
        optimizer: optax.GradientTransformation | None = None,
        score: Callable[[Variables], Scores] | None = None,
        **options: Any,
    ) -> Variables:
        """Trains students that differ in their seeds, evaluates each once on the test split, and adds their row.

        Args:
          name: Name of the phase and of the row.
          term: The objective.
          model: The network; the student's if None.
          source: The training data; `train` if None.
          epochs: Passes over it; `--epochs` if None.
          optimizer: The optax transformation; `self.optimizer` if None.
          score: Variables of one student -> its figures; those of its logits on the test split if None.
          **options: Further ones of `train_phase`, such as `teacher` and `teacher_variables`, or `start`.

        Returns:
          The students' variables, stacked.
        """
        model, source = self.student if model is None else model, self.train if source is None else source
        steps = self.updates(self.config.epochs if epochs is None else epochs, source)
        optimizer = self.optimizer(steps) if optimizer is None else optimizer
        score = self.scorer(model) if score is None else score
        return self.trials.teach(name, source, model, term, optimizer, steps, score, **options)

    def conclude(self, **options: Any) -> None:
        """Prints the table and finishes the run.

        Args:
          **options: As for `Trials.conclude`.
        """
        title = f"{self.test.name}: {len(self.test):,} images, {self.config.seeds} seed(s)"
        self.trials.conclude(**{"title": title, **options})


def pixel_floor(train: data.Source, validation: data.Source, test: data.Source) -> tuple[np.ndarray, int]:
    """Fits logistic regression on pixels, whose strength is chosen on the validation split.

    Args:
      train: Training images.
      validation: Images on which the strength is chosen.
      test: Images that are classified.

    Returns:
      Logits [N, K] of the test images, and the number of parameters.
    """
    pixels = [
        np.asarray(source.read(np.arange(source.size))["image"], np.float32).reshape(source.size, -1)
        for source in (train, validation, test)
    ]
    # The optimum is that of the pixels as they are, with an intercept; it is found sooner.
    scale, centre = (255 if pixels[0].max() > 1 else 1), pixels[0].mean(axis=0)
    x, xv, xt = ((each - centre) / scale for each in pixels)
    labels = data.labels_of(train), data.labels_of(validation)
    line = logistic_regression(x, labels[0], (xv, labels[1]), train.num_classes, strengths=(1e-3, 1e-2, 3e-2))
    return line.logits(xt), line.parameters


def compare(
    config: ComparisonConfig,
    run: Run,
    logger: Logger,
    plan: parallel.Plan,
    *,
    columns: Mapping[str, Column] = {},
    splits: Sequence[data.Source] | None = None,
) -> Comparison:
    """Opens the images and makes the two networks of a configuration, after checks that they fit.

    Args:
      config: The configuration.
      run: The run.
      logger: The logger.
      plan: The plan that spreads steps over devices.
      columns: Further columns of the table, besides those of the configuration.
      splits: Training, validation and test images; those of `open_splits` if None.

    Returns:
      The comparison, whose table is empty.

    Raises:
      ValueError: As `open_splits` and `check_networks` say.
    """
    train, validation, test = open_splits(config) if splits is None else splits
    moves = [augment.random_crop(config.crop)] * bool(config.crop) + [augment.flip()] * config.flip
    noisy, clean = prepared(train, moves, seed=config.seed)
    context = Context(run, logger, plan, config.seed, config.batch_size, noisy, clean, config)
    teacher, student = (
        make_network(name, train.num_classes, config.networks) for name in (config.teacher, config.student)
    )
    check_networks(config, teacher, student, clean(first_rows(train, 8)))
    trials = Trials(context, config.seeds, {**config.columns, **columns}, [])
    return Comparison(config, context, train, validation, test, teacher, student, trials)
