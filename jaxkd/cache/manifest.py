"""The manifest of a folder of targets: what it holds, and what they were made with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.cache import fingerprints
from jaxkd.data.source import Source
from jaxkd.files import explain_write_errors, write_atomically
from jaxkd.types import Prepare

FORMAT = 1
_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder of targets holds, and what they were made with.

    Attributes:
      start: The first example's id.
      size: Number of examples; their ids go up by one.
      rows: Examples in a shard.
      views: Views that are complete: 0..views-1.
      fields: Name -> (dtype on disk, shape) of what each view of each example has.
      made_with: What is compared word by word: the teacher and how it computed.
      probe: What is compared as numbers: how some examples looked when they were prepared (`jaxkd.cache.fingerprints`).
      format: Version of the files.
    """

    start: int
    size: int
    rows: int
    views: int
    fields: Mapping[str, tuple[str, tuple[int, ...]]]
    made_with: Mapping[str, str]
    probe: Mapping[str, Any]
    format: int = FORMAT

    @property
    def record(self) -> np.dtype[Any]:
        """A record: the key, then the fields."""
        fields = [(name, dtype, tuple(shape)) for name, (dtype, shape) in self.fields.items()]
        return np.dtype([("id", "<i4"), ("view", "<i4"), *fields])

    def shards(self, views: int) -> list[tuple[int, range]]:
        """View and rows of every shard of some views."""
        return [
            (view, range(first, min(first + self.rows, self.size)))
            for view in range(views)
            for first in range(0, self.size, self.rows)
        ]


def stem(view: int, first: int) -> str:
    """Name of the shard of a view that begins with a row, without checksum and ending."""
    return f"view{view:05d}-row{first:09d}"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder.

    Args:
      folder: The folder.

    Returns:
      The manifest, or None if there is none yet.

    Raises:
      ValueError: If it is torn, or of a format that this version does not know.
    """
    path = folder / _MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        found = Manifest(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of targets: delete its folder and write them again.") from error
    if found.format != FORMAT:
        raise ValueError(f"{path} has format {found.format}, but this version reads {FORMAT}: write them again.")
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder atomically.

    Args:
      folder: The folder; made if it is missing.
      manifest: The manifest.

    Raises:
      OSError: If it cannot be written.
    """
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / _MANIFEST, json.dumps(dataclasses.asdict(manifest)))


def check_same(
    folder: Path, manifest: Manifest, made_with: Mapping[str, str], source: Source, prepare: Prepare
) -> None:
    """Raises a sentence that names the difference unless targets belong to a teacher, a source and a preparation.

    Args:
      folder: Where the targets are.
      manifest: What is there.
      made_with: The teacher's fingerprint and how it computes.
      source: What is learnt from; a slice of what the targets were made of will do.
      prepare: What the student's batches go through.

    Raises:
      ValueError: If something differs.
    """
    for key in sorted({*manifest.made_with, *made_with}):
        if manifest.made_with.get(key) != made_with.get(key):
            raise ValueError(
                f"the targets in {folder} were made with {key} = {manifest.made_with.get(key)}, not "
                f"{made_with.get(key)}: write them elsewhere, or use what they were made with."
            )
    first, stop = manifest.start, manifest.start + manifest.size
    if source.start < first or source.start + source.size > stop:
        raise ValueError(
            f"the targets in {folder} are of the examples {first}..{stop - 1}, but {source.name} has "
            f"{source.start}..{source.start + source.size - 1}: write them for the whole split."
        )
    ids = np.asarray(manifest.probe["id"])
    inside = (ids >= source.start) & (ids < source.start + source.size)
    if not inside.any():
        raise ValueError(
            f"{source.name} is too small a part of the targets in {folder} to be compared: take more of it."
        )
    _check_probe(folder, manifest, source, fingerprints.look(source, prepare, ids[inside]), inside)


def _check_probe(folder: Path, manifest: Manifest, source: Source, now: Mapping[str, Any], inside: np.ndarray) -> None:
    """Compares how examples look with how they looked."""
    then = {field: np.asarray(numbers)[:, inside] for field, numbers in manifest.probe["seen"].items()}
    for field, (view, place) in fingerprints.differences(then, now).items():
        example = np.asarray(manifest.probe["id"])[inside][place]
        raise ValueError(
            f"the targets in {folder} were made with another preparation: `{field}` of example {example} in view "
            f"{view} differs from {source.name}'s now; give the same data, normalisation, augmentation and seed, or "
            "write them elsewhere."
        )
