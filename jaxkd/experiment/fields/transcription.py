"""Transcription of speech by CTC: recordings with texts as sources of stacked spectra, floors, and error rates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import augment, data, metrics
from jaxkd.data.buckets import choose_buckets
from jaxkd.data.checks import check_rows
from jaxkd.data.sounds import Sounds, open_sounds, split_by_speaker
from jaxkd.data.splits import first_few, say
from jaxkd.data.transcripts import Units, find_units, join_words, say_unknown_units, texts_of, units_of
from jaxkd.experiment.config import Config
from jaxkd.experiment.domains import COUNT, NON_NEGATIVE, WHOLE
from jaxkd.experiment.fields.tones import TONES, tones
from jaxkd.experiment.flags import DATA, flag
from jaxkd.experiment.text_baselines import logistic_regression
from jaxkd.experiment.trials import Scores
from jaxkd.losses.ctc import frames_needed
from jaxkd.types import Batch, Prepare

STACK = 4
"""Frames of a spectrum that a network reads as one."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Words of the classes 0..9 of a set of spoken digits."""

_AT_ONCE = 64  # recordings whose spectra are computed together
_CUTS = 10  # frames that a word has for a linear classifier
_STRENGTHS = (1e-3, 1e-2, 1e-1)  # inverse strengths of its regularisation that are tried


@dataclasses.dataclass(frozen=True)
class TranscriptionConfig(Config):
    """Base configuration of an experiment with transcribed recordings."""

    source: str = flag(
        "npz:fsdd/{split}.npz",
        "recordings: npz:PATH of arrays, folder:PATH with a folder for each word, csv:PATH or tsv:PATH of a table with "
        "the fields path and text",
        DATA,
    )
    label_field: str | None = flag(None, "field of the words or texts; one with a usual name if absent", DATA)
    speaker_field: str | None = flag(None, "field of the speakers; one with a usual name if absent", DATA)
    speaker_pattern: str | None = flag(None, "regular expression whose group is the speaker in a file's name", DATA)
    sample_rate: int | None = flag(None, "samples a second; that of most recordings if absent", DATA, COUNT)
    other_rate: Literal["resample", "refuse"] = flag("resample", "recordings of another rate", DATA)
    stereo: Literal["mix", "refuse"] = flag("mix", "recordings of several channels", DATA)
    held_out: tuple[str, ...] = flag((), "speakers to test on; a fifth of them, the last by name, if absent", DATA)
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
    if config.source == TONES:
        return tones(config.seed)
    sounds = open_sounds(
        config.source,
        rate=config.sample_rate,
        other_rate=config.other_rate,
        stereo=config.stereo,
        label=config.label_field,
        speaker=config.speaker_field,
        speaker_pattern=config.speaker_pattern,
    )
    spelled = tuple(DIGITS[int(n)] if n in map(str, range(10)) else n for n in sounds.class_names)
    return dataclasses.replace(sounds, class_names=spelled)


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
    most = settings.size + (STACK * int(frames.max()) - 1) * settings.step
    found = np.zeros((len(sounds), int(frames.max()), STACK * settings.mels), np.float32)
    compute = jax.jit(functools.partial(augment.log_mel, settings=settings))
    for first in range(0, len(sounds), _AT_ONCE):
        audio = np.zeros((_AT_ONCE, most), np.float32)
        some = sounds.samples[first : first + _AT_ONCE]
        for row, x in enumerate(some):
            audio[row, : min(len(x), most)] = x[:most]
        values = np.asarray(compute(audio))[: len(some)]
        found[first : first + len(some)] = values.reshape(len(some), -1, found.shape[-1])
    found[np.arange(found.shape[1]) >= frames[:, None]] = 0
    return found, frames.astype(np.int32)


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
            f"recording {row} of {source.name} has {frames[row]} stacked frames but its text {texts[row]!r} needs "
            f"{need[row]}: correct the text, or leave the recording out."
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


def error_rates(texts: Sequence[str], written: Sequence[str]) -> Scores:
    """Error rates of texts that a network wrote.

    Args:
      texts: True texts.
      written: What it wrote, one for each.

    Returns:
      "wer" and "cer", and the parts of the former: "substitutions", "deletions" and "insertions" by words.
    """
    words = metrics.word_edits(texts, written)
    parts = {name: getattr(words, name) / max(1, words.length) for name in words._fields[:3]}
    cer = metrics.character_edits(texts, written).value()
    return {"wer": float(words.value()), "cer": float(cer), **parts}


