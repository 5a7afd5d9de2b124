"""Sources of pictures with a class for each pixel: from pairs of files, from boxes, or from a teacher's masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxkd.data.checks import check_rows, listing
from jaxkd.data.readers import pictures as decoding
from jaxkd.data.readers.masks import Pair, find_pairs, read_mask, to_classes
from jaxkd.data.source import Source
from jaxkd.data.splits import SPLITS, draw, say

IGNORED = 255
"""Label of pixels that count nowhere."""
_SHARES = (0.7, 0.85)  # of pictures that no folder splits: the rest of train, then val, then test


def open_masks(
    pictures: str | Path,
    masks: str | Path,
    *,
    image_size: tuple[int, int],
    values: Sequence[int] = (),
    names: Sequence[str] = (),
    ignore: int | None = IGNORED,
    resize: bool = False,
) -> dict[str, Source]:
    """Opens pictures and their masks as sources of the splits train, val and test.

    The splits are the folders `train`, `val` and `test` of both places, if there are such; else 70 % of the pictures
    are drawn for training and 15 % each for val and test.

    Args:
      pictures: Folder of the pictures, at any depth.
      masks: Folder of the masks, PNG files of the same names.
      image_size: (height, width) that pictures are resized to, bilinearly, and masks by nearest neighbour.
      values: Values of the masks that stand for the classes 0, 1, ...; if empty, each value is its own class.
      names: Names of the classes, if they have any.
      ignore: Value of the masks of pixels that count nowhere, unless `values` has it; none if None.
      resize: Whether a mask of another size than its picture is stretched to it; an error if not.

    Returns:
      Split -> source with `image` uint8 [B, height, width, 3], and `label` int32 [B, height, width], in 0..K-1, or 255
      where a pixel counts nowhere.

    Raises:
      ValueError: In one sentence, if something is missing or does not fit.
    """
    pairs, stretched = find_pairs(Path(pictures).expanduser(), Path(masks).expanduser()), 0
    read = {pair.name: read_mask(pair.mask) for pair in pairs}
    classes = _classes(Path(masks), read, values, ignore)
    K = max((k for k in classes.values() if k != IGNORED), default=0) + 1
    if names and len(names) != K:
        raise ValueError(f"{len(names)} classes are named, {listing(list(names))}, but the masks have {K}: name each.")
    frame, labels, rows = decoding.Frame(*image_size), {}, {}
    for pair in pairs:
        picture, shape = _picture(pair, frame)
        mask = to_classes(pair.mask, read[pair.name], classes)
        if mask.shape != shape:
            if not resize:
                raise ValueError(
                    f"the mask {pair.mask} is {mask.shape[0]} x {mask.shape[1]} pixels but {pair.picture.name} is "
                    f"{shape[0]} x {shape[1]}: give masks of the pictures' size, or stretch them with --resize-masks."
                )
            stretched += 1
        rows[pair.name], labels[pair.name] = picture, _nearest(mask, image_size)
    if stretched:
        say(
            f"{stretched} of {len(pairs)} masks in {masks} are of another size than their pictures: they are stretched."
        )
    named = tuple(names) or tuple(str(k) for k in range(K))
    return {
        split: from_masks(
            f"{pictures}[{split}]",
            np.stack([rows[p.name] for p in own]),
            np.stack([labels[p.name] for p in own]),
            named,
        )
        for split, own in _splits(str(pictures), pairs).items()
    }


def from_masks(name: str, image: np.ndarray, label: np.ndarray, class_names: Sequence[str]) -> Source:
    """Source of pictures and masks in memory.

    Args:
      name: Its name, for messages.
      image: [N, H, W, C] uint8 or floating.
      label: [N, H, W] integers in 0..K-1, or 255 where a pixel counts nowhere.
      class_names: Name of each class, K.

    Returns:
      The source, with `label` in int32.

    Raises:
      ValueError: If the shapes differ, or a label is none of the classes.
    """
    if image.ndim != 4 or label.shape != image.shape[:3]:
        raise ValueError(
            f"pictures of {name} have shape {image.shape} and masks {label.shape}: give [N, H, W, C] and [N, H, W]."
        )
    known = (label >= 0) & (label < len(class_names)) | (label == IGNORED)
    if not known.all():
        row, *_ = np.argwhere(~known)[0]
        raise ValueError(
            f"row {row} of {name} has the label {label[~known][0]}, but there are {len(class_names)} classes: give "
            f"numbers in 0..{len(class_names) - 1}, or {IGNORED} for what counts nowhere."
        )
    labels = label.astype(np.int32)

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        own = check_rows(name, numbers, len(image))
        return {"image": image[own], "label": labels[own], "id": own.astype(np.int32)}

    return Source(name, len(image), len(class_names), image.shape[1:], read, class_names=tuple(class_names))


def masks_of_boxes(source: Source, background: str = "background") -> Source:
    """Weak masks of boxes: the ellipse within each box has its class, all else is background.

    They are no true masks: an ellipse is a guess at the outline of a round object. Where two overlap, the smaller one
    lies on top. The ellipse of a crowd counts nowhere.

    Args:
      source: Pictures with `boxes` [M, 4], (x1, y1, x2, y2) in pixels, `label` [M], -1 where there is no box, and
        maybe `crowd` [M], as `open_boxes` gives them.
      background: Name of class 0.

    Returns:
      Source in memory with K + 1 classes: `image`, and `label` [H, W] as `from_masks` has it.

    Raises:
      ValueError: If the source has no boxes.
    """
    fields = source.read(np.arange(source.size))
    if "boxes" not in fields or source.image_shape is None:
        raise ValueError(
            f"{source.name} has no boxes of pictures, only {listing(list(fields))}: open it by open_boxes."
        )
    crowd = fields.get("crowd", np.zeros(fields["label"].shape, bool))
    shape = source.image_shape[:2]
    label = [ellipses(*row, shape) for row in zip(fields["boxes"], fields["label"], crowd, strict=True)]
    names = source.class_names or tuple(str(k) for k in range(source.num_classes))
    made = from_masks(source.name, fields["image"], np.stack(label), (background, *names))
    return dataclasses.replace(made, start=source.start, drawn=source.drawn)


def ellipses(boxes: np.ndarray, classes: np.ndarray, crowd: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Mask of the ellipses that touch the edges of boxes; pixels belong to one by their centres.

    Args:
      boxes: [M, 4], (x1, y1, x2, y2) in pixels.
      classes: [M] integers from 0; -1 where there is no box.
      crowd: [M] booleans.
      shape: (H, W).

    Returns:
      int32 [H, W]: 0 outside of all, else the class + 1, or 255 in a crowd.
    """
    y, x = (np.arange(size, dtype=np.float64) + 0.5 for size in shape)
    mask = np.zeros(shape, np.int32)
    size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in sorted(np.flatnonzero((classes >= 0) & (size > 0)), key=lambda i: -size[i]):
        x1, y1, x2, y2 = boxes[i].astype(np.float64)
        across, down = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
        mask[across[None] ** 2 + down[:, None] ** 2 <= 1] = IGNORED if crowd[i] else classes[i] + 1
    return mask


