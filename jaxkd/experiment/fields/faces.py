"""Faces of people who are held out: flags, splits by people, floors, and the figures of verification."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from jaxkd import data, metrics, numerics
from jaxkd.data.splits import say
from jaxkd.experiment.config import Config, check_choice
from jaxkd.experiment.domains import COUNT, FRACTION, NON_NEGATIVE, POSITIVE, SEVERAL, SIDE, WHOLE, Domain
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.networks import SMALL_IMAGES
from jaxkd.experiment.trials import PERCENT, Column, Scores
from jaxkd.pytorch import Published

SYNTHETIC = "synthetic"
"""Value of `--source` that stands for `synthetic`."""

_ANGLE = Domain("a number from 0 to 3", 0, 3)
_COMPONENTS = (10, 20, 40, 80, 160)


@dataclasses.dataclass(frozen=True)
class FaceConfig(Config):
    """Configuration of an experiment on pictures of people, of whom some are held out."""

    name: str = "faces"
    source: str = flag(
        "folder:orl_faces", "pictures: folder:PATH of PATH/person/picture, npz:PATH, or a TFDS name", DATA
    )
    parts: tuple[str, ...] = flag(("train",), "splits of the source that are read, all together", DATA)
    label_field: str = flag("label", "field that says who is on a picture", DATA)
    image_size: int | None = flag(
        28, "height and width to resize pictures to, in pixels; unchanged if absent", DATA, SIDE
    )
    validation_people: int = flag(6, "people on whose pictures thresholds are chosen", DATA, SEVERAL)
    test_people: int = flag(10, "people on whose pictures networks are compared", DATA, SEVERAL)
    crop: int = flag(3, "padding of random crops, in pixels", DATA, WHOLE)
    far: float = flag(0.01, "false acceptance rate at which true acceptances are counted", DATA, FRACTION)
    teacher: str = flag("resnet8", "teacher's network, as of the other experiments on images", NETWORKS)
    student: str = flag("convnet_8_16", "student's network, as --teacher", NETWORKS)
    width: int = flag(64, "numbers of an embedding", NETWORKS, COUNT)
    batch_size: int = 40
    teacher_epochs: int = flag(50, "passes of the teacher over the training pictures", TRAINING, COUNT)
    epochs: int = flag(100, "passes of the students over the training pictures", TRAINING, COUNT)
    learning_rate: float = flag(2e-3, "highest rate of AdamW", TRAINING, POSITIVE)
    scale: float = flag(16.0, "scale s of the margin softmax", TRAINING, POSITIVE)
    margin: float = flag(0.3, "angular margin m (ArcFace), in radians", TRAINING, _ANGLE)
    cosine_margin: float = flag(0.0, "margin of the cosine (CosFace)", TRAINING, NON_NEGATIVE)
    seeds: int = flag(3, "divisions of the people; each has its own teacher, students and first weights", DATA, COUNT)

    networks: ClassVar[Mapping[str, Published]] = SMALL_IMAGES

    @property
    def columns(self) -> Mapping[str, Column]:
        """Name -> column of each figure of the table."""
        return {
            "auc": Column("AUC %", PERCENT),
            "eer": Column("EER %", PERCENT),
            "tar": Column(f"TAR % at FAR {100 * self.far:g} %", PERCENT),
            "accuracy": Column("accuracy %", PERCENT),
            "rank": Column("rank-1 %", PERCENT),
        }

    def check(self) -> None:
        """Checks values and the networks' names before the run's folder is made."""
        super().check()
        for side in ("teacher", "student"):
            check_choice(self, side, "network", self.networks)
        check_choice(self, "parts", "part", self.parts)  # each once


class People(NamedTuple):
    """Pictures of three groups of people, of whom none is in two groups.

    Attributes:
      train: Pictures to train on.
      validation: Pictures on which thresholds are chosen.
      test: Pictures that networks are compared on.
    """

    train: data.Source
    validation: data.Source
    test: data.Source


def open_faces(config: FaceConfig) -> data.Source:
    """Opens all pictures, and says what should be known about them.

    Args:
      config: The configuration.

    Returns:
      A source whose classes are the people.

    Raises:
      ValueError: If the source cannot be opened, says not who is on the pictures, or has too few people.
    """
    spec = synthetic() if config.source == SYNTHETIC else config.source
    images, names = [], []
    for part in config.parts:
        source = data.open_source(spec, part, data_dir=config.data_dir, image_size=config.image_size)
        if source.image_shape is None:
            raise ValueError(f"{source.name} has no pictures: give a set of pictures for --source.")
        fields = source.read(np.arange(source.size))
        who = fields.get(config.label_field)
        if who is None or who.ndim != 1 or who.dtype.kind not in "iu":
            raise ValueError(
                f"{source.name} has no whole numbers `{config.label_field}` that say who is on each picture, but "
                f"{', '.join(sorted(fields))}: name their field by --label-field, or give folder:PATH of "
                "PATH/person/picture."
            )
        images.append(fields["image"])
        names.append(who)
    if len({x.shape[1:] for x in images}) > 1:
        raise ValueError("pictures of the --parts differ in size: give --image-size.")
    people, numbers, counts = np.unique(np.concatenate(names), return_inverse=True, return_counts=True)
    needed = config.validation_people + config.test_people + 2
    if len(people) < needed:
        raise ValueError(
            f"{config.source} has {len(people)} people, but {config.validation_people} of --validation-people, "
            f"{config.test_people} of --test-people and at least 2 to train on make {needed}: give smaller numbers, "
            "or more people."
        )
    if single := int(np.sum(counts == 1)):
        say(f"{single} of {len(people)} people have one picture, which is compared with those of others alone.")
    return data.open_source({"image": np.concatenate(images), "label": numbers.astype(np.int32)})


def divide(config: FaceConfig, source: data.Source, number: int) -> People:
    """Divides the people at random into those to train on, to choose thresholds on, and to compare on.

    Args:
      config: The configuration.
      source: All pictures.
      number: Number of the division.

    Returns:
      The three groups.

    Raises:
      ValueError: If among those held out nobody has two pictures.
    """
    order = np.random.default_rng([config.seed, number]).permutation(source.num_classes)
    first = source.num_classes - config.validation_people - config.test_people
    groups = np.split(order, [first, first + config.validation_people])
    counts = np.bincount(data.labels_of(source), minlength=source.num_classes)
    for group, flags in zip(groups[1:], ("--validation-people", "--test-people"), strict=True):
        if counts[group].max() < 2:
            raise ValueError(
                f"none of the {len(group)} people of {flags} has two pictures, so there is no pair of one person: "
                "give more pictures of each person, or more people."
            )
    return People(*(data.of_classes(source, np.sort(group).tolist()) for group in groups))


def figures(config: FaceConfig, people: People, validation: np.ndarray, test: np.ndarray) -> Scores:
    """Figures of embeddings on all pairs of test pictures. The threshold is chosen on validation pictures.

    Args:
      config: The configuration.
      people: The groups.
      validation: Embeddings of the validation pictures [M, D].
      test: Embeddings of the test pictures [N, D].

    Returns:
      Name -> figure, as `FaceConfig.columns` names them.
    """
    threshold = metrics.pairs_of(validation, data.labels_of(people.validation)).roc().balanced_threshold()
    who = data.labels_of(people.test)
    pairs = metrics.pairs_of(test, who)
    curve = pairs.roc()
    return {
        "auc": curve.auc(),
        "eer": curve.equal_error_rate(),
        "tar": curve.sensitivity(1 - config.far),
        "accuracy": pairs.accuracy(threshold),
        "rank": metrics.rank_one(test, who),
    }


class Floor(NamedTuple):
    """Embeddings that no network makes.

    Attributes:
      validation: Embeddings of the validation pictures [M, D].
      test: Embeddings of the test pictures [N, D].
    """

    validation: np.ndarray
    test: np.ndarray


def floors(people: People) -> dict[str, Floor]:
    """What any network must beat: pixels, eigenfaces, and linear discriminants of eigenfaces, all under the cosine.

    The number of components is the one with the smallest EER on validation pictures.

    Args:
      people: The groups.

    Returns:
      Name -> embeddings.

    Reference:
      Belhumeur, Hespanha, Kriegman, "Eigenfaces vs. Fisherfaces: Recognition Using Class Specific Linear Projection",
      PAMI 1997, https://doi.org/10.1109/34.598228
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    train, *held_out = (_pixels(source) for source in people)
    mean = train.mean(axis=0)
    centred = [x - mean for x in held_out]
    _, strength, axes = np.linalg.svd(train - mean, full_matrices=False)
    rank = int(np.sum(strength > 1e-6 * strength[0]))
    labels = data.labels_of(people.train)
    eigenfaces, discriminants = [], []
    for count in sorted({min(count, rank) for count in _COMPONENTS}):
        projected = [x @ axes[:count].T for x in centred]
        eigenfaces += [Floor(*projected), Floor(*(x / strength[:count] for x in projected))]
        if count + people.train.num_classes < len(train):
            lda = LinearDiscriminantAnalysis().fit((train - mean) @ axes[:count].T, labels)
            discriminants.append(Floor(*map(lda.transform, projected)))
    found = {"pixels": Floor(*centred), "eigenfaces": _best(people, eigenfaces)}
    return found | ({"eigenfaces, LDA": _best(people, discriminants)} if discriminants else {})


