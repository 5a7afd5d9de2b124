"""Sources from folders of pictures, laid out as FOLDER/split/class/picture, as ImageNet usually is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxkd.data import checks
from jaxkd.data.readers import pictures
from jaxkd.data.source import Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Suffixes, in lower case, of the files that count as pictures."""


def from_pictures(folder: Path, split: str, num_classes: int | None, frame: pictures.Frame | None) -> Source:
    """Opens a folder FOLDER/split/class/picture as a source of RGB images.

    Classes are numbered in the order of their folders' names over all splits, and rows in the order of their paths.

    Args:
      folder: The folder.
      split: The split or a slice of it.
      num_classes: Number of classes, or None for the number of different class folders.
      frame: Size to which pictures are resized; required, though None is accepted for a readable error.

    Returns:
      The source, whose `id` is the row number in the whole split.

    Raises:
      ValueError: In one sentence: no such folder or split, no picture, no frame. Reading a broken picture raises one
        too.
    """
    splits = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not splits:
        raise ValueError(f"{folder} holds no folder of a split: give one like {folder}/train/CLASS/PICTURE.jpg.")
    if frame is None:
        raise ValueError(
            f"the pictures in {folder} may vary in shape: give image_size=(height, width) (--image-size) to have them "
            "resized."
        )
    classes = sorted({path.name for name in splits for path in (folder / name).iterdir() if path.is_dir()})
    number = {name: i for i, name in enumerate(classes)}
    if num_classes is not None and num_classes < len(classes):
        raise ValueError(
            f"{folder} has {len(classes)} folders of classes but num_classes is {num_classes}: give at least "
            f"{len(classes)}."
        )
    name = split.split("[")[0].strip()
    found = sorted(p for p in (folder / name).glob("*/*") if p.suffix.lower() in SUFFIXES) if name in splits else []
    sizes = {other: len(found) if other == name else 1 for other in splits}
    _, start, stop = checks.split_rows(str(folder), split, sizes)
    labels = np.array([number[path.parent.name] for path in found], np.int32)

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        ids = start + np.asarray(rows)
        advice = "copy it anew, or delete it and start another run"
        decoded = [pictures.decode_or_explain(found[i], 3, frame, name=str(found[i]), advice=advice) for i in ids]
        return {**pictures.stack(decoded, frame), "label": labels[ids], "id": ids.astype(np.int32)}

    shape = (frame.height, frame.width, 3)
    return Source(f"{folder}[{split}]", stop - start, num_classes or len(classes), shape, read, start)