def transcribe(logits: np.ndarray, frames: np.ndarray, units: Units) -> list[str]:
    """Texts of the likeliest paths.

    Args:
      logits: [N, F, K].
      frames: Real frames [N].
      units: The units.

    Returns:
      N texts.
    """
    mask = np.arange(logits.shape[1]) < frames[:, None]
    labels, real = map(np.asarray, metrics.greedy_ctc(logits, mask))
    return [units.decode(row[m]) for row, m in zip(labels, real, strict=True)]


def best_texts(logits: np.ndarray, frames: np.ndarray, *, best: int) -> dict[str, np.ndarray]:
    """A teacher's likeliest texts of each recording, with their probabilities, for sequence-level distillation.

    Args:
      logits: [N, F, K].
      frames: Real frames [N].
      best: Number of texts n.

    Returns:
      `hypotheses` int32 [N, n, L], `hypothesis_mask` [N, n, L], and `hypothesis_weights` float32 [N, n], which sum to
      1 in each row.
    """
    log_p = np.asarray(jax.nn.log_softmax(logits))
    found = [metrics.beam_search(x[:n], beam=best, classes=3) for x, n in zip(log_p, frames, strict=True)]
    length = max(1, *(len(one.labels) for row in found for one in row))
    labels = np.zeros((len(found), best, length), np.int32)
    mask, weights = np.zeros(labels.shape, bool), np.zeros(labels.shape[:2], np.float32)
    for row, hypotheses in enumerate(found):
        for place, one in enumerate(hypotheses):
            labels[row, place, : len(one.labels)], mask[row, place, : len(one.labels)] = one.labels, True
            weights[row, place] = np.exp(one.log_probability - hypotheses[0].log_probability)
    weights /= weights.sum(axis=1, keepdims=True)
    return {"hypotheses": labels, "hypothesis_mask": mask, "hypothesis_weights": weights}


def constant_floor(corpus: Corpus) -> list[str]:
    """The most frequent training text, whatever is said.

    Args:
      corpus: The splits.

    Returns:
      A text for each test recording: of equally frequent ones, the one with the fewest errors on the training texts.
    """
    texts, counts = np.unique(corpus.train.texts, return_counts=True)
    likely = texts[counts == counts.max()]
    some = likely[: min(len(likely), 50)]
    rates = [error_rates(corpus.train.texts[:200], [str(text)] * len(corpus.train.texts[:200]))["wer"] for text in some]
    return [str(some[int(np.argmin(rates))])] * len(corpus.test.texts)


def cut_floor(corpus: Corpus) -> list[str]:
    """Logistic regression on single words' spectra, on equal cuts of each test string, whose count of words it is told.

    Args:
      corpus: Splits of strings that were joined from words.

    Returns:
      A text for each test string.
    """
    train, validation = (_words(part) for part in corpus.words)
    names = corpus.words[0].class_names
    model = logistic_regression(*train, validation, len(names), strengths=_STRENGTHS)
    log_mel, frames = spectra(corpus.test.sounds)
    found = []
    for x, n, text in zip(log_mel, frames, corpus.test.texts, strict=True):
        cuts = np.array_split(x[:n].reshape(STACK * int(n), -1), len(units_of(text, "words")))
        classes = model.logits(np.stack([_fixed(cut) for cut in cuts])).argmax(axis=-1)
        found.append(" ".join(names[c] for c in classes))
    return found


def _words(sounds: Sounds) -> tuple[np.ndarray, np.ndarray]:
    """Spectra of single words as vectors, and their classes."""
    log_mel, frames = spectra(sounds)
    flat = [_fixed(x[:n].reshape(STACK * int(n), -1)) for x, n in zip(log_mel, frames, strict=True)]
    return np.stack(flat), sounds.labels


def _fixed(spectrum: np.ndarray) -> np.ndarray:
    """Spectrum [F, M] as a vector of a fixed number of frames, less the mean of each band."""
    places = np.linspace(0, len(spectrum) - 1, _CUTS)
    left = np.minimum(places.astype(int), len(spectrum) - 1)
    part = (places - left)[:, None]
    x = (1 - part) * spectrum[left] + part * spectrum[np.minimum(left + 1, len(spectrum) - 1)]
    return (x - x.mean(axis=0)).ravel()


def scorer(predict: Callable[[Any], Callable[[data.Source], Any]], split: Split, units: Units) -> Callable[..., Scores]:
    """Function that scores the variables of a network on a split.

    Args:
      predict: As `jaxkd.experiment.evaluator.predictor` makes it.
      split: The split.
      units: The units.

    Returns:
      (variables) -> error rates.
    """
    frames = split.source.read(np.arange(len(split.texts)))["frames"]

    def score(variables: Any) -> Scores:
        _, logits = predict(variables)(split.source)
        return error_rates(split.texts, transcribe(logits, frames, units))

    return score
