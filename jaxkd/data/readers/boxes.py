"""Annotations of objects in pictures: COCO's JSON, CSV with a box a line, and the XML files of Pascal VOC."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxkd.data.checks import listing
from jaxkd.data.readers.columns import check_file, read_lines, shortened
from jaxkd.data.readers.delimited import read_csv

COLUMNS = ("image", "split", "class", "xmin", "ymin", "xmax", "ymax")
"""Columns of a CSV file: a picture's name, its split, a class, and the edges of a box in pixels."""


class Box(NamedTuple):
    """One annotated object.

    Attributes:
      label: Name of its class.
      corners: (x1, y1, x2, y2) in pixels of the picture.
      crowd: Whether it stands for several objects, or is too hard to count: found or not, it does not matter.
      place: Where it is written, for messages, such as "line 17 of boxes.csv".
    """

    label: str
    corners: tuple[float, float, float, float]
    crowd: bool
    place: str


class Annotated(NamedTuple):
    """One annotated picture.

    Attributes:
      name: Name of its file, with or without folders and suffix.
      split: Split that it belongs to; None if the annotations have none.
      boxes: Its objects; empty for a picture without any.
      size: (height, width) in pixels that the annotations say, or None.
    """

    name: str
    split: str | None
    boxes: Sequence[Box]
    size: tuple[int, int] | None


class Annotations(NamedTuple):
    """Annotated pictures of one file or folder.

    Attributes:
      name: Its name, for messages.
      pictures: The pictures, in the order of the file.
      classes: Names of all classes in their order, if the file lists them; else empty.
    """

    name: str
    pictures: Sequence[Annotated]
    classes: Sequence[str] = ()


def read_csv_boxes(path: Path, columns: Sequence[str] = COLUMNS) -> Annotations:
    """Reads a CSV file of one box a line.

    A line whose class and edges are all empty stands for a picture without objects.

    Args:
      path: The file; its first line names the columns.
      columns: Names of the columns of picture, split, class, and left, upper, right and lower edge. A split that is
        "" or "-" says that there is no such column.

    Returns:
      The annotations.

    Raises:
      ValueError: As `read_csv` says; or if a column is missing, a picture has two splits, or an edge is no number.
    """
    table = read_csv(path)
    if len(columns) != len(COLUMNS):
        raise ValueError(f"{len(columns)} columns are named, {listing(list(columns))}: name {len(COLUMNS)}, {COLUMNS}.")
    columns = [columns[0], "" if columns[1] == "-" and "-" not in table.values else columns[1], *columns[2:]]
    for name in columns:
        if name and name not in table.values:
            raise ValueError(
                f"{path} has no column {name!r} but {listing(table.values)}: name its columns (--columns), in the "
                f"order {' '.join(COLUMNS)}, with - for no split."
            )
    image, split, label, *edges = columns
    splits: dict[str, str | None] = {}
    found: dict[str, list[Box]] = {}
    for row, name in enumerate(table.values[image]):
        own = table.values[split][row] if split else None
        if splits.setdefault(name, own) != own:
            raise ValueError(
                f"{table.place(row)} puts the picture {name} into {own!r}, but it was in {splits[name]!r} before: give "
                "each picture one split."
            )
        boxes = found.setdefault(name, [])
        texts = [table.values[edge][row] for edge in edges]
        if any([table.values[label][row], *texts]):
            corners = [_number(text, edge, table.place(row)) for text, edge in zip(texts, edges, strict=True)]
            boxes.append(_box(table.values[label][row], corners, False, table.place(row)))
    return Annotations(str(path), [Annotated(name, splits[name], boxes, None) for name, boxes in found.items()])


