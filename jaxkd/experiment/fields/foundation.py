"""Foundation teachers: features of a pre-trained encoder for images without labels, and what judges a student's."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import augment, data, losses, metrics, models, objectives, pytorch
from jaxkd.data.splits import say
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.comparison import Comparison, ComparisonConfig
from jaxkd.experiment.config import check_file
from jaxkd.experiment.domains import COUNT, POSITIVE, SIDE
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields.frozen import published_file
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.images import first_rows, to_unit
from jaxkd.experiment.kept import kept
from jaxkd.experiment.networks import SMALL_IMAGES, make_network
from jaxkd.experiment.trials import PERCENT, Column, Scores
from jaxkd.pytorch import TORCHVISION, Published
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables

ENCODER = "mobilenet_v2"
"""Value of `--teacher` that stands for ImageNet's MobileNetV2, of which nothing is trained."""
STRENGTHS = (0.001, 0.01, 0.1)
"""Inverse strengths C of the linear probes that are tried."""
_COMPONENTS = 128
"""Principal components, at most, that a linear probe sees."""
_PIXELS = 16
"""Height and width, at most, of images whose pixels are features."""
MAP, VECTOR = "teacher_map", "teacher_vector"
"""Fields of a batch with the teacher's features, the vector in place of logits."""
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@dataclasses.dataclass(frozen=True)
class FoundationConfig(ComparisonConfig):
    """Configuration of an experiment on the features of a pre-trained encoder."""

    name: str = "foundation"
    classes: int | None = flag(10, "number of the source's first classes to use; all if absent", DATA, COUNT)
    image_size: int | None = 32
    teacher: str = ENCODER
    student: str = "convnet_8_64"
    teacher_file: str | None = flag(
        None, "file of torchvision's weights of mobilenet_v2; that of the installed package if absent", NETWORKS
    )
    teacher_size: int = flag(64, "height and width at which mobilenet_v2 sees the images, in pixels", NETWORKS, SIDE)
    student_size: int = flag(16, "height and width at which students see the images, in pixels", NETWORKS, SIDE)
    unlabelled: str | None = flag(
        None, "images on which students follow the teacher, as for --source; labels are not read", DATA
    )
    labels: int = flag(10, "labelled images of each class for fine-tuning", DATA, COUNT)
    epochs: int = flag(6, "passes of each student over the images without labels", TRAINING, COUNT)
    few_epochs: int = flag(30, "passes of fine-tuning over the labelled images", TRAINING, COUNT)
    queue: int = flag(1024, "embeddings of the teacher that the queue of `similarity` holds", TRAINING, COUNT)
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    few_rate: float = flag(2e-3, "highest rate of AdamW in fine-tuning", TRAINING, POSITIVE)

    networks: ClassVar[Mapping[str, Published]] = {
        **SMALL_IMAGES,
        "convnet_8_64": Published(functools.partial(models.convnet, widths=(8, 16, 32, 64)), ()),
        ENCODER: TORCHVISION[ENCODER],
    }

    def check(self) -> None:
        """Checks values and files before the run's folder is made."""
        super().check()
        check_file(self, "teacher_file")
        if self.teacher_file is not None and self.teacher != ENCODER:
            raise ValueError(
                f"--teacher-file is given but --teacher is {self.teacher}, which is trained here: leave the file out, "
                f"or give --teacher {ENCODER}."
            )

    @property
    def columns(self) -> Mapping[str, Column]:
        """Name -> column of each figure of the table."""
        names = {"neighbours": "kNN %", "probe": "linear probe %", "few": f"{self.labels} labels a class %"}
        return {key: Column(name, PERCENT) for key, name in names.items()}


def usable(config: FoundationConfig) -> FoundationConfig:
    """The configuration, with a teacher that is trained here where the encoder's weights are not to be had.

    Args:
      config: The configuration.

    Returns:
      The same one, or one with another teacher, which is said.
    """
    if config.teacher != ENCODER or config.teacher_file is not None:
        return config
    try:
        published_file()
    except ImportError as error:
        say(f"{error} Until then the teacher is a convnet that is trained here, with labels.")
        return dataclasses.replace(config, teacher="convnet")
    return config


