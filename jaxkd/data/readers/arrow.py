"""Parquet files, and data sets of Hugging Face: from folders, or by name where there is a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxkd.data.checks import listing, root_cause
from jaxkd.data.readers.columns import Columns, check_file

_PARQUET = re.compile(r"(?:.*/)?(?P<split>[A-Za-z_]+?)(?:[-_.]\d.*)?\.parquet")
_CONVERTED = "refs/convert/parquet"  # the branch in which the hub keeps every data set as Parquet
_HUB = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")


def read_parquet(path: Path) -> Columns:
    """Reads a Parquet file.

    Args:
      path: The file.

    Returns:
      The columns; with the names of classes where `datasets` has written them.

    Raises:
      ValueError: If there is no such file or it is damaged.
      ImportError: If the package `pyarrow` is missing.
    """
    check_file(path)
    return _columns(str(path), [path])


def splits_of_folder(place: str) -> dict[str, list[Path]]:
    """Finds the splits of a Hugging Face data set.

    Args:
      place: A folder that `datasets.save_to_disk` has made, or with Parquet files that are named by their splits as
        `train-00000-of-00001.parquet`; or the name of a set on the hub, "organisation/name" or
        "organisation/name/configuration".

    Returns:
      Split -> its files.

    Raises:
      ValueError: If there is nothing of the kind, or the hub cannot be reached.
      ImportError: If a package is missing.
    """
    folder = Path(place).expanduser()
    if not folder.exists() and _HUB.fullmatch(place):
        return _from_hub(place)
    if (folder / "dataset_dict.json").is_file():
        names = _json(folder / "dataset_dict.json").get("splits", [])
        return {str(name): _saved(folder / str(name)) for name in names}
    if (folder / "state.json").is_file():
        split = _json(folder / "state.json").get("_split")
        return {split or "train": _saved(folder)}
    splits = _by_name(sorted(folder.rglob("*.parquet")) if folder.is_dir() else [])
    if not splits:
        raise ValueError(
            f"{folder} is no folder of datasets.save_to_disk (with dataset_dict.json or state.json) and has no Parquet "
            "files such as train-00000-of-00001.parquet: give such a folder, or ORGANISATION/NAME of a set on the hub."
        )
    return splits


def read_files(name: str, paths: Sequence[Path]) -> Columns:
    """Reads the files of one split.

    Args:
      name: Name of the split, for messages.
      paths: Arrow or Parquet files of the same columns.

    Returns:
      The columns.

    Raises:
      ValueError: If a file is damaged.
      ImportError: If the package `pyarrow` is missing.
    """
    return _columns(name, paths)


def _saved(folder: Path) -> list[Path]:
    """Arrow files of a data set that was saved to disk, in its order."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise ValueError(f"{folder} holds indices of rows beside them: save it again after dataset.flatten_indices().")
    return [folder / str(file["filename"]) for file in state.get("_data_files", [])]


def _by_name(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Parquet files by the split that their name or their folder begins with."""
    splits: dict[str, list[Path]] = {}
    for path in paths:
        match = _PARQUET.fullmatch(path.name)
        splits.setdefault(match["split"] if match else path.parent.name, []).append(path)
    return splits


def _from_hub(place: str) -> dict[str, list[Path]]:
    """Parquet files of a set on the hub, downloaded into the hub's cache."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise ImportError(
            f'{place} is no folder, and a set on the hub needs the package huggingface_hub: pip install "jaxkd[text]".'
        ) from error
    parts = place.split("/")
    repo, wanted = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    options: dict[str, Any] = {"repo_type": "dataset", "revision": _CONVERTED}
    try:
        names = [name for name in hub.list_repo_files(repo, **options) if name.endswith(".parquet")]
        configurations = sorted({name.split("/")[0] for name in names})
        chosen = wanted or ("default" if "default" in configurations else None)
        chosen = configurations[0] if chosen is None and len(configurations) == 1 else chosen
        if chosen in configurations:
            paths: dict[str, list[Path]] = {}
            for name in sorted(n for n in names if n.startswith(f"{chosen}/")):
                split = name.split("/")[1]
                paths.setdefault(split, []).append(Path(hub.hf_hub_download(repo, name, **options)))
            return paths
    except Exception as error:  # no network, no such set, and no right to it fail in many ways
        raise ValueError(
            f"{place} is no folder, and the hub gave no data set of that name ({root_cause(error)}): give hf:FOLDER of "
            "a copy that datasets.save_to_disk has made, or parquet:PATH."
        ) from error
    raise ValueError(
        f"{repo} has the configurations {listing(configurations)}: write one behind it, such as hf:{repo}/"
        f"{configurations[0] if configurations else 'NAME'}."
    )


def _columns(name: str, paths: Sequence[Path]) -> Columns:
    """Columns of some files, one after the other."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f'{name} is read by the package pyarrow: pip install "jaxkd[parquet]".') from error
    tables = []
    for path in paths:
        check_file(path)
        try:
            if path.suffix == ".parquet":
                tables.append(pq.ParquetFile(path).read())
            else:
                with pa.OSFile(str(path), "rb") as file:
                    tables.append(pa.ipc.open_stream(file).read_all())
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read ({root_cause(error)}): copy or download it anew.") from error
    try:
        values: dict[str, list[Any]] = {}
        for table in tables:
            for field in table.column_names:
                values.setdefault(field, []).extend(table.column(field).to_pylist())
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(f"`{field}` of {name} is not UTF-8 ({root_cause(error)}): convert the set anew.") from error
    lengths = {len(column) for column in values.values()}
    if not tables or not lengths or lengths == {0}:
        raise ValueError(f"{name} is empty: give a split with at least one text.")
    if len(lengths) > 1:
        raise ValueError(f"the files of {name} have different columns: convert the set anew.")
    return Columns(name, values, (), _classes(tables[0].schema.metadata))


def _classes(metadata: Any) -> dict[str, tuple[str, ...]]:
    """Names of classes that `datasets` writes beside the columns."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            field: tuple(map(str, feature["names"]))
            for field, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError):  # not written by that library
        return {}


def _json(path: Path) -> dict[str, Any]:
    """Contents of a small JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({root_cause(error)}): copy the data set anew.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object: copy the data set anew.")
    return found