def read_coco(path: Path, split: str | None = None) -> Annotations:
    """Reads a JSON file as COCO has it: `images`, `annotations` with `bbox` [x, y, width, height], `categories`.

    Args:
      path: The file.
      split: Split of its pictures, or None.

    Returns:
      The annotations; pictures without objects are among them, and classes are in the order of their ids.

    Raises:
      ValueError: If the file is no such JSON, or an annotation names a picture or a category that it does not have.
    """
    text = "\n".join(read_lines(path))
    try:
        content = json.loads(text)
        images, categories = content["images"], {one["id"]: str(one["name"]) for one in content["categories"]}
        pictures = {
            one["id"]: Annotated(str(one["file_name"]), split, [], _size(one.get("height"), one.get("width")))
            for one in images
        }
        objects = content["annotations"]
        if len(pictures) < len(images) or len(categories) < len(content["categories"]):
            raise ValueError("an id of a picture or of a category stands there twice")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is no annotation file of COCO ({reason}): give JSON with images, annotations and categories."
        ) from error
    for number, one in enumerate(objects):
        place = f"annotation {one.get('id', number) if isinstance(one, dict) else number} of {path}"
        try:
            picture, label, bbox = one["image_id"], one["category_id"], one["bbox"]
            x, y, width, height = (_number(value, "bbox", place) for value in bbox)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{place} lacks image_id, category_id or bbox ({error}): add it.") from error
        except ValueError as error:
            raise ValueError(f"{place} has the bbox {shortened(one['bbox'])}: give [x, y, width, height].") from error
        if picture not in pictures:
            raise ValueError(f"{place} is of the picture {picture!r}, which `images` does not list: add or remove it.")
        if label not in categories:
            raise ValueError(
                f"{place} has the category {label!r}, which `categories` does not list: add or correct it."
            )
        corners = [x, y, x + width, y + height]
        pictures[picture].boxes.append(_box(categories[label], corners, bool(one.get("iscrowd")), place))  # type: ignore[attr-defined]
    return Annotations(str(path), list(pictures.values()), [categories[id] for id in sorted(categories)])


def read_voc(folder: Path) -> Annotations:
    """Reads the XML files of a folder in Pascal VOC's form, one for each picture.

    They lie in the folder itself or in `Annotations`; if there are lists `ImageSets/Main/SPLIT.txt`, these give the
    splits. Edges are taken as they are written; an object that is marked difficult counts as a crowd.

    Args:
      folder: The folder.

    Returns:
      The annotations, in the order of the files' names.

    Raises:
      ValueError: If there is no such folder or file, or one is no such XML.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder: give the one of the XML files, or the one that has Annotations in it."
        )
    inside = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    files = sorted(path for path in inside.iterdir() if path.suffix.lower() == ".xml")
    if not files:
        raise ValueError(f"{inside} has no XML file: give the folder of the annotations.")
    splits = _voc_splits(folder / "ImageSets" / "Main")
    return Annotations(str(folder), [_voc_picture(path, splits.get(path.stem) if splits else None) for path in files])


def _voc_splits(folder: Path) -> dict[str, str]:
    """Name of a picture -> its split; lists of single classes and unions of lists are left out."""
    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = folder / f"{split}.txt"
        for line in read_lines(path) if path.is_file() else []:
            name = line.split()[0] if line.split() else ""
            if name and found.setdefault(name, split) != split:
                raise ValueError(f"{path} lists {name}, which {found[name]}.txt lists too: keep it in one of them.")
    return found


def _voc_picture(path: Path, split: str | None) -> Annotated:
    """The picture that one XML file describes."""
    check_file(path)
    text = "\n".join(read_lines(path))
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities could grow without bound
        raise ValueError(f"{path} declares a document type or entities, which no annotation needs: remove them.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML ({error}): copy or export it anew.") from error
    boxes = []
    for number, one in enumerate(root.iter("object"), 1):
        place = f"object {number} of {path}"
        label, bounds = (one.findtext("name") or "").strip(), one.find("bndbox")
        if not label or bounds is None:
            raise ValueError(f"{place} has no name or no bndbox: add what is missing.")
        corners = [_number(bounds.findtext(edge), edge, place) for edge in COLUMNS[3:]]
        boxes.append(_box(label, corners, (one.findtext("difficult") or "0").strip() == "1", place))
    name = (root.findtext("filename") or "").strip() or path.stem
    size = root.find("size")
    shape = None if size is None else _size(size.findtext("height"), size.findtext("width"))
    return Annotated(name if Path(name).stem == path.stem else path.stem, split, boxes, shape)


def _box(label: str, corners: Sequence[float], crowd: bool, place: str) -> Box:
    """A box whose edges are in order."""
    x1, y1, x2, y2 = corners
    if not label.strip():
        raise ValueError(f"{place} has a box without a class: name one.")
    if x2 < x1 or y2 < y1:
        raise ValueError(
            f"{place} has a box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}), whose second corner lies before the first: "
            "give left, upper, right and lower edge, in this order."
        )
    return Box(label.strip(), (x1, y1, x2, y2), crowd, place)


def _number(value: Any, what: str, place: str) -> float:
    """A finite number from a text or a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"{place} has {what} {shortened(value)}: give a number of pixels.")
    return number


def _size(height: Any, width: Any) -> tuple[int, int] | None:
    """A size in pixels, or None if it is not told; some tools write 0 for it."""
    try:
        found = int(height), int(width)
    except (TypeError, ValueError):
        return None
    return found if min(found) > 0 else None
