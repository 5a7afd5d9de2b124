"""Transcribed recordings: what the flags of an experiment name, as sources of stacked spectra with texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import augment, data
from jaxkd.data.buckets import choose_buckets
from jaxkd.data.checks import check_rows, listing
from jaxkd.data.readers.audio import read_recordings
from jaxkd.data.readers.columns import shortened
from jaxkd.data.sounds import Sounds, split_by_speaker
from jaxkd.data.splits import first_few, say
from jaxkd.data.transcripts import Units, find_units, join_words, say_unknown_units, texts_of
from jaxkd.experiment.domains import COUNT, NON_NEGATIVE, WHOLE
from jaxkd.experiment.fields.recordings import RecordingsConfig, sounds_of
from jaxkd.experiment.fields.tones import TONES
from jaxkd.experiment.flags import DATA, flag
from jaxkd.losses.ctc import frames_needed
from jaxkd.types import Batch, Prepare

STACK = 4
"""Frames of a spectrum that a network reads as one."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Words of the classes 0..9 of a set of spoken digits."""

_AT_ONCE = 64  # recordings whose spectra are computed together
_ROUNDED = 16  # stacked frames


@dataclasses.dataclass(frozen=True)
class TranscriptionConfig(RecordingsConfig):
    """Base configuration of an experiment with transcribed recordings."""

    validation_speakers: tuple[str, ...] = flag((), "speakers to validate on; a tenth of them if absent", DATA)
    strings: int = flag(1000, "training strings joined from recordings of words; 0 for texts as they are", DATA, WHOLE)
    test_strings: int = flag(200, "strings of each further split", DATA, COUNT)
    fewest: int = flag(3, "fewest words in a string", DATA, COUNT)
    most: int = flag(7, "most words in a string", DATA, COUNT)
    units: Literal["words", "characters"] = flag("words", "what a network writes", DATA)
    buckets: int = flag(2, "lengths that batches are cut to; each takes one compilation", DATA, COUNT)
    speed: float = flag(0.1, "largest change of the speed of training strings, as a part of it", DATA, NON_NEGATIVE)

    def check(self) -> None:
        """Checks the values before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain, or flags contradict each other.
        """
        super().check()
        if self.fewest > self.most:
            raise ValueError(f"--fewest is {self.fewest} but --most is {self.most}: give the smaller number first.")
        if bool(self.held_out) != bool(self.validation_speakers):
            raise ValueError(
                "--held-out and --validation-speakers go together: give speakers for both, or for neither."
            )


class Split(NamedTuple):
    """Recordings of one split, as networks read them.

    Attributes:
      sounds: The recordings; their classes are texts.
      texts: Their texts [N].
      source: `log_mel` float32 [B, F, STACK * M], `frames` int32 [B], `id`; and `text` int32 [B, L] and `text_mask` of
        the training split.
    """

    sounds: Sounds
    texts: list[str]
    source: data.Source


class Corpus(NamedTuple):
    """Recordings of all splits.

    Attributes:
      train: Training split.
      validation: Validation split, of other speakers if they are known.
      test: Test split, as well.
      units: Units of the training texts.
      words: Recordings of single words of the first two splits; none if the texts are as they are.
    """

    train: Split
    validation: Split
    test: Split
    units: Units
    words: tuple[Sounds, ...]


