"""Sources from tar shards of pictures, in the layout of WebDataset: KEY.jpg beside KEY.cls or KEY.json."""

from __future__ import annotations

import collections
import dataclasses
import glob
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data import checks, labels
from jaxkd.data.checks import listing, path_of, root_cause
from jaxkd.data.labels import Task
from jaxkd.data.readers import pictures
from jaxkd.data.readers.columns import shortened
from jaxkd.data.readers.layouts import SUFFIXES, counted
from jaxkd.data.source import Source
from jaxkd.data.splits import draw, is_percentage, say, say_empty, say_missing, say_new

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LABELS = ("cls", "json")
_FIELDS = ("label", "cls", "class", "target")
_COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


@dataclasses.dataclass
class Index:
    """Places of the pictures of one split, and their labels.

    Attributes:
      shards: Paths of the shards.
      names: Name of each picture's member, [N].
      places: Shard, first byte and number of bytes of each, int64 [N, 3].
      labels: Label of each as it stands in its shard, [N]; empty if no picture has one.
    """

    shards: list[Path]
    names: list[str]
    places: np.ndarray
    labels: list[Any]


def from_shards(place: str, split: str, num_classes: int | None, frame: pictures.Frame | None) -> Source:
    """Opens tar shards of pictures as a source, whose shards are read through once, for the members' places.

    Rows stand in the order of the shards and of the members in them. Labels are integers or words in KEY.cls, or a
    field `label`, `cls`, `class` or `target` in KEY.json; words are classes in the order of their names.

    Args:
      place: A shard; a name of several, such as "PATH-{000..009}.tar", in which "{split}" may stand for the split; a
        folder of shards, which are one split, "train"; or a folder of such folders, which are splits.
      split: The split or a slice of it. Percentages are drawn from all classes.
      num_classes: Number of classes, or None to take it from the labels of all splits.
      frame: Size to which pictures are resized; required, though None is accepted for a readable error.

    Returns:
      The source of RGB images. Without labels it is unlabelled.

    Raises:
      ValueError: In one sentence: no such shard, one that is damaged, compressed, or has a key twice, no picture, no
        frame, labels of several kinds. Reading a broken picture raises one too.
    """
    name = f"tar:{place}"
    if frame is None:
        raise ValueError(
            f"the pictures in {name} may vary in shape: give image_size=(height, width) (--image-size) to have them "
            "resized."
        )
    splits = {key: _index(f"{name}[{key}]", shards) for key, shards in _splits(place).items()}
    sizes = {key: len(found.names) for key, found in splits.items()}
    base, start, stop = checks.split_rows(name, split, sizes)
    whole, index = f"{name}[{base}]", splits[base]
    numbers, names = _numbered(splits)
    fields, task, classes = _labels(whole, numbers, base, num_classes or (len(names) or None))
    if fields and task == "classification":
        say_empty(name, list(numbers.values()), classes)
        say_new(whole, fields["label"], np.asarray(numbers.get("train", []) if base != "train" else []), names)
    rows, drawn = np.arange(start, stop), is_percentage(name, split)
    if drawn and len(rows) < sizes[base]:
        grouped = fields["label"] if task in ("classification", "multi_label") else None
        rows = draw(np.random.RandomState(0).permutation(sizes[base]), grouped, start, stop)
    name = f"{name}[{split}]"
    if fields:
        say_missing(name, task, fields["label"], rows, drawn=drawn, class_names=names)

    def read(own: np.ndarray) -> dict[str, np.ndarray]:
        ids = rows[checks.check_rows(name, own, len(rows))]
        decoded = [_decoded(index, int(i), frame) for i in ids]
        found = {**pictures.stack(decoded, frame), "id": ids.astype(np.int32)}
        return found | {field: values[ids] for field, values in fields.items()}

    shape = (frame.height, frame.width, 3)
    gaps = None if rows[-1] - rows[0] == len(rows) - 1 else rows
    kept = names if len(names) == classes else ()
    return Source(name, len(rows), classes, shape, read, int(rows[0]), task=task, drawn=gaps, class_names=kept)


