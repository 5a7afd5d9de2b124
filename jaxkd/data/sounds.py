"""Sounds: recordings of one rate and loudness, with classes and speakers, split by speaker, as sources."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxkd.data.checks import check_rows, listing
from jaxkd.data.naming import number_labels
from jaxkd.data.readers.audio import Recording, Recordings, read_recordings
from jaxkd.data.readers.columns import Columns
from jaxkd.data.source import Source
from jaxkd.data.splits import first_few, say

LOUDNESS = 0.1
"""Root mean square of every recording's samples."""

SHORTEST = 0.02
"""Seconds below which a recording counts as empty."""

_SILENT = 1e-4  # largest sample of a silent recording, -80 dB of full scale
_CLIPPED = 0.01  # part of the samples at full scale, from which on a recording counts as clipped
_LABELS = ("label", "digit", "word", "class", "text")
_SPEAKERS = ("speaker", "client_id", "speaker_id")


@dataclasses.dataclass(frozen=True)
class Sounds:
    """Recordings, with what belongs to them.

    Attributes:
      name: Name for messages.
      samples: Samples of each recording, float32 [n], of root mean square `LOUDNESS`.
      rate: Samples a second.
      labels: Class numbers, int32 [N].
      class_names: Names of the classes [K].
      speakers: Name of each recording's speaker [N]; empty texts if the set does not tell them.
      ids: Row numbers in the whole set, increasing, int32 [N].
    """

    name: str
    samples: list[np.ndarray]
    rate: int
    labels: np.ndarray
    class_names: tuple[str, ...]
    speakers: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        """Number of recordings."""
        return len(self.samples)

    def take(self, rows: Sequence[int] | np.ndarray, name: str | None = None) -> Sounds:
        """Some of the recordings.

        Args:
          rows: Their numbers, increasing.
          name: Their name; the same if None.

        Returns:
          Sounds.
        """
        rows = np.asarray(rows, np.int64)
        return dataclasses.replace(
            self,
            name=self.name if name is None else name,
            samples=[self.samples[row] for row in rows],
            labels=self.labels[rows],
            speakers=self.speakers[rows],
            ids=self.ids[rows],
        )


