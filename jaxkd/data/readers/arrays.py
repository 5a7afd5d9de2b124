"""Sources from arrays, of which all values are checked at opening."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd.data import checks, labels
from jaxkd.data.labels import Task
from jaxkd.data.readers import pictures
from jaxkd.data.readers.names import INPUTS, splits_of
from jaxkd.data.source import Source
from jaxkd.data.splits import draw, is_percentage, say_empty, say_missing, say_new, say_unknown
from jaxkd.kernels.rows import take
from jaxkd.types import RESERVED

Fields = dict[str, np.ndarray]
"""Name -> array with one leading axis of rows."""


def from_arrays(
    name: str,
    arrays: Mapping[str, Any],
    split: str,
    num_classes: int | None,
    frame: pictures.Frame | None,
    ignore: float | None = None,
) -> Source:
    """Makes a source of a mapping of arrays.

    Args:
      name: Name of the source, for messages.
      arrays: Name -> array [N, ...], of one split or of several (see `jaxkd.data.open_source`).
      split: The split or a slice of it.
      num_classes: Number of classes, or None to take it from the labels.
      frame: Size to which images are resized, or None.
      ignore: Label that says that there is none, or None.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence, if the arrays do not fit.
    """
    return from_splits(name, splits_of(name, arrays), split, num_classes, frame, ignore)


def from_splits(
    name: str,
    splits: Mapping[str, Mapping[str, Any]],
    split: str,
    num_classes: int | None,
    frame: pictures.Frame | None,
    ignore: float | None = None,
) -> Source:
    """Makes a source of one of several splits, after a check of all its arrays.

    Args:
      name: Name of the data set, for messages.
      splits: Split -> field -> array [N, ...].
      split: The split or a slice of it.
      num_classes: Number of classes, or None to take it from the labels of all splits.
      frame: Size to which images are resized, or None.
      ignore: Label that says that there is none, or None.

    Returns:
      The source. Percentages are drawn from all classes; row numbers count in the order of the arrays.

    Raises:
      ValueError: In one sentence, if the arrays do not fit.
    """
    sizes = {key: max((_length(value) for value in fields.values()), default=0) for key, fields in splits.items()}
    base, start, stop = checks.split_rows(name, split, sizes)
    whole, size = f"{name}[{base}]", sizes[base]
    fields = _checked_fields(whole, splits[base], frame)
    task: Task = "unlabelled"
    known = None
    others = {
        key: _numbers_or_texts(f"{name}[{key}]", "label", f["label"]) for key, f in splits.items() if "label" in f
    }
    others.pop(base, None)
    if "label" in fields:
        rest = list(others.values())
        found = labels.read_labels(whole, fields["label"], fields["id"], num_classes, rest, ignore=ignore)
        fields["label"], task, classes, known = found
        say_unknown(whole, found, ignore)
        if task == "classification":
            known_of = {key: values[values != ignore] for key, values in others.items()}
            if num_classes is None:
                say_empty(name, [found.values[known], *known_of.values()], classes)
            say_new(whole, found.values[known], np.asarray(known_of.get("train", [])))
        num_classes = classes
    elif others and num_classes is None:  # a split to predict on, of a data set that has labels
        key, given = next(iter(others.items()))
        other = labels.read_labels(f"{name}[{key}]", given, np.arange(len(given)), ignore=ignore)
        num_classes = other.num_classes
    rows, drawn = np.arange(start, stop), is_percentage(name, split)
    if drawn and len(rows) < size:
        shuffled = np.random.RandomState(0).permutation(size)  # its stream is frozen for good
        grouped = fields["label"] if task in ("classification", "multi_label") else None
        rows = draw(shuffled, grouped, start, stop)
    name = f"{name}[{split}]"
    if "label" in fields:
        say_missing(name, task, fields["label"], rows, drawn=drawn, known=known)

    def read(own: np.ndarray) -> Fields:
        chosen = rows[checks.check_rows(name, own, len(rows))]
        return {field: take(values, chosen) for field, values in fields.items()}

    shape = fields["image"].shape[1:] if "image" in fields else None
    gaps = None if rows[-1] - rows[0] == len(rows) - 1 else rows
    return Source(name, len(rows), num_classes or 0, shape, read, int(rows[0]), task=task, ignore=ignore, drawn=gaps)


def _length(value: Any) -> int:
    """Number of rows of an array or of a list, which may be ragged."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return len(value) if hasattr(value, "__len__") else 0
    return int(shape[0]) if shape else 0


def _checked_fields(name: str, given: Mapping[str, Any], frame: pictures.Frame | None) -> Fields:
    """Fields of one split in their final dtypes, with `id`, after all checks but those of the labels."""
    if taken := [field for field in given if field in RESERVED]:
        raise ValueError(f"{name} holds an array `{taken[0]}`, a name that jaxkd gives itself: rename the array.")
    fields: Fields = {}
    for key, value in given.items():
        fields |= _pictures(name, value, frame) if key == "image" else {key: _numbers_or_texts(name, key, value)}
    texts = [key for key, value in fields.items() if checks.is_text(value) and key != "label"]
    if not (texts or any(key in fields for key in INPUTS)):
        raise ValueError(
            f"{name} has no array `image`: it holds {checks.listing(list(given))}, but one of `image`, `tokens` or a "
            "text is needed, with `label` unless it is unlabelled: add or rename an array."
        )
    lengths = {key: _length(value) for key, value in fields.items()}
    if len(set(lengths.values())) > 1:
        pairs = checks.listing([f"`{key}` {length}" for key, length in lengths.items()])
        raise ValueError(f"the arrays of {name} have different numbers of rows ({pairs}): give one row per example.")
    ids = np.arange(next(iter(lengths.values())), dtype=np.int32)
    for field, values in fields.items():
        if field != "label":  # of which some may be missing: `read_labels` checks it
            checks.check_finite(name, field, values, ids)
        checks.check_int32(name, field, values, ids)
    _check_tokens(name, fields.get("tokens"), ids)
    if "image" in fields:  # texts that accompany images, such as file names, cannot go onto a device
        fields = {key: value for key, value in fields.items() if key not in texts}
    return fields | {"id": ids}