def _splits(place: str) -> dict[str, list[Path]]:
    """Split -> its shards in order."""
    path = path_of(place)
    if path.is_dir():
        inside = {child.name: sorted(child.glob("*.tar")) for child in sorted(path.iterdir()) if child.is_dir()}
        own = sorted(path.glob("*.tar"))
        found = {"train": own} if own else {name: shards for name, shards in inside.items() if shards}
        if not found:
            raise ValueError(f"{path} holds no .tar file: give tar:PATH of a shard, or of a folder of shards.")
        return found
    patterns = [str(path)]
    while any(_RANGE.search(pattern) for pattern in patterns):
        patterns = [one for pattern in patterns for one in _expanded(pattern)]
    if "{split}" not in place:
        if missing := [pattern for pattern in patterns if not Path(pattern).is_file()]:
            raise ValueError(f"there is no file {missing[0]}, one of the {len(patterns)} shards of tar:{place}.")
        return {"train": [Path(pattern) for pattern in patterns]}
    splits: dict[str, list[Path]] = {}
    for pattern in patterns:
        before, *after = (re.escape(part) for part in pattern.split("{split}"))
        form = re.compile(before + "(?P<split>[^/]*)" + "(?P=split)".join(after))
        for file in sorted(glob.glob("*".join(glob.escape(part) for part in pattern.split("{split}")))):
            if match := form.fullmatch(file):
                splits.setdefault(match["split"], []).append(Path(file))
    if not splits:
        raise ValueError(f"there is no file {patterns[0]} for any {{split}}: give tar:PATH of shards that exist.")
    if short := [name for name, shards in splits.items() if len(shards) != len(patterns)]:
        raise ValueError(
            f"the split {short[0]} of tar:{place} has {len(splits[short[0]])} of {len(patterns)} shards: copy the "
            "others, or give the range that is there."
        )
    return splits


def _expanded(pattern: str) -> list[str]:
    """Names that the first range of a pattern stands for."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    if int(last) < int(first):
        raise ValueError(f"the range {match[0]} of {pattern} is empty: give the smaller number first.")
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [pattern[: match.start()] + number + pattern[match.end() :] for number in numbers]


def _index(name: str, shards: Sequence[Path]) -> Index:
    """Places of the pictures of some shards, after a walk over their members."""
    found, left_out = Index(list(shards), [], np.zeros((0, 3), np.int64), []), collections.Counter[str]()
    places: list[tuple[int, int, int]] = []
    unlabelled: list[str] = []
    known: list[Any] = []
    seen: set[str] = set()
    again = 0
    for number, shard in enumerate(shards):
        samples = _samples(shard, left_out)
        again += len(seen & samples.keys())
        seen |= samples.keys()
        for key, sample in samples.items():
            if "picture" not in sample:
                left_out["labels without a picture"] += 1
                continue
            member = sample["picture"]
            found.names.append(member.name)
            places.append((number, member.offset_data, member.size))
            known.append(sample.get("label"))
            if "label" not in sample:
                unlabelled.append(key)
    if not places:
        raise ValueError(f"{name} holds no picture in {len(shards)} shard(s): give tar files with KEY.jpg and KEY.cls.")
    found.places = np.array(places, np.int64)
    if left_out:
        say(f"{name} leaves out members that are no pictures or labels: {counted(left_out)}.")
    if again:
        say(f"{name} has {again} keys in several shards: they are taken for different pictures.")
    if unlabelled and len(unlabelled) < len(places):
        rows = [row for row, label in enumerate(known) if label is not None]
        say(f"{name} leaves out {len(unlabelled)} pictures that have no label, such as {unlabelled[0]}.")
        found.names, found.places = [found.names[row] for row in rows], found.places[rows]
        known = [known[row] for row in rows]
    found.labels = [] if len(unlabelled) == len(places) else known
    return found


def _samples(shard: Path, left_out: collections.Counter[str]) -> dict[str, dict[str, Any]]:
    """Key -> the picture's member and the label of one shard."""
    samples: dict[str, dict[str, Any]] = {}
    try:
        with shard.open("rb") as stream:
            start, size = stream.read(6), shard.stat().st_size
            if kind := [kind for magic, kind in _COMPRESSED if start.startswith(magic)]:
                raise ValueError(f"{shard} is compressed by {kind[0]}, so that no member can be read alone: unpack it.")
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    if member.isfile():
                        _add(shard, size, archive, member, samples, left_out)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ValueError(f"{shard} cannot be read ({root_cause(error)}): copy it anew.") from error
    return samples


