"""Sources from arrays in memory or in .npz files, of which all values are checked at opening."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data import checks
from jaxkd.data.readers import pictures
from jaxkd.data.source import Source
from jaxkd.kernels.rows import take
from jaxkd.types import RESERVED

_KERAS = re.compile(r"(?P<field>[xy])_(?P<split>\w+)")
_PREFIXED = re.compile(r"(?P<split>train|validation|valid|val|test)_(?P<field>\w+)")
_KERAS_FIELDS = {"x": "image", "y": "label"}
_INPUTS = ("image", "tokens")

Fields = dict[str, np.ndarray]
"""Name -> array with one leading axis of rows."""


def from_npz(path: str, split: str, num_classes: int | None, frame: pictures.Frame | None) -> Source:
    """Opens an .npz file of arrays as a source.

    Args:
      path: The file; "{split}" in it stands for the name of a split that has a file of its own.
      split: The split or a slice of it.
      num_classes: Number of classes, or None to take it from the labels.
      frame: Size to which images are resized, or None.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence, if the file cannot be read or its arrays do not fit.
    """
    name = f"npz:{path}"
    if "{split}" not in path:
        return from_arrays(name, _load(Path(path)), split, num_classes, frame)
    whole = Path(path).expanduser()
    before, after = whole.name.split("{split}", 1)
    files = {f.name[len(before) : len(f.name) - len(after)]: f for f in sorted(whole.parent.glob(f"{before}*{after}"))}
    base = split.partition("[")[0].strip()
    # The other splits' labels alone are read, for the number of classes.
    splits = {key: _load(file, only=None if key == base else "label") for key, file in files.items()}
    return _from_splits(name, splits, split, num_classes, frame)


def from_arrays(
    name: str, arrays: Mapping[str, Any], split: str, num_classes: int | None, frame: pictures.Frame | None
) -> Source:
    """Makes a source of a mapping of arrays.

    Args:
      name: Name of the source, for messages.
      arrays: Name -> array [N, ...], of one split or of several (see `jaxkd.data.open_source`).
      split: The split or a slice of it.
      num_classes: Number of classes, or None to take it from the labels.
      frame: Size to which images are resized, or None.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence, if the arrays do not fit.
    """
    return _from_splits(name, _splits_of(arrays), split, num_classes, frame)


def _load(path: Path, only: str | None = None) -> Mapping[str, np.ndarray]:
    """Arrays of an .npz file, or only the one of a given name."""
    path, key = path.expanduser(), ""
    arrays = {}
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            for key in [name for name in file.files if only in (None, name)]:
                arrays[key] = file[key]
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}: give npz:PATH of a file that exists.") from None
    except Exception as error:  # torn files fail in many ways
        where = f"array `{key}`: " if key else ""
        raise ValueError(
            f"{path} cannot be read as an .npz file of plain arrays ({where}{error}): "
            "write it anew with np.savez(path, image=..., label=...)."
        ) from error
    return arrays


def _splits_of(arrays: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Split -> field -> array, from any of the three naming conventions."""
    keras = {key: m for key in arrays if (m := _KERAS.fullmatch(key))}
    prefixed = {key: m for key in arrays if (m := _PREFIXED.fullmatch(key))}
    if "label" in arrays or not (keras or prefixed):
        return {"train": arrays}
    splits: dict[str, dict[str, Any]] = {}
    for key, m in {**prefixed, **keras}.items():
        splits.setdefault(m["split"], {})[_KERAS_FIELDS.get(m["field"], m["field"])] = arrays[key]
    return {split: fields for split, fields in splits.items() if fields}


def _from_splits(
    name: str,
    splits: Mapping[str, Mapping[str, Any]],
    split: str,
    num_classes: int | None,
    frame: pictures.Frame | None,
) -> Source:
    """Source of one of several splits, after a check of all its arrays."""
    sizes = {key: max((_length(value) for value in fields.values()), default=0) for key, fields in splits.items()}
    base, start, stop = checks.split_rows(name, split, sizes)
    fields = _checked_fields(f"{name}[{base}]", splits[base], frame)
    if num_classes is None:
        labels = [_labels(f"{name}[{key}]", np.asarray(f["label"])) for key, f in splits.items() if "label" in f]
        num_classes = max(int(values.max(initial=0)) for values in labels) + 1
    checks.check_labels(f"{name}[{base}]", fields["label"], fields["id"], num_classes)

    def read(rows: np.ndarray) -> Fields:
        return {field: take(values, start + np.asarray(rows)) for field, values in fields.items()}

    shape = fields["image"].shape[1:] if "image" in fields else None
    return Source(f"{name}[{split}]", stop - start, num_classes, shape, read, start)


