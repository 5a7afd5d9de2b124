"""Manifest of a folder of targets: its contents, and the teacher and preparation that they were computed with."""

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
"""Version of the files that this version of the library writes and reads."""

_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Contents of a folder of targets, and what they were computed with.

    Attributes:
      start: Id of the first example.
      size: Number of examples. Their records have the ids start..start+size-1.
      rows: Number of examples in a shard.
      views: Number of complete views, 0..views-1.
      fields: Name -> (dtype on disk, shape) of the targets of one view of one example.
      made_with: Name -> value of the teacher and its computation, compared for equality.
      probe: Fingerprint of some prepared examples, compared up to rounding (`jaxkd.cache.fingerprints`).
      ids: Fingerprint of the examples' own ids, if these are not consecutive (`fingerprints.fingerprint_ids`).
      format: Version of the files.
    """

    start: int
    size: int
    rows: int
    views: int
    fields: Mapping[str, tuple[str, tuple[int, ...]]]
    made_with: Mapping[str, str]
    probe: Mapping[str, Any]
    ids: str | None = None
    format: int = FORMAT

    @property
    def record(self) -> np.dtype[Any]:
        """Structured dtype of a record: `id` and `view`, then the fields."""
        fields = [(name, dtype, tuple(shape)) for name, (dtype, shape) in self.fields.items()]
        return np.dtype([("id", "<i4"), ("view", "<i4"), *fields])

    def shards(self, views: int) -> list[tuple[int, range]]:
        """Lists the shards of some views.

        Args:
          views: Number of views.

        Returns:
          (view, rows) of each shard.
        """
        return [
            (view, range(first, min(first + self.rows, self.size)))
            for view in range(views)
            for first in range(0, self.size, self.rows)
        ]


def stem(view: int, first: int) -> str:
    """File name of a shard, without checksum and ending.

    Args:
      view: The shard's view.
      first: Its first row.

    Returns:
      Such as "view00001-row000008192".
    """
    return f"view{view:05d}-row{first:09d}"


def read_manifest(folder: Path) -> Manifest | None:
    """Reads the manifest of a folder.

    Args:
      folder: The folder.

    Returns:
      The manifest, or None if there is none yet.

    Raises:
      ValueError: If the file is damaged, or of a format that this version does not know.
    """
    path = folder / _MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): give the folder that targets stand in.") from error
    try:
        found = Manifest(**json.loads(content.decode("utf-8")))
        if found.format == FORMAT:
            _check_entries(found)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} is no manifest of targets: delete its folder and write them again.") from error
    if found.format != FORMAT:
        raise ValueError(f"{path} has format {found.format}, but this version reads {FORMAT}: write the targets again.")
    return found


def _check_entries(manifest: Manifest) -> None:
    """Raises an error unless the entries of a manifest have the types and shapes that they are written with."""
    numbers = {"start": -1, "size": 0, "rows": 0, "views": -1}  # each must be greater
    if not all(type(getattr(manifest, n)) is int and getattr(manifest, n) > least for n, least in numbers.items()):
        raise ValueError("a number is missing")
    if not isinstance(manifest.made_with, dict) or not len(manifest.record.names or ()) > 2:
        raise ValueError("an entry is missing")
    ids = np.asarray(manifest.probe["id"], np.int64)
    for projections in manifest.probe["seen"].values():
        if np.asarray(projections, np.float64).shape[1:2] != ids.shape:
            raise ValueError("the probe is incomplete")


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
    """Checks that targets belong to a teacher, a source and a preparation.

    Args:
      folder: Folder of the targets.
      manifest: Its manifest.
      made_with: Fingerprint of the teacher and of its computation.
      source: Training data: the source that the targets were computed on, or a slice of it.
      prepare: Preparation of the student's batches on the device.

    Raises:
      ValueError: If any of them differs; the message names the difference.
    """
    for key in sorted({*manifest.made_with, *made_with}):
        if manifest.made_with.get(key) != made_with.get(key):
            raise ValueError(
                f"the targets in {folder} were made with {key} = {manifest.made_with.get(key)}, not "
                f"{made_with.get(key)}: write them elsewhere, or use the {key} that they were made with."
            )
    first, stop = manifest.start, manifest.start + manifest.size
    if manifest.ids is not None and manifest.ids != fingerprints.fingerprint_ids(source):
        raise ValueError(
            f"the targets in {folder} are those of {manifest.size} examples that were drawn from a split, which are "
            f"not the {source.size} of {source.name}: write targets for the whole split."
        )
    if manifest.ids is None and (source.ids[0] < first or source.ids[-1] >= stop):
        raise ValueError(
            f"the targets in {folder} are those of the examples {first}..{stop - 1}, but {source.name} has "
            f"{source.ids[0]}..{source.ids[-1]}: write targets for the whole split."
        )
    ids = np.asarray(manifest.probe["id"])
    inside = np.isin(ids, source.ids)
    if not inside.any():
        raise ValueError(
            f"{source.name} holds none of the examples by which the targets in {folder} are verified: give a larger "
            "slice."
        )
    _check_probe(folder, manifest, source, fingerprints.probe(source, prepare, ids[inside]), inside)


def _check_probe(folder: Path, manifest: Manifest, source: Source, now: Mapping[str, Any], inside: np.ndarray) -> None:
    """Compares the manifest's probe with the one of the same examples as they are prepared now."""
    then = {field: np.asarray(numbers)[:, inside] for field, numbers in manifest.probe["seen"].items()}
    for field, (view, position) in fingerprints.differences(then, now).items():
        example = np.asarray(manifest.probe["id"])[inside][position]
        raise ValueError(
            f"the targets in {folder} were made with another preparation: `{field}` of example {example} in view "
            f"{view} differs from {source.name}'s now; give the same data, normalisation, augmentation and seed, or "
            "write them elsewhere."
        )