def _add(
    shard: Path,
    size: int,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    samples: dict[str, dict[str, Any]],
    left_out: collections.Counter[str],
) -> None:
    """Adds a member to the sample of its key."""
    folder, _, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    kind = suffix.lower()
    if member.offset_data + member.size > size:
        raise ValueError(f"{shard} ends within its member {member.name}: it is cut short, copy it anew.")
    if not stem or not (f".{kind}" in SUFFIXES or kind in _LABELS):
        left_out[f".{kind}" if stem and kind else "hidden or without a suffix"] += 1
        return
    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
    part = "label" if kind in _LABELS else "picture"
    if kind in sample.setdefault("kinds", set()) or (part == "picture" and part in sample):
        raise ValueError(f"{shard} has two members {member.name} or of the same key: give each picture its own key.")
    sample["kinds"].add(kind)
    if part == "picture":
        sample[part] = member
        return
    content = archive.extractfile(member)
    label = _label(shard, member.name, kind, b"" if content is None else content.read())
    if label is not None and (kind == "cls" or "label" not in sample):
        sample[part] = label


def _label(shard: Path, member: str, kind: str, content: bytes) -> Any:
    """Label in a member; None where its JSON has none."""
    try:
        text = content.decode("utf-8").strip()
        found = json.loads(text) if kind == "json" else text
    except ValueError as error:
        raise ValueError(f"the member {member} of {shard} is damaged ({root_cause(error)}): write it anew.") from error
    if kind == "json":
        found = next((found[name] for name in _FIELDS if name in found), None) if isinstance(found, dict) else None
        return found
    if not text:
        raise ValueError(f"the member {member} of {shard} is empty: write the class number into it, or leave it out.")
    try:
        return int(text)
    except ValueError:
        return text


def _numbered(splits: dict[str, Index]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Split -> labels as an array, of those that have some; and the names of classes that are words."""
    given = {name: index.labels for name, index in splits.items() if index.labels}
    kinds = {type(label).__name__ for each in given.values() for label in each}
    if "str" in kinds and len(kinds) > 1:
        word = next(label for each in given.values() for label in each if isinstance(label, str))
        raise ValueError(
            f"some labels are words, such as {shortened(word)}, and others {listing(sorted(kinds - {'str'}))}:"
            " give all of one kind."
        )
    if kinds != {"str"}:
        try:
            return {name: np.array(each) for name, each in given.items()}, ()
        except ValueError as error:
            raise ValueError(
                "labels are lists of different lengths: give 0 and 1 for each of several labels."
            ) from error
    names = tuple(sorted({label for each in given.values() for label in each}))
    number = {label: i for i, label in enumerate(names)}
    return {name: np.array([number[label] for label in each]) for name, each in given.items()}, names


def _labels(
    name: str, numbers: dict[str, np.ndarray], base: str, num_classes: int | None
) -> tuple[dict[str, np.ndarray], Task, int]:
    """The field `label` of a split, if it has one, its task and its number of classes."""
    if base not in numbers:
        return {}, "unlabelled", num_classes or 0
    others = [values for other, values in numbers.items() if other != base]
    found = labels.read_labels(name, numbers[base], np.arange(len(numbers[base])), num_classes, others)
    return {"label": found.values}, found.task, found.num_classes


def _decoded(index: Index, row: int, frame: pictures.Frame) -> pictures.Picture:
    """One picture, read from its place."""
    shard, offset, size = index.places[row]
    path = index.shards[shard]
    try:
        with path.open("rb") as stream:
            stream.seek(int(offset))
            encoded = stream.read(int(size))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({root_cause(error)}): copy it anew.") from error
    name, advice = f"the member {index.names[row]} of {path}", "write the shard anew without it, and start another run"
    return pictures.decode_or_explain(encoded, 3, frame, name=name, advice=advice, upright=True)