def _classes(folder: Path, read: dict[str, np.ndarray], values: Sequence[int], ignore: int | None) -> dict[int, int]:
    """Value of the masks -> class, or 255 for what counts nowhere."""
    if len(set(values)) < len(values):
        raise ValueError(f"--mask-values are {listing([str(v) for v in values])}, one of them twice: give each once.")
    classes = {value: k for k, value in enumerate(values)}
    if ignore is not None:
        classes.setdefault(ignore, IGNORED)
    found = sorted({int(value) for mask in read.values() for value in np.unique(mask)})
    own = [value for value in found if value != ignore]
    if not values:
        if len(own) < 2:
            more = (
                " If the value to ignore is a class, list all values: --mask-values 0 255." if ignore in found else ""
            )
            raise ValueError(
                f"the masks in {folder} have fewer than two classes ({listing([str(v) for v in found])} are all their "
                f"values), which leaves nothing to learn: give masks of two classes at least.{more}"
            )
        if own[0] < 0 or own[-1] >= IGNORED or 2 * len(own) < own[-1] + 1:
            first = next(name for name, mask in read.items() if (mask == own[-1]).any())
            some = " ".join(map(str, own[:8]))
            raise ValueError(
                f"the masks in {folder} have values up to {own[-1]} but only {len(own)} different ones: correct the "
                f"mask of {first}, which has {own[-1]}, or list those that stand for classes, such as "
                f"--mask-values {some}."
            )
        classes = {value: value for value in range(own[-1] + 1)} | classes
    return classes


def _picture(pair: Pair, frame: decoding.Frame) -> tuple[np.ndarray, tuple[int, int]]:
    """Resized pixels of a picture, and its own height and width."""
    advice = "copy it anew, or remove it and its mask"
    whole = decoding.decode_or_explain(pair.picture, 3, None, name=str(pair.picture), advice=advice).pixels
    return decoding.resize(whole, frame).pixels, (whole.shape[0], whole.shape[1])


def _nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mask of another size, each pixel that of the nearest centre."""
    rows, columns = (((2 * np.arange(n) + 1) * m // (2 * n)) for n, m in zip(size, mask.shape, strict=True))
    return mask[rows][:, columns]


def _splits(name: str, pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Split -> its pairs: by folders of their names, or drawn."""
    found = {split: [pair for pair in pairs if pair.name.split("/")[0] == split] for split in SPLITS}
    if all(found.values()):
        if others := len(pairs) - sum(map(len, found.values())):
            say(f"{others} picture(s) of {name} are in none of the folders {listing(SPLITS)}: they are left out.")
        return found
    if len(pairs) < 3:
        raise ValueError(f"{name} has {len(pairs)} picture(s), of which no three splits can be made: give more.")
    order = np.random.RandomState(0).permutation(len(pairs))  # its stream is frozen for good
    ends = [0, *(max(i + 1, round(share * len(pairs))) for i, share in enumerate(_SHARES)), len(pairs)]
    say(
        f"{name} has no folders {listing(SPLITS)}: 70 % of its pictures are drawn for train, and 15 % each for val and "
        "test."
    )
    bounds = zip(SPLITS, ends[:-1], ends[1:], strict=True)
    return {split: [pairs[i] for i in draw(order, None, first, last)] for split, first, last in bounds}
