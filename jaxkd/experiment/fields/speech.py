"""Keywords in speech: flags, speakers apart, spectra with and without noise, a linear floor, scores over the noise."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import augment, data, deploy
from jaxkd.augment.core import Augmentation
from jaxkd.data.checks import path_of
from jaxkd.data.readers.audio import read_file
from jaxkd.data.sounds import Sounds, resample, split_by_speaker, to_source
from jaxkd.data.source import sample_rows
from jaxkd.data.splits import first_few, say
from jaxkd.experiment.baselines import logistic_regression
from jaxkd.experiment.domains import SECONDS, Domain
from jaxkd.experiment.fields.recordings import RecordingsConfig, sounds_of
from jaxkd.experiment.flags import DATA, flag
from jaxkd.experiment.trials import PERCENT, Column
from jaxkd.models.audio.depthwise import Stream
from jaxkd.types import Batch, Prepare, Variables

RATIOS = (20, 15, 10, 5, 0)
"""Ratios of signal to noise at which networks are tested, in dB."""

COLUMNS: Mapping[str, Column] = {"clean": Column("clean %", PERCENT, 1)} | {
    f"{ratio} dB": Column(f"{ratio} dB %", PERCENT, 1) for ratio in RATIOS
}
"""Accuracy over the noise, as columns of the table."""

WORD_FRAMES = 16
"""Frames of a recording, evenly spread, that a linear classifier reads."""

SPEEDS = Domain("a number from 0 to 0.9", 0, 0.9)
"""Changes of the speed, as parts of it."""

_EVERY = 5  # recordings, of which one is held out where speakers are unknown, and speakers, where they are known
_TEST_NOISE = 1  # added to the seed for the noise of the test, which no training hears


@dataclasses.dataclass(frozen=True)
class WordsConfig(RecordingsConfig):
    """Recordings of single words, as rows of one length."""

    seconds: float = flag(0.7, "length of a row: longer recordings are cut, shorter ones padded", DATA, SECONDS)
    validation_speakers: tuple[str, ...] = flag(
        (), "speakers to evaluate on in place of those held out, to choose settings by; neither are trained on", DATA
    )


@dataclasses.dataclass(frozen=True)
class SpeechConfig(WordsConfig):
    """Base configuration of an experiment with recordings of single words, with noise and without."""

    speed: float = flag(0.15, "largest change of the speed of training recordings, as a part of it", DATA, SPEEDS)
    noise: str = flag("white", "noise of trainings and tests: white, or the path of a sound file", DATA)


class Task(NamedTuple):
    """Recordings of single words, and how networks hear them.

    Attributes:
      train: `audio`, `length`, `label` of the training speakers.
      tests: Name of a column -> the same of the held-out speakers, with that much noise.
      rate: Samples a second.
      spectrum: Turns audio into a normalised log-mel spectrum.
      noise: Samples of the noise, or None for white noise.
      settings: Settings of the spectrum.
    """

    train: data.Source
    tests: Mapping[str, data.Source]
    rate: int
    spectrum: Augmentation
    noise: np.ndarray | None
    settings: augment.LogMel

    @property
    def clean(self) -> Prepare:
        """Preparation of batches without chance: `audio` becomes `log_mel`."""
        return augment.augment_batch(self.spectrum, seed=0, field="audio")

    def prepare(self, config: SpeechConfig, *, noisy: bool = False) -> Prepare:
        """Preparation of training batches: changes of speed, noise, spectra, masks on them.

        Args:
          config: The configuration.
          noisy: Whether four of five recordings get noise, at a ratio uniform in the range of `RATIOS`.

        Returns:
          Batch with `audio` -> batch with `log_mel`.
        """
        noise = [augment.add_noise(min(RATIOS), max(RATIOS), noise=self.noise, chance=0.8)] * noisy
        speed = augment.change_speed(1 - config.speed, 1 + config.speed)
        stages = augment.compose(speed, *noise, self.spectrum, augment.spec_augment(time=5))
        return augment.augment_batch(stages, seed=config.seed, field="audio")


def open_task(config: SpeechConfig) -> Task:
    """Opens the recordings that the flags name, and adds noise to those of the test.

    Args:
      config: The configuration.

    Returns:
      The task.

    Raises:
      ValueError: As `data.open_sounds` and `data.split_by_speaker` say.
      ImportError: If a file needs the package `soundfile`, which is missing.
    """
    return task_of(*split_sounds(config, sounds_of(config)), config)


def split_sounds(config: WordsConfig, sounds: Sounds) -> tuple[Sounds, Sounds]:
    """Splits recordings into those to train and those to test on, of other speakers.

    Args:
      config: The configuration.
      sounds: The recordings.

    Returns:
      Both parts. Without known speakers every fifth recording is tested on, which is said.

    Raises:
      ValueError: As `split_by_speaker` says, or if a word has no recording to train on.
    """
    known = sorted(set(sounds.speakers.tolist()) - {""})
    if not known and not config.held_out:
        say(f"{sounds.name} tells no speakers, so that those of the test are trained on: use --speaker-pattern.")
        last = np.arange(len(sounds)) % _EVERY == _EVERY - 1
        parts = [sounds.take(np.flatnonzero(which)) for which in (~last, last)]
    else:
        held_out = config.held_out or tuple(known[-math.ceil(len(known) / _EVERY) :])
        if not config.held_out:
            named = f"the speakers {first_few(held_out)} of {len(known)} are tested on"
            say(f"no speakers of {sounds.name} are held out by name: {named}.")
        parts = split_by_speaker(sounds, held_out, *[config.validation_speakers] * bool(config.validation_speakers))
    train, test = parts[0], parts[-1]
    missing = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if missing or len(set(train.labels.tolist())) < 2:
        names = first_few([sounds.class_names[k] for k in missing]) if missing else "two words"
        raise ValueError(f"{train.name} has no recording of {names}: hold out fewer speakers, or give more words.")
    return train, test


def task_of(train: Sounds, test: Sounds, config: SpeechConfig, *, like: Task | None = None) -> Task:
    """Sources of recordings, with the spectra's statistics of the training recordings.

    Args:
      train: Recordings to train on.
      test: Recordings to test on.
      config: The configuration.
      like: Another task, whose spectra are normalised alike, so that its networks can be carried over.

    Returns:
      The task.
    """
    source, clean = to_source(train, config.seconds), to_source(test, config.seconds)
    mel = augment.LogMel(train.rate)
    spectrum = augment.to_log_mel(mel, *statistics(source, mel)) if like is None else like.spectrum
    noise, fields = _noise(config, train.rate), _whole(clean)
    noisy = augment.augment_batch(augment.add_noise(0, noise=noise), seed=config.seed + _TEST_NOISE, field="audio")
    audio = fields["audio"]
    added = np.asarray(jax.jit(noisy)({**fields, "view": np.zeros(clean.size, np.int32)})["audio"]) - audio  # at 0 dB
    tests = {f"{ratio} dB": _with_audio(clean, audio + 10 ** (-ratio / 20) * added) for ratio in RATIOS}
    tests = {"clean": clean, **tests}
    return Task(source, tests, train.rate, spectrum, noise, mel)


def statistics(source: data.Source, settings: augment.LogMel) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each mel band over the real frames of recordings.

    Args:
      source: The recordings.
      settings: Settings of the spectra.

    Returns:
      (mean, std), float32 [M].
    """
    batch = source.read(sample_rows(source, 1000))
    spectra = np.asarray(jax.jit(functools.partial(augment.log_mel, settings=settings))(jnp.asarray(batch["audio"])))
    real = np.arange(spectra.shape[1]) < settings.frames(batch["length"])[:, None]
    return spectra[real].mean(axis=0), spectra[real].std(axis=0) + 1e-3