def open_corpus(config: TranscriptionConfig) -> Corpus:
    """Opens the recordings that the flags name, joins strings of words if they ask for it, and computes spectra.

    Args:
      config: The configuration.

    Returns:
      The splits.

    Raises:
      ValueError: As the readers say; or if a training text needs more frames than its recording has.
    """
    parts = words = _parts(config, _sounds(config))
    if config.strings:
        counts = (config.strings, config.test_strings, config.test_strings)
        speeds = ((1 - config.speed, 1 + config.speed), (1.0, 1.0), (1.0, 1.0))
        options: dict[str, Any] = {"words": (config.fewest, config.most)}
        parts = [
            join_words(part, count, seed=3 * config.seed + number, speed=speed, **options)
            for number, (part, count, speed) in enumerate(zip(parts, counts, speeds, strict=True))
        ]
    texts = [texts_of(part) for part in parts]
    units = find_units(texts[0], config.units)
    for part, own in zip(parts[1:], texts[1:], strict=True):
        say_unknown_units(part.name, own, units)
    raw = [spectra(part) for part in parts]
    mean, std = _statistics(*raw[0])
    sources = [_source(part.name, (x - mean) / std, n, config.buckets) for part, (x, n) in zip(parts, raw, strict=True)]
    sources[0] = _with_texts(sources[0], units, texts[0], raw[0][1])
    splits = [Split(*one) for one in zip(parts, texts, sources, strict=True)]
    return Corpus(splits[0], splits[1], splits[2], units, tuple(words[:2]) if config.strings else ())


def _sounds(config: TranscriptionConfig) -> Sounds:
    """All recordings, whose classes are words or texts."""
    if config.strings or config.source == TONES:
        sounds = sounds_of(config)
        spelled = tuple(DIGITS[int(n)] if n in map(str, range(10)) else n for n in sounds.class_names)
        return dataclasses.replace(sounds, class_names=spelled)
    if config.source.partition(":")[0] not in ("csv", "tsv"):
        raise ValueError(
            f"--strings is 0 but --source is {config.source}: give csv:PATH or tsv:PATH of a table with the fields "
            "path and text, or a number of strings to join from recordings of words."
        )
    return _with_table_texts(sounds_of(config, label="path"), config)


def _with_table_texts(sounds: Sounds, config: TranscriptionConfig) -> Sounds:
    """Recordings of a table with their texts as they stand there: "007" is no number."""
    columns, field = read_recordings(config.source).columns, config.label_field or "text"
    if field not in columns.values:
        raise ValueError(
            f"{columns.name} has no field {field!r}, only {listing(dict(columns.values))}: name the one that holds the "
            "texts by --label-field."
        )
    texts = []
    for row in sounds.ids:
        texts.append(" ".join(str(columns.values[field][row]).split()))
        if not texts[-1]:
            raise ValueError(f"{columns.place(int(row))} has no text: write one, or take the recording out.")
    names, labels = np.unique(texts, return_inverse=True)
    return dataclasses.replace(sounds, labels=labels.astype(np.int32), class_names=tuple(map(str, names)))


