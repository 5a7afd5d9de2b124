"""Sources of pictures with boxes: annotations joined to the pictures of a folder or a ZIP archive, and checked."""

from __future__ import annotations

import collections
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from jaxkd.data.checks import check_rows, listing, path_of, root_cause
from jaxkd.data.readers import pictures as decoding
from jaxkd.data.readers.boxes import COLUMNS, Annotated, Annotations, Box, read_coco, read_csv_boxes, read_voc
from jaxkd.data.readers.layouts import SUFFIXES
from jaxkd.data.source import Source
from jaxkd.data.splits import SPLITS, draw, first_few, say, say_new

Outside: TypeAlias = Literal["clip", "refuse"]
"""Fate of boxes over the border of their picture: "clip" cuts them, "refuse" is an error."""

_OTHER_NAMES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
_SHARE = 0.15  # part of the pictures that val and test get each, where no list splits them
_TOLERANCE = 1.0  # pixels over the border that are rounding, and are cut without a word


class _Files(NamedTuple):
    """Pictures of a folder or an archive: path -> contents, and where they are."""

    name: str
    paths: Sequence[str]
    read: Callable[[str], bytes]


class _Row(NamedTuple):
    """A picture with its boxes, checked: corners [n, 4] in its own pixels, class numbers [n], crowds [n]."""

    path: str
    split: str | None
    corners: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    shape: tuple[int, int]


def open_boxes(
    spec: str,
    pictures: str,
    *,
    image_size: tuple[int, int],
    columns: Sequence[str] = COLUMNS,
    classes: Sequence[str] = (),
    outside: Outside = "clip",
    most: int | None = None,
) -> dict[str, Source]:
    """Opens annotated pictures as sources of the splits train, val and test.

    Pictures without boxes stay, as examples of nothing. Pictures that no annotation names are left out. Where the
    annotations have no splits, 70 % of the pictures are drawn for training and 15 % each for val and test.

    Args:
      spec: "coco:PATH", JSON, with {split} in it if each split has its own file; "csv:PATH", one box a line; or
        "voc:FOLDER", XML files.
      pictures: Folder of the pictures, at any depth, or a ZIP archive of them.
      image_size: (height, width) that pictures, and their boxes with them, are resized to.
      columns: Names of the columns of a CSV file, as `readers.boxes.read_csv_boxes` takes them.
      classes: Names of the classes to keep, in their order; all if empty, sorted by name or by COCO's ids.
      outside: Fate of boxes that reach more than a pixel over the border: "clip" or "refuse".
      most: M, boxes of a picture at most; the largest number that a picture has if None.

    Returns:
      Split -> source with `image` uint8 [B, height, width, 3], `boxes` float32 [B, M, 4], (x1, y1, x2, y2) in pixels of
      that image, `label` int32 [B, M], -1 where there is no box, and `crowd` bool [B, M].

    Raises:
      ValueError: In one sentence, if something is missing or does not fit.
    """
    given = _read(spec, columns)
    files = _open_files(path_of(pictures))
    names, counts = _class_names(given, classes), collections.Counter[str]()
    rows = [_checked(path, one, files, names, outside, counts) for path, one in _match(given, files)]
    _say_changes(given.name, counts, names)
    largest = max(rows, key=lambda row: len(row.labels))
    if most is not None and len(largest.labels) > most:
        raise ValueError(
            f"the picture {largest.path} has {len(largest.labels)} boxes but at most {most} are kept: give --max-boxes "
            f"{len(largest.labels)}, or leave it out."
        )
    limit = max(1, len(largest.labels)) if most is None else most
    found = {split: [rows[i] for i in own] for split, own in _splits(given.name, rows).items()}
    training = np.concatenate([row.labels for row in found.get("train", [])] or [np.zeros(0, int)])
    for split, own in found.items():
        say_new(f"{given.name}[{split}]", np.concatenate([row.labels for row in own]), training, names)
    return {
        split: _source(f"{given.name}[{split}]", files, own, names, image_size, limit) for split, own in found.items()
    }


