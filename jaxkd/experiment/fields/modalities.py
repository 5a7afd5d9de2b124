"""Pictures and sounds of the same classes: pairs without a leak, floors of each, and a grid of what networks see."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import augment, data, models
from jaxkd.data.sounds import Sounds, to_source
from jaxkd.data.splits import say
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.comparison import synthetic
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields import speech
from jaxkd.experiment.fields.recordings import sounds_of
from jaxkd.experiment.fields.tones import TONES
from jaxkd.experiment.flags import DATA, flag
from jaxkd.experiment.trials import PERCENT, Column, Scores
from jaxkd.types import Batch, Model, Variables

MODALITIES = ("image", "sound")

COLUMNS: Mapping[str, Column] = {
    "both": Column("both %", PERCENT, 1),
    "image": Column("image only %", PERCENT, 1),
    "sound": Column("sound only %", PERCENT, 1),
}
"""Accuracy over what a network is given, as columns of the table."""


@dataclasses.dataclass(frozen=True)
class PairConfig(speech.WordsConfig):
    """Base configuration of an experiment with pictures and recordings of the same classes."""

    images: str = flag(
        "npz:mnist_{split}.npz", "pictures of the classes of the recordings, as --source of images", DATA
    )
    train_images: str = flag("train[:4%]", "split of the pictures to train on, each with a recording", DATA)
    test_images: str = flag("test", "split of the pictures to test on", DATA)


class Pairs(NamedTuple):
    """Pairs of a picture and a recording of one class, as networks read them.

    Attributes:
      train: Pairs to train on: normalised `image`, `log_mel` and `frames`, `label`.
      test: Pairs to test on, of other pictures and of other speakers.
    """

    train: data.Source
    test: data.Source


def open_pairs(config: PairConfig) -> Pairs:
    """Opens pictures and recordings, and draws pairs of one class from them.

    Args:
      config: The configuration; the source "tones" stands for pairs made in memory, for smoke runs.

    Returns:
      The pairs.

    Raises:
      ValueError: As the readers and `pair` say, or if a picture stands in both splits.
    """
    recordings, smoke = sounds_of(config), config.source == TONES
    spec: Any = synthetic() if smoke else config.images
    pictures = [data.in_memory(data.open_source(spec, split)) for split in (config.train_images, config.test_images)]
    data.check_disjoint(*pictures)
    if smoke:
        pictures = [data.of_classes(source, range(len(recordings.class_names))) for source in pictures]
    return pair(config, recordings, pictures)


def pair(config: PairConfig, recordings: Sounds, pictures: Sequence[data.Source]) -> Pairs:
    """Draws pairs of one class from pictures and recordings.

    Each training picture gets a recording of the speakers to train on, and each recording of the other speakers a test
    picture, drawn by the seed. So nothing that is tested on was trained on, in either modality. A picture or a
    recording stands in several pairs where the other side has more of its class.

    Args:
      config: The configuration.
      recordings: All recordings.
      pictures: Pictures to train on, and those to test on.

    Returns:
      The pairs.

    Raises:
      ValueError: If the two have other classes, or a class lacks a picture or a recording.
    """
    sounds = [to_source(x, config.seconds) for x in speech.split_sounds(config, recordings)]
    for source in pictures:
        if source.image_shape is None or source.num_classes != sounds[0].num_classes:
            raise ValueError(
                f"{source.name} has {source.num_classes} classes of pictures of shape {source.image_shape}, but "
                f"{sounds[0].name} has {sounds[0].num_classes} words: give pictures of the same classes by --images."
            )
    picture_rows, sound_rows = np.arange(pictures[0].size), np.arange(sounds[1].size)
    train = _pairs(pictures[0], sounds[0], picture_rows, drawn(pictures[0], sounds[0], config.seed))
    test = _pairs(pictures[1], sounds[1], drawn(sounds[1], pictures[1], config.seed), sound_rows)
    names = ", ".join(f"{k}: {name}" for k, name in enumerate(sounds[0].class_names))
    say(f"pictures and recordings are paired by the numbers of their classes ({names}).")
    return Pairs(*_prepared(train, test, recordings.rate))


def _prepared(train: data.Source, test: data.Source, rate: int) -> list[data.Source]:
    """The pairs as networks read them, normalised by the statistics of the training pairs."""
    mel = augment.LogMel(rate)
    mean, std = data.statistics(train)
    heard = augment.augment_batch(augment.to_log_mel(mel, *speech.statistics(train, mel)), seed=0, field="audio")
    found = []
    for source in (train, test):
        batch = source.read(np.arange(source.size))
        audio = {name: batch[name] for name in ("audio", "length", "id")}
        spectra = jax.jit(heard)({**audio, "view": np.zeros(source.size, np.int32)})
        fields = {"label": batch["label"], "id": batch["id"]}
        fields |= {name: np.asarray(spectra[name]) for name in ("log_mel", "frames")}
        unit = batch["image"] / np.float32(255 if batch["image"].dtype == np.uint8 else 1)
        fields["image"] = ((unit - mean) / std).astype(np.float32)
        found.append(dataclasses.replace(source, read=functools.partial(_rows, fields)))
    return found


def _rows(fields: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of arrays."""
    return {name: x[np.asarray(rows)] for name, x in fields.items()}


