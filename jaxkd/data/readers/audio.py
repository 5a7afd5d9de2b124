"""Recordings from WAV, FLAC and OGG files, of one folder a class, of a table of files, or end to end in .npz files."""

from __future__ import annotations

import glob
import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxkd.data.checks import listing, path_of, root_cause
from jaxkd.data.readers.columns import Columns, check_file
from jaxkd.data.readers.delimited import read_csv, read_tsv

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".aiff", ".aif", ".au")
"""Endings of sound files, in lower case."""

_FULL_SCALE = 2**15


class Recording(NamedTuple):
    """A recording as it was read.

    Attributes:
      samples: float32 [n], or [n, channels] of several channels, in -1..1.
      rate: Samples a second.
      place: Its file or its row, for a sentence.
    """

    samples: np.ndarray
    rate: int
    place: str


class Recordings(NamedTuple):
    """Recordings of one data set, with what belongs to them.

    Attributes:
      recordings: The recordings.
      columns: Field -> a value for each of them, such as its label and its speaker.
    """

    recordings: list[Recording]
    columns: Columns


def read_recordings(spec: str, *, speaker_pattern: str | None = None) -> Recordings:
    """Reads all recordings of a data set.

    Args:
      spec: One of
        - "folder:PATH", with a folder for each class in it, PATH/class/file.wav, of any kind of `ENDINGS`;
        - "csv:PATH" or "tsv:PATH", a table whose field `path` names sound files, relative to the table's folder;
        - "npz:PATH", arrays `audio` (all recordings end to end, int16 or floats) and `length` (samples of each), the
          number `sample_rate`, and fields of one value a recording; `NAME_names` names the values of a field NAME.
        "{split}" in the path of a table or of arrays stands for any word: all such files are read, as one set.
      speaker_pattern: Regular expression whose first group, searched in a file's name, is its speaker, which becomes
        the field `speaker` of a folder.

    Returns:
      The recordings; the folder's field of classes is `label`.

    Raises:
      ValueError: In one sentence that names the file: if there is none, it is damaged, or is of another kind.
      ImportError: If a file needs the package `soundfile`, which is missing.
    """
    kind, _, place = spec.partition(":")
    readers = {"npz": _of_npz, "csv": _of_table, "tsv": _of_table}
    if kind == "folder":
        return _of_folder(path_of(place), speaker_pattern)
    if kind not in readers:
        raise ValueError(
            f"{spec!r} is no set of recordings: give folder:PATH with one folder a class, csv:PATH or tsv:PATH of a "
            "table of files, or npz:PATH of arrays."
        )
    parts = [readers[kind](path) for path in _files(place)]
    fields = [name for name in parts[0].columns.values if all(name in part.columns.values for part in parts)]
    values = {name: [value for part in parts for value in part.columns.values[name]] for name in fields}
    return Recordings([one for part in parts for one in part.recordings], Columns(place, values))


def read_file(path: Path) -> Recording:
    """Reads one sound file; WAV of 16-bit PCM needs no further package.

    Args:
      path: The file.

    Returns:
      The recording.

    Raises:
      ValueError: If there is no such file, or it is damaged.
      ImportError: If it needs the package `soundfile`, which is missing.
    """
    check_file(path)
    if path.suffix.lower() == ".wav" and (found := _pcm16(path)) is not None:
        return found
    try:
        import soundfile
    except ImportError as error:
        raise ImportError(
            f"{path} is no WAV of 16-bit PCM, so that it needs the package soundfile: pip install 'jaxkd[speech]'."
        ) from error
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except (OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return Recording(samples, int(rate), str(path))


def _pcm16(path: Path) -> Recording | None:
    """A WAV of 16-bit PCM; None for another format, which `soundfile` may know."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                return None
            declared, channels, rate = file.getnframes(), file.getnchannels(), file.getframerate()
            raw = file.readframes(declared)
    except (wave.Error, EOFError) as error:
        if "unknown format" in str(error):
            return None
        raise _damaged(path, error) from error
    frames = len(raw) // (2 * channels)
    if frames < declared:
        raise _damaged(path, ValueError(f"it ends after {frames} of {declared} samples"))
    samples = np.frombuffer(raw, "<i2").astype(np.float32) / _FULL_SCALE
    return Recording(samples if channels == 1 else samples.reshape(-1, channels), rate, str(path))


def _damaged(path: Path, error: Exception) -> ValueError:
    """The error of a file that cannot be read."""
    return ValueError(
        f"{path} cannot be read as a recording ({root_cause(error)}): copy it anew, or take it out of the set."
    )


def _files(place: str) -> list[Path]:
    """Files of a path, in which "{split}" stands for any word."""
    whole = str(path_of(place))
    if "{split}" not in whole:
        return [Path(whole)]
    found = sorted(glob.glob("*".join(glob.escape(part) for part in whole.split("{split}"))))
    if not found:
        raise ValueError(f"there is no file {whole} for any {{split}}: give the path of files that exist.")
    return [Path(file) for file in found]


def _of_folder(folder: Path, speaker_pattern: str | None) -> Recordings:
    """Recordings of a folder for each class."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give folder:PATH of a folder that has one folder a class.")
    files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in ENDINGS)
    if not files:
        loose = any(file.suffix.lower() in ENDINGS for file in folder.iterdir())
        hint = (
            "its sound files stand in no folder of their class, so make one for each class"
            if loose
            else (f"give one folder a class, with files such as {listing([f'*{end}' for end in ENDINGS[:3]])}")
        )
        raise ValueError(f"{folder} has no recording in a folder of a class: {hint}.")
    values = {"label": [file.parent.name for file in files]}
    if speaker_pattern is not None:
        values["speaker"] = [_speaker(file, speaker_pattern) for file in files]
    return Recordings([read_file(file) for file in files], Columns(str(folder), values))