def _pixels(source: data.Source) -> np.ndarray:
    """Pictures as rows of numbers in float64."""
    return np.asarray(source.read(np.arange(source.size))["image"], np.float64).reshape(source.size, -1)


def _best(people: People, candidates: Sequence[Floor]) -> Floor:
    """The candidate with the smallest EER on validation pictures, the first of several."""
    who = data.labels_of(people.validation)
    return min(candidates, key=lambda x: metrics.pairs_of(x.validation, who).roc().equal_error_rate())


def normalised(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Turns a loss on embeddings into one on their directions, as faces are compared by the cosine.

    Args:
      loss: (student_embedding [B, D], teacher_embedding [B, D], **hyper) -> [B] or a scalar.

    Returns:
      A loss of the same arguments.
    """

    @functools.wraps(loss)
    def on_directions(student_embedding: jax.Array, teacher_embedding: jax.Array, **hyper: Any) -> jax.Array:
        return loss(*(numerics.unit(x) for x in numerics.promote(student_embedding, teacher_embedding)), **hyper)

    return on_directions


def synthetic() -> dict[str, np.ndarray]:
    """Makes small grey patterns for smoke runs, four noisy ones of each of nine "people", always the same.

    Returns:
      Arrays of one split.
    """
    random = np.random.RandomState(0)  # its stream is frozen for good
    patterns = random.randint(40, 200, (9, 1, 12, 12, 1))
    images = patterns + random.randint(-30, 30, (9, 4, 12, 12, 1))
    return {"image": images.reshape(-1, 12, 12, 1).astype(np.uint8), "label": np.repeat(np.arange(9), 4)}
