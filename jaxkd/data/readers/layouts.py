"""Layouts of folders of pictures: which file is a picture of which split and class, and what is left out."""

from __future__ import annotations

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from jaxkd.data.checks import listing, root_cause
from jaxkd.data.splits import say

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"),
    *(".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Suffixes, in lower case, of the files that count as pictures."""

_SPLITS = (
    *("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"),
    *("unlabeled", "unlabelled", "extra"),
)
_JUNK = ("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "lost+found", "@eadir", "__pycache__")
_INSIDE = ("images", "image", "imgs", "img", "pictures")  # folders around pictures that are no class
_TARGETS = ("masks", "mask", "labels", "annotations", "targets", "gt")
_ANNOTATIONS = "val_annotations.txt"  # Tiny ImageNet: the classes of the pictures in val/images


@dataclasses.dataclass
class Split:
    """Pictures of one split.

    Attributes:
      pictures: (path relative to the data set's folder, class or None where there are no classes) of each picture.
      classes: Names of the folders of classes, also of those without a picture.
      left_out: Suffix, or a word for it -> number of files that are left out.
    """

    pictures: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)
    classes: set[str] = dataclasses.field(default_factory=set)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def find_splits(root: Path) -> dict[str, Split]:
    """Finds the splits, classes and pictures in a folder.

    The layouts are ROOT/split/class/picture, where further folders may lie between class and picture;
    ROOT/class/picture, which is one split, "train"; ROOT/split/picture and ROOT/picture, which have no classes; and
    that of Tiny ImageNet, in which val/val_annotations.txt names the classes of val/images.

    Args:
      root: The folder.

    Returns:
      Split -> its pictures, in no particular order.

    Raises:
      ValueError: If the folder is missing, cannot be read or holds no picture, or if its data set lies one folder
        deeper.
    """
    if not root.is_dir():
        what = "is a file, not a folder of pictures" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}: give folder:PATH of one like PATH/train/CLASS/PICTURE.jpg.")
    inside, stray = _listed(root)
    named = [name for name in inside if name.lower() in _SPLITS]
    if len(inside) == 1 and not named and any(n.lower() in _SPLITS for n in _listed(root / inside[0])[0]):
        raise ValueError(f"{root} holds one folder, whose folders are splits: give folder:{root / inside[0]}.")
    with_pictures = [name for name in inside if any(map(is_picture, _listed(root / name)[1]))]
    # Folders of pictures are classes, also one named "train" beside others, unless it holds folders of classes itself.
    classes = set(with_pictures) - set(named) and set(named) <= set(with_pictures)
    classes = classes or (not named and (bool(_wrapped(root)) or all(_wrapped(root / name) for name in inside)))
    if classes and named:
        say(f"the folders {listing(inside)} of {root} are read as classes, though {named[0]!r} is the name of a split.")
    if classes or not inside:
        splits = {"train": _read_split(root, "")}
    else:
        splits = {name: _read_split(root, name) for name in inside}
        splits = {name: found for name, found in splits.items() if found.pictures or name in named}
    if not any(found.pictures for found in splits.values()):
        skipped = sum((found.left_out for found in splits.values()), collections.Counter(map(_kind, stray)))
        other = f", only {counted(skipped)}" if skipped else ""
        raise ValueError(
            f"{root} holds no picture of a known kind{other}: give a folder like {root}/train/CLASS/PICTURE.jpg with "
            f"files of {listing(SUFFIXES)}."
        )
    return splits


