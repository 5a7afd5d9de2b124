"""Pairs of pictures and masks: PNG files whose palette numbers or grey values are the classes of pixels."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxkd.data.checks import listing, root_cause
from jaxkd.data.readers.layouts import SUFFIXES, is_picture
from jaxkd.data.splits import first_few, say

_MODES = ("1", "L", "P", "I;16", "I")  # one channel of whole numbers


class Pair(NamedTuple):
    """A picture and its mask.

    Attributes:
      name: Path of both relative to their folders, without the suffix.
      picture: The picture's file.
      mask: The mask's file.
    """

    name: str
    picture: Path
    mask: Path


def find_pairs(pictures: Path, masks: Path) -> list[Pair]:
    """Finds the mask of each picture: the file of the same name but for the suffix, in the same folder below.

    Args:
      pictures: Folder of the pictures, at any depth.
      masks: Folder of the masks, at the same depth.

    Returns:
      The pairs, sorted by name; masks without a picture are left out, and said.

    Raises:
      ValueError: If a folder is missing or empty, a picture has no mask, or two files have one name.
    """
    of_pictures, of_masks = (_by_name(folder, what) for folder, what in ((pictures, "pictures"), (masks, "masks")))
    missing = sorted(set(of_pictures) - set(of_masks))
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(of_pictures)} pictures in {pictures} have no mask in {masks} "
            f"({first_few(missing)}): give each a PNG of the same name, or move them elsewhere."
        )
    if more := sorted(set(of_masks) - set(of_pictures)):
        say(f"{len(more)} mask(s) in {masks} have no picture in {pictures} ({first_few(more)}): they are left out.")
    return [Pair(name, of_pictures[name], of_masks[name]) for name in sorted(of_pictures)]


def _by_name(folder: Path, what: str) -> dict[str, Path]:
    """Name without suffix -> file, of all pictures below a folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the one that holds the {what}.")
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and is_picture(p.name)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise ValueError(f"{found[name]} and {path} differ in their suffix alone: keep one of them.")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds none of the {what}: give a folder with files of {', '.join(SUFFIXES[:6])}.")
    return found


def read_mask(path: Path) -> np.ndarray:
    """Values of a mask as they are in the file: numbers of a palette, or grey values.

    Args:
      path: A file of one channel; PNG, or another format that loses nothing.

    Returns:
      Integers [height, width].

    Raises:
      ValueError: If it cannot be read, is in a lossy format, or has several channels.
    """
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            kind, mode = image.format, image.mode
            values = np.asarray(image) if mode in _MODES else None
    except Exception as error:  # Pillow raises errors of any kind
        raise ValueError(f"the mask {path} cannot be read ({root_cause(error)}): save it as PNG anew.") from error
    if kind in ("JPEG", "MPO", "GIF") or values is None:
        what = f"is of {kind}, which changes values" if values is not None else f"has colours (mode {mode})"
        raise ValueError(f"the mask {path} {what}: save it as a PNG of one channel whose values are the classes.")
    return values.astype(np.int32)


def to_classes(path: Path, values: np.ndarray, classes: Mapping[int, int]) -> np.ndarray:
    """Classes of the values of a mask.

    Args:
      path: Its file, for the message.
      values: Integers [height, width].
      classes: Value -> class.

    Returns:
      int32 [height, width].

    Raises:
      ValueError: If a value is not among them.
    """
    found, places = np.unique(values, return_inverse=True)
    if unknown := [int(value) for value in found if int(value) not in classes]:
        count = int(np.isin(values, unknown).sum())
        raise ValueError(
            f"the mask {path} has the value {unknown[0]} ({count:,} pixels of unknown values), but known are "
            f"{_some(classes)}: list all values that stand for classes in --mask-values, or correct the mask."
        )
    return np.asarray([classes[int(value)] for value in found], np.int32)[places.reshape(values.shape)]


def _some(values: Mapping[int, int]) -> str:
    """Values for a sentence."""
    names = [str(value) for value in values]
    return listing(names) if len(names) <= 8 else f"{', '.join(names[:4])}, ..., {names[-1]}"