def drawn(source: data.Source, other: data.Source, seed: int) -> np.ndarray:
    """Draws a partner of the same class for each row, each as often as the others.

    Args:
      source: Rows that need a partner.
      other: Rows to draw from.
      seed: Seed.

    Returns:
      Row numbers of the other source, [N].

    Raises:
      ValueError: If a class has no row to draw from.
    """
    labels, others, random = data.labels_of(source), data.labels_of(other), np.random.default_rng(seed)
    found = np.empty(len(labels), np.int64)
    for k in np.unique(labels):
        rows, partners = np.flatnonzero(labels == k), np.flatnonzero(others == k)
        if not len(partners):
            raise ValueError(f"{other.name} has nothing of class {k}, which {source.name} has: give more of it.")
        rounds = [random.permutation(partners) for _ in range(-(-len(rows) // len(partners)))]
        found[rows] = np.concatenate(rounds)[: len(rows)]
    return found


def _pairs(pictures: data.Source, sounds: data.Source, picture_rows: np.ndarray, sound_rows: np.ndarray) -> data.Source:
    """A source of pairs."""

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.asarray(rows)
        heard, seen = sounds.read(sound_rows[rows]), pictures.read(picture_rows[rows])
        return {**heard, "image": seen["image"], "id": rows.astype(np.int32)}

    name = f"{pictures.name} with {sounds.name}"
    shape, names = pictures.image_shape, sounds.class_names
    return data.Source(name, len(picture_rows), sounds.num_classes, shape, read, class_names=names)


def floors(pairs: Pairs) -> dict[str, tuple[Scores, int]]:
    """Logistic regression on the pixels, and on frames of the spectrum.

    Args:
      pairs: The pairs.

    Returns:
      Name -> figures, and number of parameters.
    """
    vectors: dict[str, Callable[[Batch], np.ndarray]] = {
        "image": lambda batch: batch["image"].reshape(len(batch["image"]), -1),
        "sound": lambda batch: speech.word_vectors(batch["log_mel"], batch["frames"]),
    }
    found: dict[str, tuple[Scores, int]] = {}
    for name, read in vectors.items():
        x, xt = (read(source.read(np.arange(source.size))) for source in pairs)
        labels = data.labels_of(pairs.train)
        line = logistic_regression(x, labels, (x, labels), pairs.train.num_classes, strengths=(1e-3,))
        found[f"logistic regression, {name}"] = {name: _accuracy(line.logits(xt), pairs.test)}, line.parameters
    return found


def _accuracy(logits: np.ndarray, source: data.Source) -> float:
    """Part of the rows whose largest logit is that of their label."""
    return float(np.mean(np.argmax(logits, axis=-1) == data.labels_of(source)))


def views(model: Model) -> dict[str, Model]:
    """The evaluation grid of a fusion: the network given both modalities, and each alone.

    Args:
      model: Made by `models.fused`.

    Returns:
      Name of a column -> the network as it is evaluated.
    """
    alone = {name: models.seeing(model, name, of=MODALITIES) for name in MODALITIES}
    return {"both": model, **alone}


def grid(context: Context, networks: Mapping[str, Model], source: data.Source) -> Callable[[Variables], Scores]:
    """Makes the function that evaluates a network given both modalities, or one.

    Args:
      context: The context of the trainings.
      networks: Name of a column -> the network as it is evaluated; all have the same variables.
      source: The pairs to evaluate on.

    Returns:
      Variables -> accuracy by column.
    """
    answers = {name: predictor(context, network) for name, network in networks.items()}
    return lambda variables: {name: _accuracy(of(variables)(source)[1], source) for name, of in answers.items()}


def zero_shot(context: Context, towers: Model, pairs: Pairs) -> Callable[[Variables], Scores]:
    """Makes the function that evaluates two towers that were trained without classes, by the other modality.

    A picture gets the class whose mean embedding of training recordings is nearest to its own embedding, and a
    recording the class of the nearest mean embedding of training pictures; given both, the sum of the cosines decides.

    Args:
      context: The context of the trainings.
      towers: Made by `models.side_by_side`.
      pairs: The pairs.

    Returns:
      Variables -> accuracy by column.
    """
    of = {name: predictor(context, models.at_feature(towers, name)) for name in MODALITIES}
    labels, K = data.labels_of(pairs.train), pairs.train.num_classes

    def score(variables: Variables) -> Scores:
        embed = {name: make(variables) for name, make in of.items()}
        cosines = {}
        for name, other in zip(MODALITIES, MODALITIES[::-1], strict=True):
            rows = _unit(embed[other](pairs.train)[1])
            centres = _unit(np.stack([rows[labels == k].mean(axis=0) for k in range(K)]))
            cosines[name] = _unit(embed[name](pairs.test)[1]) @ centres.T
        cosines["both"] = cosines["image"] + cosines["sound"]
        return {name: _accuracy(x, pairs.test) for name, x in cosines.items()}

    return score


def embeddings(context: Context, towers: Model, variables: Variables, source: data.Source) -> dict[str, np.ndarray]:
    """Embeddings of both modalities, as fields for students.

    Args:
      context: The context of the trainings.
      towers: Made by `models.side_by_side`.
      variables: Its variables.
      source: The pairs.

    Returns:
      `teacher_image` and `teacher_sound`, [N, D].
    """
    return {
        f"teacher_{name}": predictor(context, models.at_feature(towers, name))(variables)(source)[1]
        for name in MODALITIES
    }


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return np.asarray(x) / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