class Features(NamedTuple):
    """Features of one network on the splits.

    Attributes:
      train: [N, D] of the training images.
      validation: Of the validation images.
      test: Of the test images.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def encoder(config: FoundationConfig, comparison: Comparison) -> tuple[Model, Variables]:
    """The teacher, which reads images as the experiment prepares them.

    Args:
      config: The configuration.
      comparison: The comparison, whose `fit_teacher` trains a teacher that has no published weights.

    Returns:
      The model and its variables.

    Raises:
      ValueError: If the file of weights cannot be read or does not fit.
    """
    if config.teacher != ENCODER:
        return comparison.teacher, comparison.trials.fit(
            "teacher",
            comparison.train,
            comparison.teacher,
            comparison.label,
            comparison.optimizer(comparison.updates(config.teacher_epochs)),
            comparison.updates(config.teacher_epochs),
        )
    model = models.at_resolution(make_network(ENCODER, 1000, config.networks), config.teacher_size)
    tensors = pytorch.read_tensors(config.teacher_file or published_file())
    example = _prepare(config, comparison.train)(first_rows(comparison.train, 2))
    return model, pytorch.import_weights(model, TORCHVISION[ENCODER].rules, tensors, example)


def teacher_features(
    config: FoundationConfig, comparison: Comparison, unlabelled: data.Source
) -> tuple[Features, data.Source, int]:
    """Features of the teacher, computed once and kept in the run's folder.

    Args:
      config: The configuration.
      comparison: The comparison.
      unlabelled: Images on which students follow the teacher.

    Returns:
      The features of the splits; the unlabelled images with the fields `MAP` [h, w, C] and `VECTOR` [D], the teacher's
      last map and its pooled features less their means; and the number of the teacher's parameters.
    """
    model, variables = encoder(config, comparison)
    context = comparison.context
    if config.teacher == ENCODER:
        context = context._replace(eval_prepare=_prepare(config, comparison.train))
    predict = predictor(context, _both(model))(variables)
    sources = {"train": comparison.train, "validation": comparison.validation, "test": comparison.test}
    if unlabelled is not comparison.train:
        sources["unlabelled"] = unlabelled

    def make() -> dict[str, np.ndarray]:
        return {name: predict(source)[1].astype(np.float16) for name, source in sources.items()}

    maps = kept(comparison.context.run, "teacher", make)
    pooled = {name: x.astype(np.float32).mean(axis=(1, 2)) for name, x in maps.items()}
    last = "unlabelled" if "unlabelled" in maps else "train"
    maps_of, centre = maps[last].astype(np.float32), pooled[last].mean(axis=0)
    shown = data.with_fields(unlabelled, **{MAP: maps_of - centre, VECTOR: pooled[last] - centre})
    head = sum(leaf.size for leaf in jax.tree.leaves(variables.params["head"]))
    found = Features(*(pooled[name] - centre for name in ("train", "validation", "test")))
    return found, shown, models.count_parameters(variables) - head


def pooled_features(comparison: Comparison, model: Model) -> Callable[[Variables], Features]:
    """Makes the function that computes a student's pooled features on the splits.

    Args:
      comparison: The comparison.
      model: The student.

    Returns:
      Variables of one student -> its features.
    """
    predict = predictor(comparison.context, _pooled(model))
    sources = comparison.train, comparison.validation, comparison.test
    return lambda variables: Features(*(predict(variables)(source)[1] for source in sources))


def judged(comparison: Comparison, features: Features) -> dict[str, float]:
    """Figures of features: nearest neighbours among the training images, and a linear layer trained on these.

    Args:
      comparison: The comparison.
      features: The features; the linear layer sees their first 128 principal components, whitened.

    Returns:
      `neighbours` and `probe`, accuracies on the test split; the layer's strength is chosen on the validation split.
    """
    labels, classes = [data.labels_of(x) for x in (comparison.train, comparison.test)], comparison.train.num_classes
    shares = metrics.nearest_neighbours(features.test, features.train, labels[0], classes)
    line = _linear(comparison, features, labels[0], classes)
    return {
        "neighbours": float(np.mean(shares.argmax(axis=1) == labels[1])),
        "probe": float(np.mean(line.argmax(axis=1) == labels[1])),
    }


def few_rows(comparison: Comparison, count: int) -> tuple[data.Source, np.ndarray]:
    """The few labelled images, always the same.

    Args:
      comparison: The comparison.
      count: Images of each class.

    Returns:
      Their source, and their rows in the training split.
    """
    numbered = data.with_fields(comparison.train, row=np.arange(comparison.train.size))
    few = data.few_labels(numbered, count)
    return few, np.asarray(few.read(np.arange(few.size))["row"])


def linear_of_few(comparison: Comparison, features: Features, rows: np.ndarray) -> float:
    """Accuracy on the test split of a linear layer trained on few labelled images' features.

    Args:
      comparison: The comparison.
      features: The features.
      rows: The labelled images.

    Returns:
      The accuracy.
    """
    labels = data.labels_of(comparison.train)[rows]
    logits = _linear(comparison, features._replace(train=features.train[rows]), labels, comparison.train.num_classes)
    return float(np.mean(logits.argmax(axis=1) == data.labels_of(comparison.test)))


def pixels(comparison: Comparison) -> Features:
    """Pixels as features, less their means, of images of at most 16 x 16 pixels."""
    config: Any = comparison.config
    side = min(config.student_size, _PIXELS)

    def flat(source: data.Source) -> np.ndarray:
        images = jnp.asarray(source.read(np.arange(source.size))["image"], jnp.float32)
        shape = (len(images), side, side, images.shape[-1])
        return np.asarray(jax.image.resize(images, shape, "linear")).reshape(source.size, -1)

    found = [flat(source) for source in (comparison.train, comparison.validation, comparison.test)]
    return Features(*(x - found[0].mean(axis=0) for x in found))


def open_unlabelled(config: FoundationConfig, comparison: Comparison) -> data.Source:
    """Opens the images of `--unlabelled`; the training images if there are none.

    Args:
      config: The configuration.
      comparison: The comparison.

    Returns:
      The source.

    Raises:
      ValueError: If the images are of another kind than the training images.
    """
    if config.unlabelled is None:
        return comparison.train
    options: Mapping[str, Any] = {"data_dir": config.data_dir, "image_size": config.image_size}
    source = data.in_memory(data.open_source(config.unlabelled, "train", **options))
    if source.image_shape != comparison.train.image_shape:
        raise ValueError(
            f"--unlabelled {config.unlabelled} has images {source.image_shape} but --source has "
            f"{comparison.train.image_shape}: give images of the same channels, and --image-size."
        )
    say(f"students follow the teacher on {source.size:,} images of {config.unlabelled}, whose labels are not read")
    return source


def terms(config: FoundationConfig) -> dict[str, Any]:
    """Name of each way to follow the teacher's features -> its objective."""
    both: Mapping[str, Any] = {"student": "pooled", "teacher": "logits"}
    perceptron = objectives.mlp(hidden=(256,))
    maps: Mapping[str, Any] = {"student": "last", "teacher": MAP, "pool": True, "project": objectives.linear()}
    return {
        "cosine": objectives.from_features(losses.cosine, **both, project=perceptron),
        "maps": objectives.from_features(losses.cosine, **maps),
        "similarity": objectives.queue_similarity(**both, project=perceptron, size=config.queue),
    }