def _check_tokens(name: str, tokens: np.ndarray | None, ids: np.ndarray) -> None:
    """Checks that tokens can be rows of a table."""
    if tokens is None:
        return
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"`tokens` of {name} has shape {tokens.shape} and dtype {tokens.dtype}: give integers of shape [N, length]."
        )
    if (wrong := np.flatnonzero((tokens < 0).any(axis=1))).size:
        raise ValueError(
            f"`tokens` in row {ids[wrong[0]]} of {name} holds {tokens[wrong[0]].min()}, but tokens are 0 or more: give "
            "padding a number of its own, and mark it in a further array such as `token_mask`."
        )


def _numbers_or_texts(name: str, field: str, given: Any) -> np.ndarray:
    """Array of any field but the images, checked to hold numbers or texts in rows."""
    values = _as_array(given)
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ValueError(
            f"`{field}` of {name} is a masked array with masked values: give plain numbers in their place."
        )
    if values.dtype == object and not (
        values.ndim and all(isinstance(value, (str, bytes)) for value in values.ravel())
    ):
        raise ValueError(
            f"`{field}` of {name} is ragged or holds objects: give rows of numbers that all have the same shape, or "
            "texts."
        )
    if values.ndim == 0 or values.dtype.kind not in "biufOSU":
        raise ValueError(
            f"`{field}` of {name} has shape {values.shape} and dtype {values.dtype}: give one row per example, of "
            "integers, floating point numbers (no bfloat16 from a file, which does not keep it) or texts, or leave it "
            "out."
        )
    return values


def _as_array(given: Any) -> np.ndarray:
    """Array of numbers or texts in the byte order of devices; of no rows and of objects if it cannot be one."""
    try:
        values = np.asarray(given)
        if values.dtype == object and not any(isinstance(value, (str, bytes)) for value in values.ravel()):
            values = np.asarray(values.tolist())  # numbers, such as a table's column of Python's integers
    except Exception:  # of ragged lists, and of tensors of other libraries
        return np.array(None)
    if values.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):  # no kind of NumPy's
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _pictures(name: str, given: Any, frame: pictures.Frame | None) -> Fields:
    """Fields of images that are all of one shape once they are resized; grey images get a channel axis."""
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ValueError(f"`image` of {name} is a masked array with masked values: give plain pixels in their place.")
    ragged = isinstance(given, (list, tuple)) or (isinstance(given, np.ndarray) and given.dtype.hasobject)
    if not ragged and frame is None:
        return {"image": _pixels(name, _as_array(given))}
    rows = [_as_array(image) for image in given]
    rows = [image[..., None] if image.ndim == 2 else image for image in rows]
    decoded = [_resized(name, row, image, frame) for row, image in enumerate(rows)]
    for row, picture in enumerate(decoded):
        checks.check_image(name, row, picture.pixels.shape, decoded[0].pixels.shape)
    fields = pictures.stack(decoded, frame) if decoded else {"image": np.zeros((0, 1), np.uint8)}
    return fields | {"image": _pixels(name, fields["image"])}


def _pixels(name: str, pixels: np.ndarray) -> np.ndarray:
    """Images as uint8 or float32 [N, height, width, channels]."""
    if pixels.ndim == 4:
        _check_channels_last(name, pixels.shape[1:], "0, 2, 3, 1")
    if (pixels.dtype != np.uint8 and pixels.dtype.kind != "f") or not 2 <= pixels.ndim <= 4 or 0 in pixels.shape[1:]:
        raise ValueError(
            f"`image` of {name} has shape {pixels.shape} and dtype {pixels.dtype}: give uint8 in 0..255 or floating "
            "point numbers, of shape [N, height, width, channels]."
        )
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.dtype == np.uint8:
        return pixels
    with np.errstate(over="ignore"):  # what exceeds float32 is found by the check of finite values
        return pixels.astype(np.float32)


def _check_channels_last(name: str, shape: tuple[int, ...], axes: str) -> None:
    """Refuses images of a shape [C, H, W] that cannot be meant as [H, W, C]."""
    channels, height, width = shape
    if channels in (1, 3, 4) and min(height, width) > 4 and (height == width or min(height, width) >= 16):
        raise ValueError(
            f"an image of {name} has shape {shape}, channels first, but [height, width, channels] is needed: give "
            f"image.transpose({axes})."
        )


def _resized(name: str, row: int, image: np.ndarray, frame: pictures.Frame | None) -> pictures.Picture:
    """One image, resized if there is a frame."""
    if frame is None:
        return pictures.Picture(image, 1.0)
    if image.ndim != 3:
        raise ValueError(
            f"the image in row {row} of {name} has shape {image.shape}, which cannot be resized: give images of shape "
            "[height, width, channels] or [height, width]."
        )
    _check_channels_last(name, image.shape, "1, 2, 0")
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise ValueError(
            f"the image in row {row} of {name} has dtype {image.dtype}: give uint8 in 0..255 or floating point numbers."
        )
    return pictures.resize(image, frame)