def _speaker(file: Path, pattern: str) -> str:
    """Speaker that a file's name tells."""
    try:
        found = re.search(pattern, file.name)
        return found.group(1) if found else ""
    except (re.error, IndexError) as error:
        raise ValueError(
            f"--speaker-pattern {pattern!r} is no regular expression with a group ({error}): write one such as "
            "'^([^_]+)_', whose group is the speaker in a file's name."
        ) from error


def _of_table(path: Path) -> Recordings:
    """Recordings that a table names."""
    columns = read_tsv(path) if ".tsv" in path.name else read_csv(path)
    if "path" not in columns.values:
        raise ValueError(
            f"the first line of {path} names {listing(dict(columns.values))}, but the field `path` of sound files is "
            "needed: rename it."
        )
    recordings = []
    for row, name in enumerate(columns.values["path"]):
        file = path.parent / Path(name).expanduser()
        if not file.is_file():
            raise ValueError(f"{columns.place(row)} names {file}, which is no file: correct the line.")
        recordings.append(read_file(file))
    return Recordings(recordings, columns)


def _of_npz(path: Path) -> Recordings:
    """Recordings that stand end to end in an array."""
    arrays = _arrays(path)
    audio, length = _audio(path, arrays), arrays["length"]
    rate = int(arrays["sample_rate"]) if "sample_rate" in arrays and np.ndim(arrays["sample_rate"]) == 0 else 0
    if rate < 1:
        raise ValueError(f"{path} has no number `sample_rate`: add it, the samples a second.")
    ends = np.cumsum(length, dtype=np.int64)
    parts = np.split(audio, ends[:-1]) if len(length) else []
    recordings = [Recording(part, rate, f"recording {row} of {path}") for row, part in enumerate(parts)]
    return Recordings(recordings, Columns(str(path), _fields(path, arrays, len(length))))


def _audio(path: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Samples of all recordings as float32 [total], after a check that the lengths fit."""
    audio, length = arrays["audio"], arrays["length"]
    if audio.ndim != 1 or not (audio.dtype == np.int16 or audio.dtype.kind == "f"):
        raise ValueError(
            f"`audio` of {path} has shape {audio.shape} and dtype {audio.dtype}: give all recordings end to end, "
            "[total samples], in int16 or in floats of -1..1."
        )
    if length.ndim != 1 or length.dtype.kind not in "iu" or (length.size and length.min() < 0):
        raise ValueError(
            f"`length` of {path} has shape {length.shape} and dtype {length.dtype}: give the number of samples of each "
            "recording, integers [N] of at least 0."
        )
    if int(length.sum(dtype=np.int64)) != len(audio):
        raise ValueError(
            f"the lengths of {path} add up to {length.sum(dtype=np.int64)} samples but `audio` has {len(audio)}: give "
            "the number of samples of each recording."
        )
    return audio.astype(np.float32) / (_FULL_SCALE if audio.dtype == np.int16 else 1)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file, among them `audio` and `length`."""
    check_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # torn files fail in many ways
        raise ValueError(
            f"{path} cannot be read as an .npz file of plain arrays ({root_cause(error)}): write it anew with "
            "np.savez(path, audio=..., length=..., sample_rate=..., label=...)."
        ) from error
    for name in ("audio", "length"):
        if name not in arrays:
            raise ValueError(
                f"{path} has no array `{name}`, only {listing(dict(arrays))}: give `audio`, all recordings end to end, "
                "and `length`, the number of samples of each."
            )
    return arrays


def _fields(path: Path, arrays: dict[str, np.ndarray], count: int) -> dict[str, list[Any]]:
    """Fields of one value a recording, by name where the file names the values."""
    fields: dict[str, list[Any]] = {}
    for name, values in arrays.items():
        if name in ("audio", "length", "sample_rate") or values.ndim != 1 or name.endswith("_names"):
            continue
        if len(values) != count:
            raise ValueError(f"`{name}` of {path} has {len(values)} values for {count} recordings: give one for each.")
        fields[name] = _named(path, name, values, arrays.get(f"{name}_names"))
    return fields


def _named(path: Path, name: str, values: np.ndarray, names: np.ndarray | None) -> list[Any]:
    """Values of a field, or the names that they number."""
    found: Sequence[Any] = values.tolist()
    if names is None:
        return list(found)
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() < len(names)):
        raise ValueError(f"`{name}` of {path} does not number its {len(names)} names: give integers from 0.")
    return [str(names[value]) for value in found]