def _linear(comparison: Comparison, features: Features, labels: np.ndarray, classes: int) -> np.ndarray:
    """Logits on the test split of a linear layer on whitened features."""
    middle, whiten = whitening(features.train)
    train, validation, test = ((x - middle) @ whiten for x in features)
    held = validation, data.labels_of(comparison.validation)
    return logistic_regression(train, labels, held, classes, strengths=STRENGTHS).logits(test)


def whitening(features: np.ndarray, components: int = _COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """The map onto principal components of variance 1.

    Args:
      features: [N, D].
      components: Number of components, at most.

    Returns:
      The mean [D] and the axes [D, C] by which features less the mean are multiplied; axes without variance are left
      out.
    """
    middle, (size, width) = features.mean(axis=0), features.shape
    if size < width:  # the smaller matrix of products has the same axes, and is far cheaper
        centred = features - middle
        values, rows = np.linalg.eigh(centred @ centred.T / (size - 1))
    else:
        values, rows = np.linalg.eigh(np.cov(features.T))
    count = min(components, size - 1, int(np.sum(values > 1e-6 * values[-1])))
    values, rows = values[-count:], rows[:, -count:]
    return middle, (centred.T @ rows / (values * np.sqrt(size - 1)) if size < width else rows / np.sqrt(values))


def _prepare(config: FoundationConfig, source: data.Source) -> Callable[[Batch], Batch]:
    """Preparation of images for the encoder: ImageNet's normalisation, three channels."""
    shape = source.image_shape
    colour = [augment.grey_to_rgb()] if shape is not None and shape[-1] == 1 else []
    steps = augment.compose(to_unit(source), *colour, augment.normalize(_MEAN, _STD))
    return augment.augment_batch(steps, seed=config.seed)


def _both(model: Model) -> Model:
    """A network whose outputs are its last map; of one without maps its pooled features as a map of one place."""

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key, train)
        return Outputs(last_map(outputs), {}), state

    return Model(model.init, apply)


def last_map(outputs: Outputs) -> jax.Array:
    """The map whose mean over positions is a network's feature `pooled`.

    Args:
      outputs: Its outputs.

    Returns:
      [B, h, w, C].
    """
    pooled = outputs.features["pooled"]
    maps = [x for x in outputs.features.values() if x.ndim == 4 and x.shape[-1] == pooled.shape[-1]]
    return maps[-1] if maps else pooled[:, None, None]


def _pooled(model: Model) -> Model:
    """A network whose outputs are its features after pooling."""

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key, train)
        return Outputs(outputs.features["pooled"], {}), state

    return Model(model.init, apply)


def with_last(model: Model) -> Model:
    """A student with the feature `last`, its last map, whatever it calls it.

    Args:
      model: The student.

    Returns:
      A model with the same variables.
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key, train)
        return outputs._replace(features={**outputs.features, "last": last_map(outputs)}), state

    return Model(model.init, apply)


def scores_of(comparison: Comparison, model: Model) -> Callable[[Variables], Scores]:
    """Makes the function that judges a student's features.

    Args:
      comparison: The comparison.
      model: The student.

    Returns:
      Variables of one student -> figures.
    """
    features = pooled_features(comparison, model)
    return lambda variables: judged(comparison, features(variables))