def is_picture(name: str) -> bool:
    """Tests if a file is a picture, by the suffix of its name or path."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in SUFFIXES and not _is_junk(base)


def counted(files: collections.Counter[str]) -> str:
    """Numbers of files for a sentence.

    Args:
      files: Kind -> number.

    Returns:
      Such as "3 .txt and 1 .heic".
    """
    return listing([f"{count} {kind}" for kind, count in files.most_common(5)])


def _is_junk(name: str) -> bool:
    """Tests if a file or folder is hidden, or one that operating systems leave behind."""
    return name.startswith(".") or name.lower() in _JUNK


def _kind(name: str) -> str:
    """Kind of a file that is left out."""
    if _is_junk(name):
        return "hidden or of the system"
    return os.path.splitext(name)[1].lower() or "without a suffix"


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of a folder's folders, without hidden ones, and of all its files."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise ValueError(
            f"the folder {folder} cannot be read ({root_cause(error)}): correct its permissions, or the link that "
            "leads to it."
        ) from error
    return [n for n, is_dir in found if is_dir and not _is_junk(n)], [n for n, is_dir in found if not is_dir]


def _wrapped(folder: Path) -> str | None:
    """Name of the folder, such as `images`, that alone holds the pictures of another one."""
    inside, files = _listed(folder)
    found = [name for name in inside if name.lower() in _INSIDE]
    if len(found) != 1 or any(map(is_picture, files)):
        return None
    for name in inside:
        if name != found[0] and any(is_picture(path) for path in _walk(folder / name, name, frozenset())):
            if name.lower() in _TARGETS:
                raise ValueError(
                    f"{folder} has the folders {found[0]} and {name}, which are no classes: give a folder of pictures "
                    "with one folder a class, or arrays with npz:PATH."
                )
            return None
    return found[0]


def _read_split(root: Path, name: str) -> Split:
    """Pictures of the split in a folder of the root, or of the root itself."""
    folder, split = root / name, Split()
    inside, files = _listed(folder)
    if _ANNOTATIONS in files:
        return _read_annotated(root, name)
    if (wrapped := _wrapped(folder)) is not None:
        split = _read_split(root, os.path.join(name, wrapped))
        split.left_out.update(map(_kind, files))
        return split
    if not inside:
        split.pictures = [(os.path.join(name, file), None) for file in files if is_picture(file)]
        split.left_out.update(_kind(file) for file in files if not is_picture(file))
        return split
    beside = sum(map(is_picture, files))
    split.left_out.update({"beside the folders of classes": beside} if beside else {})
    split.left_out.update(_kind(file) for file in files if not is_picture(file))
    above = frozenset(os.path.realpath(path) for path in (root, folder))
    for directory in inside:
        number = unicodedata.normalize("NFC", directory)
        split.classes.add(number)
        for path in _walk(folder / directory, os.path.join(name, directory), above):
            if is_picture(path):
                split.pictures.append((path, number))
            else:
                split.left_out[_kind(os.path.basename(path))] += 1
    return split


def _walk(folder: Path, path: str, above: frozenset[str]) -> Iterator[str]:
    """Paths of all files below a folder, without hidden folders and folders that link to one above."""
    real = os.path.realpath(folder)
    if real in above:
        return
    inside, files = _listed(folder)
    yield from (os.path.join(path, file) for file in files)
    for name in inside:
        yield from _walk(folder / name, os.path.join(path, name), above | {real})


def _read_annotated(root: Path, name: str) -> Split:
    """Pictures of a split whose classes stand in a file beside them, as in Tiny ImageNet's val."""
    split, file = Split(), root / name / _ANNOTATIONS
    try:
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({root_cause(error)}): copy it anew.") from error
    if short := [i + 1 for i, line in enumerate(lines) if len(line) < 2]:
        raise ValueError(f"line {short[0]} of {file} is no picture, tab and class: copy the file anew.")
    classes = {line[0].strip(): line[1].strip() for line in lines}
    split.classes = set(classes.values())
    for path in _walk(root / name, name, frozenset([os.path.realpath(root)])):
        base = os.path.basename(path)
        if not is_picture(base):
            split.left_out.update([_kind(base)] if base != _ANNOTATIONS else [])
        elif base in classes:
            split.pictures.append((path, classes[base]))
        else:
            raise ValueError(f"{root / path} has no line in {file}: add it, or move the picture elsewhere.")
    return split
