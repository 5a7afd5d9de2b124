"""Transcribed recordings: texts as labels of words or characters, and strings joined from recordings of words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxkd.data.sounds import LOUDNESS, Sounds
from jaxkd.data.splits import first_few, say


class Units(NamedTuple):
    """Units that texts are written in, each with a number; 0 is the blank of CTC.

    Attributes:
      names: Words or characters; `names[i]` has the number i + 1.
      kind: "words", which white space separates, or "characters".
    """

    names: tuple[str, ...]
    kind: Literal["words", "characters"]

    @property
    def classes(self) -> int:
        """Number of classes of a CTC network: the blank and all units."""
        return len(self.names) + 1

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Texts as labels.

        Args:
          texts: N texts, of these units alone.

        Returns:
          Labels int32 [N, L], 0 past the end, and booleans [N, L], true on labels.

        Raises:
          ValueError: If a text has another unit.
        """
        number = {name: place for place, name in enumerate(self.names, 1)}
        split = [units_of(text, self.kind) for text in texts]
        for row, units in enumerate(split):
            if other := [unit for unit in units if unit not in number]:
                raise ValueError(
                    f"text {row}, {texts[row]!r}, has {other[0]!r}, which is none of {len(number)} {self.kind}: give "
                    "texts of the units of the training texts."
                )
        mask = np.arange(max(map(len, split), default=0)) < np.array([len(units) for units in split])[:, None]
        labels = np.zeros(mask.shape, np.int32)
        labels[mask] = [number[unit] for units in split for unit in units]
        return labels, mask

    def decode(self, labels: Sequence[int]) -> str:
        """Text of labels.

        Args:
          labels: Numbers of units.

        Returns:
          The text.
        """
        return (" " if self.kind == "words" else "").join(self.names[label - 1] for label in labels)


def units_of(text: str, kind: Literal["words", "characters"]) -> list[str]:
    """Words or characters of a text, without white space at its ends.

    Args:
      text: The text.
      kind: What it is split into.

    Returns:
      Its units in order.
    """
    return text.split() if kind == "words" else list(" ".join(text.split()))


def find_units(texts: Sequence[str], kind: Literal["words", "characters"]) -> Units:
    """The units that occur in texts, in alphabetic order.

    Args:
      texts: The training texts.
      kind: What texts are split into.

    Returns:
      The units.

    Raises:
      ValueError: If the texts have none.
    """
    found = sorted({unit for text in texts for unit in units_of(text, kind)})
    if not found:
        raise ValueError(f"{len(texts)} texts have no {kind}: give recordings with their texts.")
    return Units(tuple(found), kind)


def say_unknown_units(name: str, texts: Sequence[str], units: Units) -> None:
    """Warns of units that the training texts lack, which no network can learn to write and which count as errors.

    Args:
      name: Name of the set.
      texts: Its texts.
      units: Those of the training texts.
    """
    known = set(units.names)
    missing = sorted({unit for text in texts for unit in units_of(text, units.kind)} - known)
    if missing:
        say(
            f"{name} has {len(missing)} {units.kind} that the training texts lack, such as {first_few(missing)}: they "
            "count as errors."
        )


def texts_of(sounds: Sounds) -> list[str]:
    """Texts of recordings, whose classes are texts.

    Args:
      sounds: The recordings.

    Returns:
      One for each.
    """
    return [sounds.class_names[label] for label in sounds.labels]


def join_words(
    sounds: Sounds,
    count: int,
    *,
    seed: int,
    words: tuple[int, int] = (3, 7),
    pause: tuple[float, float] = (0.03, 0.25),
    speed: tuple[float, float] = (1.0, 1.0),
    snr: float = 30.0,
    longest: float = 1.0,
) -> Sounds:
    """Joins recordings of single words to strings, each of one speaker, with pauses and a little white noise.

    Everything of a string is drawn from (seed, its number), so that string i is the same however many there are.

    Args:
      sounds: Recordings of single words; classes are words.
      count: Number of strings N.
      seed: Seed of all that is drawn.
      words: Least and largest number of words in a string; none is twice in it as the same recording.
      pause: Shortest and longest pause before, between and after words, in seconds.
      speed: Lowest and highest factor on the speed and pitch of a string.
      snr: Ratio of the words' power to that of the noise, which is in pauses too, in dB.
      longest: Seconds from which on a single recording is left out; how many is said.

    Returns:
      Strings whose classes are texts of words with a space between them.

    Raises:
      ValueError: If a speaker has fewer recordings than a string has words, or bounds are in the wrong order.
    """
    if count < 1 or not 1 <= words[0] <= words[1] or not 0 <= pause[0] <= pause[1] or not 0 < speed[0] <= speed[1]:
        raise ValueError(
            f"{count} strings of {words} words with pauses of {pause} s at speeds of {speed} were asked for: give at "
            "least 1 string, and the lower bound first."
        )
    short = np.array([len(x) <= longest * sounds.rate for x in sounds.samples])
    if not short.all():
        say(f"{(~short).sum()} of {len(sounds)} recordings of {sounds.name} are longer than {longest:g} s: left out.")
    rows = {name: np.flatnonzero((sounds.speakers == name) & short) for name in sorted(set(sounds.speakers.tolist()))}
    for speaker, own in rows.items():
        if len(own) < words[1]:
            raise ValueError(
                f"the speaker {speaker!r} of {sounds.name} has {len(own)} recordings of up to {longest:g} s: strings "
                f"of up to {words[1]} words need as many, so give shorter strings or more recordings."
            )
    speakers, found, texts = list(rows), [], []
    for number in range(count):
        random = np.random.default_rng((seed, number))
        speaker = speakers[random.integers(len(speakers))]
        chosen = random.choice(rows[speaker], random.integers(words[0], words[1] + 1), replace=False)
        texts.append((speaker, " ".join(sounds.class_names[sounds.labels[row]] for row in chosen)))
        found.append(_joined([sounds.samples[row] for row in chosen], sounds.rate, random, pause, speed, snr))
    names = sorted({text for _, text in texts})
    place = {text: label for label, text in enumerate(names)}
    return dataclasses.replace(
        sounds,
        name=f"strings of {sounds.name}",
        samples=found,
        labels=np.array([place[text] for _, text in texts], np.int32),
        class_names=tuple(names),
        speakers=np.array([speaker for speaker, _ in texts]),
        ids=np.arange(count, dtype=np.int32),
    )


def _joined(
    parts: Sequence[np.ndarray],
    rate: int,
    random: np.random.Generator,
    pause: tuple[float, float],
    speed: tuple[float, float],
    snr: float,
) -> np.ndarray:
    """One string: pauses and words, faster or slower, with noise."""
    pauses = [np.zeros(round(seconds * rate), np.float32) for seconds in random.uniform(*pause, len(parts) + 1)]
    whole = [pauses[0]]
    for part, after in zip(parts, pauses[1:], strict=True):
        whole += [part, after]
    x = np.concatenate(whole)
    factor = random.uniform(*speed)
    if factor != 1:
        x = np.interp(np.arange(0, len(x) - 1, factor), np.arange(len(x)), x)
    noise = LOUDNESS * 10 ** (-snr / 20) * random.standard_normal(len(x))
    return np.asarray(x + noise, np.float32)