def open_sounds(
    spec: str | Mapping[str, Any],
    *,
    rate: int | None = None,
    other_rate: Literal["resample", "refuse"] = "resample",
    stereo: Literal["mix", "refuse"] = "mix",
    label: str | None = None,
    speaker: str | None = None,
    speaker_pattern: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Sounds:
    """Opens a set of recordings, brings them to one rate and one loudness, and says what it found amiss.

    Empty and silent recordings are left out; clipped ones stay. Both are counted in a warning.

    Args:
      spec: As `jaxkd.data.readers.audio.read_recordings` takes it; or a mapping with `audio` (a list of float arrays
        [n]), `sample_rate`, and lists of one value a recording, such as `label` and `speaker`.
      rate: Samples a second; that of most recordings if None.
      other_rate: Recordings of another rate are resampled (`scipy.signal.resample_poly`), or refused.
      stereo: The channels of a recording are averaged, or it is refused.
      label: Field of the classes; one with a usual name if None, such as `label` or `word`.
      speaker: Field of the speakers; one with a usual name if None, and there may be none.
      speaker_pattern: Regular expression whose first group, in a file's name, is the speaker; for folders.
      class_names: Names of the classes in their order, such as those of the training set; those that occur if None.

    Returns:
      The recordings.

    Raises:
      ValueError: As `read_recordings` says; if a recording holds NaN or Inf, has another rate or several channels that
        are to be refused, if there is no label, or if no recording is left.
    """
    read = _of_mapping(spec) if isinstance(spec, Mapping) else read_recordings(spec, speaker_pattern=speaker_pattern)
    name = read.columns.name
    if not read.recordings:
        raise ValueError(f"{name} has no recording: give a set with at least one.")
    rate = collections.Counter(one.rate for one in read.recordings).most_common(1)[0][0] if rate is None else rate
    mono = [_mono(one, stereo) for one in read.recordings]
    rows = _usable(name, mono)
    samples = _at_rate(name, [mono[row] for row in rows], rate, other_rate)
    labels, names = number_labels(read.columns, _field(read.columns, label, _LABELS, "label"), class_names)
    if labels is None or not names:
        raise ValueError(f"{name} has no classes as labels: name their field by --label-field.")
    speakers = np.array([""] * len(read.recordings))
    if speaker is not None or any(field in read.columns.values for field in _SPEAKERS):
        found = read.columns.values[_field(read.columns, speaker, _SPEAKERS, "speaker")]
        speakers = np.array([str(one).strip() for one in found])
    return Sounds(name, [_loud(x) for x in samples], rate, labels[rows], names, speakers[rows], rows.astype(np.int32))


def split_by_speaker(sounds: Sounds, *groups: Sequence[str]) -> list[Sounds]:
    """Splits recordings so that no speaker is in two parts.

    Args:
      sounds: The recordings.
      *groups: Names of speakers of each further part, such as those to validate and those to test on.

    Returns:
      The recordings of all other speakers, then a part for each group.

    Raises:
      ValueError: If a speaker is unknown or in two groups, or a part is empty.
    """
    known = sorted(set(sounds.speakers.tolist()))
    for number, group in enumerate(groups):
        for speaker in group:
            if speaker not in known or not speaker:
                have = f"its speakers are {listing(known[:12])}" if known != [""] else "it tells no speakers"
                raise ValueError(
                    f"{sounds.name} has no recording of the speaker {speaker!r}: {have}; name them by --speaker-field "
                    "or --speaker-pattern, and choose by --held-out and --validation-speakers."
                )
            if any(speaker in other for other in groups[:number]):
                raise ValueError(
                    f"the speaker {speaker!r} is in two parts, of --held-out and --validation-speakers: name each once."
                )
    rest = [speaker for speaker in known if not any(speaker in group for group in groups)]
    if "" in rest and len(known) > 1:
        say(
            f"{np.sum(sounds.speakers == '')} of {len(sounds)} recordings of {sounds.name} tell no speaker: they train."
        )
    parts = []
    for group in (rest, *groups):
        rows = np.flatnonzero(np.isin(sounds.speakers, list(group)))
        if not len(rows):
            raise ValueError(
                f"no speaker of {sounds.name} is left for a part of it: name fewer of its {len(known)} speakers by "
                "--held-out and --validation-speakers."
            )
        parts.append(sounds.take(rows, f"{sounds.name}[{first_few(list(group))}]"))
    return parts


def to_source(sounds: Sounds, seconds: float) -> Source:
    """Makes a source of recordings: longer ones are cut, which is counted in a warning, shorter ones are padded.

    Args:
      sounds: The recordings.
      seconds: Length of a row.

    Returns:
      A source with `audio` float32 [B, round(seconds * rate)], 0 past the end of a recording, its number of samples
      `length` int32 [B], `label` and `id`.

    Raises:
      ValueError: If a row has no sample.
    """
    most = round(seconds * sounds.rate)
    if most < 1:
        raise ValueError(f"--seconds is {seconds}, less than one sample at {sounds.rate} Hz: give more.")
    length = np.array([min(len(x), most) for x in sounds.samples], np.int32)
    if cut := sum(len(x) > most for x in sounds.samples):
        say(f"{cut} of {len(sounds)} recordings of {sounds.name} are longer than {seconds:g} s and are cut to it.")
    audio = np.zeros((len(sounds), most), np.float32)
    for row, x in enumerate(sounds.samples):
        audio[row, : length[row]] = x[:most]

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        rows = check_rows(sounds.name, rows, len(sounds))
        return {"audio": audio[rows], "length": length[rows], "label": sounds.labels[rows], "id": sounds.ids[rows]}

    return Source(
        sounds.name, len(sounds), len(sounds.class_names), None, read, drawn=sounds.ids, class_names=sounds.class_names
    )


def resample(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Resamples a recording by a polyphase filter.

    Args:
      samples: float32 [n].
      rate: Its samples a second.
      to: Samples a second to bring it to.

    Returns:
      float32 [ceil(n * to / rate)]; the same array if the rates are equal.
    """
    if rate == to:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, to)
    found: np.ndarray = resample_poly(samples, to // common, rate // common)
    return found.astype(np.float32)


def _of_mapping(arrays: Mapping[str, Any]) -> Recordings:
    """Recordings of arrays in memory."""
    rate = int(arrays["sample_rate"])
    recordings = [
        Recording(np.asarray(x, np.float32), rate, f"recording {row} of arrays")
        for row, x in enumerate(arrays["audio"])
    ]
    values = {name: list(value) for name, value in arrays.items() if name not in ("audio", "sample_rate")}
    for name, value in values.items():
        if len(value) != len(recordings):
            raise ValueError(f"`{name}` has {len(value)} values for {len(recordings)} recordings: give one for each.")
    return Recordings(recordings, Columns("arrays", values))


def _field(columns: Columns, name: str | None, usual: Sequence[str], what: str) -> str:
    """Name of a field that holds the labels or the speakers."""
    found = [field for field in ([name] if name is not None else usual) if field in columns.values]
    if not found:
        raise ValueError(
            f"{columns.name} has no field {name or what!r}, only {listing(dict(columns.values))}: name the one that "
            f"holds the {what} by --{what}-field."
        )
    return found[0]


def _mono(one: Recording, stereo: str) -> Recording:
    """A recording of one channel, after a check of its samples."""
    if not np.isfinite(one.samples).all():
        raise ValueError(f"{one.place} holds NaN or Inf: write it anew, or take it out of the set.")
    if one.samples.ndim == 1:
        return one
    if stereo == "refuse":
        raise ValueError(f"{one.place} has {one.samples.shape[1]} channels: mix it down, or allow it by --stereo mix.")
    return one._replace(samples=one.samples.mean(axis=1))


def _usable(name: str, recordings: Sequence[Recording]) -> np.ndarray:
    """Numbers of the recordings that are neither empty nor silent; what is left out, and what is clipped, is said."""
    highest = np.array([np.abs(one.samples).max(initial=0) for one in recordings])
    empty = np.array([len(one.samples) < SHORTEST * one.rate for one in recordings])
    silent = ~empty & (highest < _SILENT)
    clipped = np.array([_is_clipped(one.samples) for one in recordings])
    for which, what, then in (
        (empty, f"are empty or shorter than {1e3 * SHORTEST:g} ms", "are left out"),
        (silent, "are silent", "are left out"),
        (clipped & ~silent & ~empty, "are clipped, with 1 % of their samples or more at full scale", "are kept"),
    ):
        if which.any():
            first = recordings[int(np.flatnonzero(which)[0])].place
            say(f"{which.sum()} of {len(recordings)} recordings of {name} {what}, and {then}; the first is {first}.")
    if (empty | silent).all():
        raise ValueError(f"all {len(recordings)} recordings of {name} are empty or silent: give others.")
    return np.flatnonzero(~(empty | silent))


def _is_clipped(samples: np.ndarray) -> bool:
    """True if many samples stand at full scale."""
    return samples.size > 0 and float(np.mean(np.abs(samples) >= 1 - 2**-14)) >= _CLIPPED


def _at_rate(name: str, recordings: Sequence[Recording], rate: int, other: str) -> list[np.ndarray]:
    """Samples of all recordings at one rate."""
    others = [one for one in recordings if one.rate != rate]
    if others and other == "refuse":
        raise ValueError(
            f"{others[0].place} has {others[0].rate} samples a second but --sample-rate is {rate}: resample it, or "
            "allow it by --other-rate resample."
        )
    if others:
        rates = first_few([f"{value} Hz" for value in sorted({one.rate for one in others})])
        say(f"{len(others)} of {len(recordings)} recordings of {name} are resampled from {rates} to {rate} Hz.")
    return [resample(one.samples, one.rate, rate) for one in recordings]


def _loud(samples: np.ndarray) -> np.ndarray:
    """Samples scaled to the common loudness."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return (samples * (LOUDNESS / math.sqrt(power))).astype(np.float32)