def _noise(config: SpeechConfig, rate: int) -> np.ndarray | None:
    """Samples of the noise that the flags name, long enough for a row; None for white noise."""
    if config.noise == "white":
        return None
    found = read_file(path_of(config.noise))
    mono = found.samples if found.samples.ndim == 1 else found.samples.mean(axis=1)
    if not len(mono) or not np.isfinite(mono).all() or not mono.any():
        raise ValueError(f"--noise {config.noise} is empty, silent or not finite: give a recording of noise.")
    noise = resample(mono, found.rate, rate)
    return np.tile(noise, 1 + round(config.seconds * rate) // len(noise))


def _with_audio(source: data.Source, audio: np.ndarray) -> data.Source:
    """A source with other audio."""
    return dataclasses.replace(source, read=lambda rows: source.read(rows) | {"audio": audio[np.asarray(rows)]})


def scores(task: Task, classify: Callable[[data.Source], Any]) -> dict[str, float]:
    """Accuracy on the test recordings, without noise and with each amount of it.

    Args:
      task: The task.
      classify: Source -> logits [N, K] of its rows.

    Returns:
      Name of a column -> accuracy in 0..1.
    """
    return {
        name: float(np.mean(np.argmax(classify(source), axis=-1) == data.labels_of(source)))
        for name, source in task.tests.items()
    }


def linear_floor(task: Task) -> tuple[dict[str, float], int]:
    """Scores of logistic regression on `WORD_FRAMES` frames of the log-mel spectrum, evenly spread over the recording.

    Args:
      task: The task.

    Returns:
      As `scores` gives them, and the number of parameters.
    """
    prepare = jax.jit(task.clean)

    def vectors(batch: Batch) -> np.ndarray:
        found = prepare({**batch, "view": np.zeros(len(batch["audio"]), np.int32)})
        return word_vectors(np.asarray(found["log_mel"]), np.asarray(found["frames"]))

    return linear(task, vectors, strength=1e-3)[1:]


def word_vectors(spectra: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Vectors of `WORD_FRAMES` frames, evenly spread over each recording, for a linear classifier.

    Args:
      spectra: Log-mel spectra [B, F, M].
      frames: Numbers of real frames [B].

    Returns:
      [B, WORD_FRAMES * M].
    """
    places = np.round(np.linspace(0, 1, WORD_FRAMES) * (frames[:, None] - 1)).astype(np.int64)
    return np.take_along_axis(spectra, places[..., None], axis=1).reshape(len(spectra), -1)


def linear(
    task: Task, vectors: Callable[[Batch], np.ndarray], *, strength: float
) -> tuple[Callable[[Batch], np.ndarray], dict[str, float], int]:
    """Trains logistic regression on vectors of the training recordings.

    Args:
      task: The task.
      vectors: Batch with `audio` -> [B, D].
      strength: Inverse strength C of the regularisation.

    Returns:
      Batch -> logits [B, K]; its scores; the number of parameters.
    """
    features, labels = vectors(_whole(task.train)), data.labels_of(task.train)
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
    scaled = (features - mean) / std
    found = logistic_regression(scaled, labels, (scaled, labels), task.train.num_classes, strengths=(strength,))

    def classify(batch: Batch) -> np.ndarray:
        return found.logits((vectors(batch) - mean) / std)

    return classify, scores(task, lambda source: classify(_whole(source))), found.parameters


def _whole(source: data.Source) -> Batch:
    """All rows of a source."""
    return source.read(np.arange(source.size))


def frame_latency(stream: Stream, variables: Variables, spectra: np.ndarray) -> deploy.Latency:
    """Time from a frame of a log-mel spectrum to logits, of one stream on the present device.

    Args:
      stream: The network.
      variables: Its variables.
      spectra: Frames of a log-mel spectrum to hear in turn, [F, M].

    Returns:
      Median and 99th percentile of a step, in seconds.
    """
    step, state = jax.jit(stream.stream), stream.start(1)
    placed, kept = jax.device_put(variables), [state]

    def call(frame: np.ndarray) -> Any:
        logits, kept[0] = step(placed, kept[0], frame)
        return np.asarray(logits)

    return deploy.timed(call, [np.asarray(frame)[None, None] for frame in spectra])