def _length(value: Any) -> int:
    """Number of rows of an array or of a list, which may be ragged."""
    shape = getattr(value, "shape", None)
    return len(value) if shape is None else (shape[0] if shape else 0)


def _checked_fields(name: str, given: Mapping[str, Any], frame: pictures.Frame | None) -> Fields:
    """Fields of one split in their final dtypes, with `id`, after all checks but that of the labels' range."""
    if taken := [field for field in given if field in RESERVED]:
        raise ValueError(f"{name} holds an array `{taken[0]}`, a name that jaxkd gives itself: rename the array.")
    fields: Fields = {}
    for key, value in given.items():
        fields |= _pictures(name, value, frame) if key == "image" else {key: _numbers_or_texts(name, key, value)}
    texts = [key for key, value in fields.items() if checks.is_text(value)]
    if "label" not in fields or not (texts or any(key in fields for key in _INPUTS)):
        missing = "label" if "label" not in fields else "image"
        raise ValueError(
            f"{name} has no array `{missing}`: it holds {checks.listing(list(given))}, but `label` and one of `image`, "
            "`tokens` or a text are needed: add or rename an array."
        )
    lengths = {key: _length(value) for key, value in fields.items()}
    if len(set(lengths.values())) > 1:
        pairs = checks.listing([f"`{key}` {length}" for key, length in lengths.items()])
        raise ValueError(f"the arrays of {name} have different numbers of rows ({pairs}): give one row per example.")
    ids = np.arange(lengths["label"], dtype=np.int32)
    fields["label"] = _labels(name, fields["label"])
    for field, values in fields.items():
        checks.check_finite(name, field, values, ids)
    if "image" in fields:  # texts that accompany images, such as file names, cannot go onto a device
        fields = {key: value for key, value in fields.items() if key not in texts}
    return fields | {"id": ids}


def _numbers_or_texts(name: str, field: str, given: Any) -> np.ndarray:
    """Array of any field but the images, checked to hold numbers or texts."""
    try:
        values = np.asarray(given)
    except ValueError:
        values = np.array(None)
    if values.dtype == object and not all(isinstance(value, (str, bytes)) for value in values.ravel()):
        raise ValueError(
            f"`{field}` of {name} is ragged or holds objects: give rows of numbers that all have the same shape, or "
            "texts."
        )
    return values


def _labels(name: str, labels: np.ndarray) -> np.ndarray:
    """Labels, integers [N] or [N, 1], as int32 [N]."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise ValueError(
            f"`label` of {name} has shape {labels.shape} and dtype {labels.dtype}: give class numbers, integers of "
            f"shape ({len(labels)},)."
        )
    return flat.astype(np.int32)


def _pictures(name: str, given: Any, frame: pictures.Frame | None) -> Fields:
    """Fields of images that are all of one shape once they are resized; grey images get a channel axis."""
    ragged = isinstance(given, (list, tuple)) or (isinstance(given, np.ndarray) and given.dtype.hasobject)
    if not ragged and frame is None:
        return {"image": _pixels(name, np.asarray(given))}
    rows = [np.asarray(image) for image in given]
    rows = [image[..., None] if image.ndim == 2 else image for image in rows]
    decoded = [_resized(name, row, image, frame) for row, image in enumerate(rows)]
    for row, picture in enumerate(decoded):
        checks.check_image(name, row, picture.pixels.shape, decoded[0].pixels.shape)
    fields = pictures.stack(decoded, frame) if decoded else {"image": np.zeros((0, 1), np.uint8)}
    return fields | {"image": _pixels(name, fields["image"])}


def _pixels(name: str, pixels: np.ndarray) -> np.ndarray:
    """Images as uint8 or float32 [N, height, width, channels]."""
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating) or pixels.ndim < 2:
        raise ValueError(
            f"`image` of {name} has shape {pixels.shape} and dtype {pixels.dtype}: give uint8 in 0..255 or floating "
            "point numbers, of shape [N, height, width, channels]."
        )
    return pixels.astype(np.float32)


def _resized(name: str, row: int, image: np.ndarray, frame: pictures.Frame | None) -> pictures.Picture:
    """One image, resized if there is a frame."""
    if frame is None:
        return pictures.Picture(image, 1.0)
    if image.ndim != 3:
        raise ValueError(
            f"the image in row {row} of {name} has shape {image.shape}, which cannot be resized: give images of shape "
            "[height, width, channels] or [height, width]."
        )
    return pictures.resize(image, frame)
