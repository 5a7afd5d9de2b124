"""Sources from folders of pictures, laid out as FOLDER/split/class/picture, as ImageNet usually is."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxkd.data import checks
from jaxkd.data.labels import Task
from jaxkd.data.readers import pictures
from jaxkd.data.readers.layouts import Split, counted, find_splits
from jaxkd.data.source import Source
from jaxkd.data.splits import draw, first_few, say, say_missing, say_new


def from_pictures(folder: Path, split: str, num_classes: int | None, frame: pictures.Frame | None) -> Source:
    """Opens a folder of pictures as a source of RGB images.

    Classes are numbered in the order of their folders' names over all splits, and the rows of a whole split in the
    order of their paths. A slice is drawn from all classes, in an order that depends on the paths below `folder` alone,
    so it is the same on all machines.

    Args:
      folder: The folder, of one of the layouts that `jaxkd.data.readers.layouts.find_splits` knows.
      split: The split or a slice of it.
      num_classes: Number of classes, or None for the number of different class folders.
      frame: Size to which pictures are resized; required, though None is accepted for a readable error.

    Returns:
      The source, whose `id` is the row number in the whole split. Without classes it is unlabelled.

    Raises:
      ValueError: In one sentence: no such folder or split, no picture, no frame. Reading a broken picture raises one
        too.
    """
    splits = find_splits(folder)
    if frame is None:
        raise ValueError(
            f"the pictures in {folder} may vary in shape: give image_size=(height, width) (--image-size) to have them "
            "resized."
        )
    classes = sorted(set().union(*(found.classes for found in splits.values())))
    if num_classes is not None and num_classes < len(classes):
        raise ValueError(
            f"{folder} has {len(classes)} folders of classes but num_classes is {num_classes}: give at least "
            f"{len(classes)}."
        )
    sizes = {name: len(found.pictures) for name, found in splits.items()}
    base, start, stop = checks.split_rows(str(folder), split, sizes)
    files, labels = _rows(splits[base], classes)
    task: Task = "unlabelled" if labels is None else "classification"
    name, rows = f"{folder}[{split}]", np.arange(start, stop)
    _say_found(f"{folder}[{base}]", splits, base, classes)
    if labels is not None and base != "train" and "train" in splits:
        training = _rows(splits["train"], classes)[1]
        say_new(f"{folder}[{base}]", labels, np.zeros(0, int) if training is None else training, classes)
    if len(rows) < len(files):
        rows = draw(_shuffled(files), labels, start, stop)
        if labels is not None:
            say_missing(name, task, labels, rows, drawn=True, class_names=classes)

    def read(own: np.ndarray) -> dict[str, np.ndarray]:
        ids = rows[checks.check_rows(name, own, len(rows))]
        advice = "copy it anew, or delete it and start another run"
        paths = [folder / files[i] for i in ids]
        decoded = [
            pictures.decode_or_explain(path, 3, frame, name=str(path), advice=advice, upright=True) for path in paths
        ]
        fields = {**pictures.stack(decoded, frame), "id": ids.astype(np.int32)}
        return fields if labels is None else fields | {"label": labels[ids]}

    shape = (frame.height, frame.width, 3)
    names = tuple(classes) if num_classes in (None, len(classes)) else ()
    gaps = None if rows[-1] - rows[0] == len(rows) - 1 else rows
    return Source(
        name,
        len(rows),
        num_classes or len(classes),
        shape,
        read,
        int(rows[0]),
        task=task,
        drawn=gaps,
        class_names=names,
    )


def holds_pictures(folder: Path) -> bool:
    """Tests if a folder is one that `from_pictures` opens.

    Args:
      folder: The folder.

    Returns:
      True if so.
    """
    try:
        return bool(find_splits(folder))
    except ValueError:
        return False


def _rows(split: Split, classes: list[str]) -> tuple[list[str], np.ndarray | None]:
    """Paths of a split's pictures in their order, and their class numbers, if they have any."""
    found = sorted(split.pictures, key=lambda picture: _plain(picture[0]).split("/"))
    files = [path for path, _ in found]
    if not split.classes:
        return files, None
    number = {name: i for i, name in enumerate(classes)}
    return files, np.array([number[name] for _, name in found if name is not None], np.int32)


def _shuffled(files: list[str]) -> np.ndarray:
    """Each picture's place in the order of the hashes of their paths below the data set's folder."""
    keys = [_plain(path).encode(errors="surrogateescape") for path in files]
    order = sorted(range(len(files)), key=lambda i: hashlib.sha256(keys[i]).digest())
    rank = np.empty(len(files), np.int64)
    rank[order] = np.arange(len(files))
    return rank


def _plain(path: str) -> str:
    """Path as all file systems have it: with slashes, and letters with accents as one character."""
    return unicodedata.normalize("NFC", path.replace(os.sep, "/"))


def _say_found(name: str, splits: Mapping[str, Split], base: str, classes: list[str]) -> None:
    """Says which files are left out, and which classes have no picture in a split."""
    split = splits[base]
    if split.left_out:
        say(f"{name} leaves out files that are no pictures: {counted(split.left_out)}.")
    have = {label for _, label in split.pictures}
    if split.classes and (empty := [label for label in classes if label not in have]):
        say(f"{name} has no picture of {len(empty)} of the {len(classes)} classes: {first_few(empty)}.")