def _read(spec: str, columns: Sequence[str]) -> Annotations:
    """Annotations of a specification; files of several splits as one."""
    kind, _, place = spec.partition(":")
    if kind not in ("coco", "csv", "voc") or not place:
        raise ValueError(f"--boxes is {spec!r}: write coco:PATH, csv:PATH or voc:FOLDER.")
    if kind == "csv":
        return read_csv_boxes(path_of(place), columns)
    if kind == "voc":
        return read_voc(path_of(place))
    if "{split}" not in place:
        return read_coco(path_of(place))
    paths = {split: path_of(place.replace("{split}", split)) for split in SPLITS}
    parts = [read_coco(path, split) for split, path in paths.items() if path.is_file() or split == "train"]
    for part in parts[1:]:
        if list(part.classes) != list(parts[0].classes):
            raise ValueError(
                f"{part.name} has the categories {first_few(list(part.classes))} but {parts[0].name} "
                f"{first_few(list(parts[0].classes))}: give all files the same ones."
            )
    return Annotations(place, [one for part in parts for one in part.pictures], parts[0].classes)


def _open_files(place: Path) -> _Files:
    """Pictures of a folder or of a ZIP archive."""
    if place.is_dir():
        paths = sorted(str(p.relative_to(place).as_posix()) for p in place.rglob("*") if p.is_file())
        files = _Files(str(place), paths, lambda path: (place / path).read_bytes())
    else:
        if not place.exists():
            raise ValueError(
                f"--pictures is {place}, which does not exist: give a folder or a ZIP archive of pictures."
            )
        try:
            with zipfile.ZipFile(place) as archive:
                paths = sorted(one.filename for one in archive.infolist() if not one.is_dir())
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(
                f"{place} is no ZIP archive ({root_cause(error)}): give a folder or a ZIP archive of pictures."
            ) from error

        def read(path: str) -> bytes:
            with zipfile.ZipFile(place) as archive:  # of its own in each thread
                return archive.read(path)

        files = _Files(str(place), paths, read)
    seen = [p for p in files.paths if p.lower().endswith(SUFFIXES) and not p.lower().startswith("__macosx/")]
    if not seen:
        raise ValueError(f"{place} holds no pictures ({', '.join(SUFFIXES[:5])}, ...): give --pictures another place.")
    return files._replace(paths=seen)


def _match(given: Annotations, files: _Files) -> list[tuple[str, Annotated]]:
    """Path of each annotated picture: the same one, or the only one of that name, or of that name without a suffix."""
    places: dict[str, set[str]] = collections.defaultdict(set)
    for path in files.paths:
        for name in (path, PurePosixPath(path).name, PurePosixPath(path).stem):
            places[name].add(path)
    found: dict[str, Annotated] = {}
    missing = []
    for one in given.pictures:
        told = PurePosixPath(one.name.replace("\\", "/"))
        paths = next((places[n] for n in (str(told), told.name, told.stem) if n in places), set())
        if not paths:
            missing.append(one.name)
            continue
        path = min(paths)
        if len(paths) > 1 or path in found:
            raise ValueError(
                f"{given.name} names the picture {one.name}, which may be {' or '.join(sorted(paths)[:2])} in "
                f"{files.name}, or is named twice: give its folder too, and each picture once."
            )
        found[path] = one
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(given.pictures)} pictures of {given.name} are not in {files.name} "
            f"({first_few(missing)}): give --pictures the folder or archive that holds them."
        )
    if not found:
        raise ValueError(f"{given.name} has no picture: give annotations of one at least.")
    if more := len(files.paths) - len(found):
        say(f"{files.name} has {more} picture(s) that {given.name} does not name: they are left out.")
    return list(found.items())