def _parts(config: TranscriptionConfig, sounds: Sounds) -> list[Sounds]:
    """Recordings to train, to validate and to test on."""
    validation, test = config.validation_speakers, config.held_out
    names = sorted(set(sounds.speakers.tolist()))
    if not test and len(names) > 2 and names[0]:
        tested, validated = -(-len(names) // 5), -(-len(names) // 10)
        validation, test = tuple(names[-tested - validated : -tested]), tuple(names[-tested:])
        say(
            f"{sounds.name} is validated on {first_few(validation)} and tested on {first_few(test)}, who train nothing."
        )
    if test:
        return split_by_speaker(sounds, validation, test)
    say(f"every tenth recording of {sounds.name} is tested on: name speakers by --held-out to test on unseen ones.")
    turn = np.arange(len(sounds)) % 10
    parts = ("train", "validation", "test")
    found = [np.flatnonzero(rows) for rows in (turn < 8, turn == 8, turn == 9)]
    if not all(map(len, found)):
        raise ValueError(f"{sounds.name} has {len(sounds)} recordings, too few for three splits: give at least 10.")
    return [sounds.take(rows, f"{sounds.name}[{name}]") for rows, name in zip(found, parts, strict=True)]


def spectra(sounds: Sounds) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel spectra of recordings, with `STACK` frames as one.

    Args:
      sounds: The recordings.

    Returns:
      float32 [N, F, STACK * M], 0 past a recording's end, and the number of real stacked frames, int32 [N].
    """
    settings = augment.LogMel(sounds.rate)
    length = np.array([len(x) for x in sounds.samples])
    frames = -(-settings.frames(length) // STACK)
    # Rounded up, so that sets of about one length share a program.
    most = settings.size + (STACK * _ROUNDED * -(-int(frames.max()) // _ROUNDED) - 1) * settings.step
    found = np.zeros((len(sounds), int(frames.max()), STACK * settings.mels), np.float32)
    for first in range(0, len(sounds), _AT_ONCE):
        audio = np.zeros((_AT_ONCE, most), np.float32)
        some = sounds.samples[first : first + _AT_ONCE]
        for row, x in enumerate(some):
            audio[row, : min(len(x), most)] = x[:most]
        values = np.asarray(_log_mel(audio, settings))[: len(some), : STACK * found.shape[1]]
        found[first : first + len(some)] = values.reshape(len(some), -1, found.shape[-1])
    found[np.arange(found.shape[1]) >= frames[:, None]] = 0
    return found, frames.astype(np.int32)


_log_mel = jax.jit(augment.log_mel, static_argnames="settings")


def _statistics(spectra: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each stacked band over real frames, float32 [STACK * M]."""
    real = spectra[np.arange(spectra.shape[1]) < frames[:, None]]
    return real.mean(axis=0), np.maximum(real.std(axis=0), 1e-3)


def _source(name: str, log_mel: np.ndarray, frames: np.ndarray, buckets: int) -> data.Source:
    """Spectra as a source, in batches of about one length."""

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        found = check_rows(name, numbers, len(frames))
        return {"log_mel": log_mel[found], "frames": frames[found], "id": found.astype(np.int32)}

    return data.Source(
        name,
        len(frames),
        0,
        None,
        read,
        task="unlabelled",
        lengths=frames,
        buckets=choose_buckets(frames, buckets),
        per_token=("log_mel",),
    )


def _with_texts(source: data.Source, units: Units, texts: Sequence[str], frames: np.ndarray) -> data.Source:
    """A source with labels of texts, after a check that each has enough frames."""
    labels, mask = units.encode(texts)
    need = frames_needed(labels, mask)
    if (need > frames).any():
        row = int(np.argmax(need > frames))
        raise ValueError(
            f"recording {row} of {source.name} has {frames[row]} stacked frames but its text "
            f"{shortened(texts[row])} needs {need[row]}: correct the text, or leave the recording out."
        )
    return data.with_fields(source, text=labels, text_mask=mask)


def with_field(source: data.Source, name: str, values: np.ndarray, *, per_frame: bool = False) -> data.Source:
    """Adds what a teacher says of recordings to a source.

    Args:
      source: The source.
      name: Name of the field.
      values: [N, ...] in the source's order.
      per_frame: Whether it has a value for each frame, so that batches cut it to their length.

    Returns:
      The source with the field.
    """
    found = data.with_fields(source, **{name: values})
    return dataclasses.replace(found, per_token=(*found.per_token, name)) if per_frame else found


def prepare_with(seed: int | None) -> Prepare:
    """Function that prepares batches: masks of spectra in training, and the mask of real frames.

    Args:
      seed: Seed of SpecAugment's masks; None for an evaluation, without them.

    Returns:
      A pure function from a batch to a batch with `frame_mask` [B, F].
    """
    # A mask of one frame of the spectrum hides nothing from a network that reads several as one.
    masks = augment.spec_augment(times=2, time=4 * STACK, bands=2, band=6)

    def masked(key: jax.Array, example: Any) -> Any:
        x = example["log_mel"]
        single = {"log_mel": x.reshape(-1, x.shape[-1] // STACK), "frames": STACK * example["frames"]}
        return {**example, "log_mel": masks(key, single)["log_mel"].reshape(x.shape)}

    change = (lambda batch: dict(batch)) if seed is None else augment.augment_batch(masked, seed=seed, field="log_mel")

    def prepare(batch: Batch) -> Batch:
        found = change(batch)
        real = jnp.arange(batch["log_mel"].shape[1])[None] < jnp.asarray(batch["frames"])[:, None]
        return {**found, "frame_mask": real}

    return prepare
