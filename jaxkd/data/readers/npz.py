"""Arrays of .npz files, one for all splits or one for each."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxkd.data.checks import path_of, root_cause
from jaxkd.data.readers import names, pictures
from jaxkd.data.readers.arrays import from_arrays, from_splits
from jaxkd.data.source import Source


def from_npz(
    path: str, split: str, num_classes: int | None, frame: pictures.Frame | None, ignore: float | None = None
) -> Source:
    """Opens an .npz file of arrays as a source.

    Args:
      path: The file; "{split}" in it stands for the name of a split that has a file of its own.
      split: The split or a slice of it.
      num_classes: Number of classes, or None to take it from the labels.
      frame: Size to which images are resized, or None.
      ignore: Label that says that there is none, or None.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence, if the file cannot be read or its arrays do not fit.
    """
    name = f"npz:{path}"
    if "{split}" not in path:
        return from_arrays(name, load_arrays(path_of(path)), split, num_classes, frame, ignore)
    files = _files_of_splits(path)
    base = split.partition("[")[0].strip()
    # The other splits' labels alone are read, for the number of classes.
    found = {key: load_arrays(file, None if key == base else names.label_names) for key, file in files.items()}
    splits = {key: _of_split(key, names.splits_of(f"{name}[{key}]", arrays)) for key, arrays in found.items()}
    return from_splits(name, splits, split, num_classes, frame, ignore)


def _of_split(split: str, found: Mapping[str, Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    """Arrays of one split's file, whose names may say the split again."""
    return found.get(split) or (next(iter(found.values())) if len(found) == 1 else {})


def _files_of_splits(path: str) -> dict[str, Path]:
    """Split -> its file, of all that exist."""
    whole = str(path_of(path))
    before, *after = (re.escape(part) for part in whole.split("{split}"))
    pattern = re.compile(before + "(?P<split>[^/]*)" + "(?P=split)".join(after))
    found = sorted(glob.glob("*".join(glob.escape(part) for part in whole.split("{split}"))))
    files = {m["split"]: Path(file) for file in found if (m := pattern.fullmatch(file))}
    if not files:
        raise ValueError(f"there is no file {whole} for any {{split}}: give npz:PATH of files that exist.")
    return files


def load_arrays(path: Path, choose: Callable[[Iterable[str]], Iterable[str]] | None = None) -> Mapping[str, np.ndarray]:
    """Reads the arrays of an .npz file.

    Args:
      path: The file.
      choose: Names of all arrays -> names of those that are read; None to read all.

    Returns:
      Name -> array.

    Raises:
      ValueError: If the file cannot be read, or holds objects.
    """
    arrays, key = {}, ""
    try:
        with path.open("rb") as raw:
            begins = raw.read(6)
            if begins[:2] != b"PK":
                raise ValueError("it is an .npy file of one array" if begins[1:] == b"NUMPY" else "it is no .npz file")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                for key in file.files if choose is None else choose(file.files):
                    arrays[key] = file[key]
                    if not isinstance(arrays[key], np.ndarray):
                        raise ValueError("it is no array")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: give npz:PATH of a file that exists.") from None
    except Exception as error:  # torn files fail in many ways
        where = f"array `{key}`: " if key else ""
        raise ValueError(
            f"{path} cannot be read as an .npz file of plain arrays ({where}{root_cause(error)}): "
            "write it anew with np.savez(path, image=..., label=...)."
        ) from error
    return arrays