def _class_names(given: Annotations, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes, in their order."""
    occurring = sorted({box.label for one in given.pictures for box in one.boxes})
    known = list(given.classes) or occurring
    if unknown := [name for name in classes if name not in known]:
        raise ValueError(f"{given.name} has no class {unknown[0]!r}: choose --classes among {listing(known)}.")
    if not known:
        raise ValueError(f"{given.name} has no box at all: give annotations with objects to find.")
    return tuple(classes or known)


def _checked(
    path: str, one: Annotated, files: _Files, names: Sequence[str], outside: Outside, counts: collections.Counter[str]
) -> _Row:
    """Boxes of a picture, checked against its size; what is changed or left out is counted."""
    try:
        with Image.open(io.BytesIO(files.read(path)), formats=decoding.FORMATS) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises errors of any kind
        raise ValueError(
            f"the picture {path} of {files.name} cannot be read ({root_cause(error)}): copy it anew, or remove it."
        ) from error
    if one.size is not None and one.size != (height, width):
        raise ValueError(
            f"the picture {path} is {height} x {width} pixels but its annotation is for {one.size[0]} x {one.size[1]}: "
            "give the pictures that were annotated, or scale the boxes with them."
        )
    kept: list[tuple[Box, list[float]]] = []
    for box in one.boxes:
        x1, y1, x2, y2 = box.corners
        inside = [min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)]
        over = max(abs(a - b) for a, b in zip(box.corners, inside, strict=True)) > _TOLERANCE
        if over and outside == "refuse":
            raise ValueError(
                f"{box.place} has a box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}), outside of {path}, which is "
                f"{width} pixels wide and {height} high: correct it, or give --outside clip."
            )
        if box.label not in names:
            counts["other"] += 1
        elif inside[2] <= inside[0] or inside[3] <= inside[1]:
            counts["empty"] += 1
        else:
            counts["clipped"] += over
            kept.append((box, inside))
    corners = np.asarray([inside for _, inside in kept], np.float32).reshape(-1, 4)
    labels = np.asarray([list(names).index(box.label) for box, _ in kept], np.int32)
    return _Row(path, one.split, corners, labels, np.asarray([box.crowd for box, _ in kept], bool), (height, width))


def _say_changes(name: str, counts: collections.Counter[str], names: Sequence[str]) -> None:
    """Says what was changed or left out."""
    if counts["clipped"]:
        say(f"{counts['clipped']} box(es) of {name} reach over the border of their picture: they are cut there.")
    if counts["empty"]:
        say(f"{counts['empty']} box(es) of {name} have no area within their picture: they are left out.")
    if counts["other"]:
        say(f"{counts['other']} box(es) of {name} are of other classes than {listing(list(names))}: they are left out.")


def _splits(name: str, rows: Sequence[_Row]) -> dict[str, list[int]]:
    """Split -> its rows: those of the annotations, or drawn ones."""
    found: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row.split is not None:
            found.setdefault(_OTHER_NAMES.get(row.split, row.split), []).append(i)
    if found:
        if alone := [row.path for row in rows if row.split is None]:
            say(f"{len(alone)} picture(s) of {name} are in no split ({first_few(alone)}): they are left out.")
        if unknown := [split for split in found if split not in SPLITS]:
            raise ValueError(f"{name} has the split {unknown[0]!r}: name its splits {listing(SPLITS)}.")
        return {split: found[split] for split in SPLITS if split in found}
    if len(rows) < 3:
        raise ValueError(f"{name} has {len(rows)} picture(s), of which no three splits can be made: give more.")
    # Its stream is frozen for good.
    order = np.random.RandomState(0).permutation(len(rows))
    part = max(1, round(_SHARE * len(rows)))
    ends = [0, len(rows) - 2 * part, len(rows) - part, len(rows)]
    say(f"{name} has no splits: 70 % of its pictures are drawn for train, and 15 % each for val and test.")
    return {
        split: draw(order, None, first, last).tolist()
        for split, first, last in zip(SPLITS, ends[:-1], ends[1:], strict=True)
    }


def _source(
    name: str, files: _Files, rows: Sequence[_Row], names: tuple[str, ...], image_size: tuple[int, int], limit: int
) -> Source:
    """Source of some rows, whose pictures are read when they are asked for."""
    frame = decoding.Frame(*image_size)
    boxes, label = np.zeros((len(rows), limit, 4), np.float32), np.full((len(rows), limit), -1, np.int32)
    crowd = np.zeros((len(rows), limit), bool)
    for i, row in enumerate(rows):
        count, (height, width) = len(row.labels), row.shape
        scale = np.array([frame.width / width, frame.height / height] * 2, np.float32)
        boxes[i, :count], label[i, :count], crowd[i, :count] = row.corners * scale, row.labels, row.crowd

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        own = check_rows(name, numbers, len(rows))
        advice = "copy it anew, or remove it"
        decoded = [
            decoding.decode_or_explain(files.read(rows[i].path), 3, frame, name=rows[i].path, advice=advice)
            for i in own
        ]
        fields = {"boxes": boxes[own], "label": label[own], "crowd": crowd[own], "id": own.astype(np.int32)}
        return {**decoding.stack(decoded, frame), **fields}

    shape = (*image_size, 3)
    return Source(name, len(rows), len(names), shape, read, task="boxes", class_names=names)
