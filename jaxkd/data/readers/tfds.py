"""Sources from TensorFlow Datasets, whose ArrayRecord files are read without TensorFlow."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxkd.data import checks
from jaxkd.data.checks import root_cause
from jaxkd.data.readers import pictures
from jaxkd.data.readers.preparing import download, quiet
from jaxkd.data.source import Source
from jaxkd.data.splits import check_sorted
from jaxkd.types import RESERVED

INFO_FILE = "dataset_info.json"
"""Name of the file that every prepared TFDS folder holds."""


class _Fields(NamedTuple):
    """Names of the features of a TFDS set that are read."""

    image: str | None
    label: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]


def from_name(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    num_classes: int | None,
    frame: pictures.Frame | None,
) -> Source:
    """Opens a TFDS set by its name; the first use downloads and prepares it.

    Args:
      name: Name with version or configuration, if any: "mnist", "mnist:3.0.1", "paws_wiki/labeled_final"; or a prepared
        folder.
      split: The split or a slice of it.
      data_dir: TFDS's data folder, or None for its default.
      num_classes: Number of classes, or None to take it from the label's feature.
      frame: Size to which images are resized, or None.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence, if the name is unknown, or if the set cannot be prepared or read.
    """
    with quiet():
        return _from_builder(name, _builder(name, data_dir), split, num_classes, frame)


def splits_of_name(name: str, data_dir: str | os.PathLike[str] | None) -> list[str]:
    """Lists the splits of a TFDS set, which is downloaded and prepared if it is not there yet.

    Args:
      name: As `from_name` takes it, or a prepared folder.
      data_dir: TFDS's data folder, or None for its default.

    Returns:
      Their names.

    Raises:
      ValueError: As `from_name` says.
    """
    return list(_builder(name, data_dir).info.splits)


def from_folder(folder: Path, split: str, num_classes: int | None, frame: pictures.Frame | None) -> Source:
    """Opens a prepared TFDS folder.

    Args:
      folder: The folder, which holds a dataset_info.json.
      split: The split or a slice of it.
      num_classes: Number of classes, or None to take it from the label's feature.
      frame: Size to which images are resized, or None.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence, if the folder is no prepared TFDS folder or cannot be read.
    """
    if not (folder / INFO_FILE).exists():
        below = sorted(str(f.parent) for depth in ("*", "*/*", "*/*/*") for f in folder.glob(f"{depth}/{INFO_FILE}"))
        hint = (
            f"did you mean {below[0]}?"
            if below
            else "give npz:PATH for an .npz file, or a folder that TFDS prepared, or folder:PATH for pictures."
        )
        if not folder.exists():
            raise ValueError(f"{folder} does not exist: {hint}")
        raise ValueError(f"{folder} is no prepared TFDS folder, it has no {INFO_FILE}: {hint}")
    with quiet():
        builder = _prepared(folder)
        return _from_builder(builder.info.full_name, builder, split, num_classes, frame)


def _prepared(folder: Path) -> Any:
    """TFDS's builder of a folder that is prepared."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(os.fspath(folder))
        builder.info.full_name  # noqa: B018  (which reads the metadata)
    except Exception as error:  # broken or very old metadata fail in many ways
        raise ValueError(f"{folder} cannot be read by TFDS ({root_cause(error)}): prepare it anew.") from error
    return builder


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """TFDS's builder of a set that is prepared, by its name or its folder."""
    with quiet():
        if (Path(name).expanduser() / INFO_FILE).exists():
            return _prepared(Path(name).expanduser())
        import tensorflow_datasets as tfds

        _register_all()
        names = tfds.list_builders(with_community_datasets=False)
        folder = None if data_dir is None else os.fspath(Path(data_dir).expanduser())
        try:
            builder = tfds.builder(name, data_dir=folder, try_gcs=False)
        except tfds.core.DatasetNotFoundError:
            near = difflib.get_close_matches(name.partition("/")[0].partition(":")[0], names)
            hint = f"did you mean {' or '.join(near)}?" if near else "tfds.list_builders() lists the names."
            place = folder or "its data folder"
            if Path(name).is_dir():
                hint = f"for the folder of that name write folder:{name} if it holds pictures."
            raise ValueError(f"TFDS knows no data set {name!r} and {place} holds none: {hint}") from None
        except Exception as error:  # builders raise errors of any kind for a version or configuration they do not have
            raise ValueError(
                f"TFDS cannot make the data set {name!r} ({root_cause(error)}): give a version and a configuration "
                "that it has, or the name alone."
            ) from error
        if not (Path(builder.data_dir) / INFO_FILE).exists():
            download(name, builder)
        return builder


def _register_all() -> None:
    """Registers all families of TFDS's data sets.

    TFDS 4.9.10 itself stops at the first family that lacks a package: without h5py it would know no text data set.
    """
    for family in ("question_answering", "structured", "summarization", "text", "translate", "vision_language"):
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{family}")


def _from_builder(name: str, builder: Any, split: str, num_classes: int | None, frame: pictures.Frame | None) -> Source:
    """Source of a prepared set."""
    import tensorflow_datasets as tfds

    if "array_record" not in {form.value for form in builder.info.available_file_formats()}:
        raise ValueError(
            f"{name} is prepared in {builder.data_dir} as {builder.info.file_format.value}, without random access: "
            "prepare it again elsewhere with file_format='array_record', or give another data_dir."
        )
    base, start, stop = checks.split_rows(name, split, {k: v.num_examples for k, v in builder.info.splits.items()})
    name = f"{name}[{split}]"
    features = builder.info.features
    fields = _choose_fields(name, features, builder.info.supervised_keys)
    classes, names = _classes_of(name, fields.label, features[fields.label], num_classes)
    channels = features[fields.image].shape[-1] if fields.image else None
    if fields.image and frame is None and None in features[fields.image].shape[:2]:
        raise ValueError(
            f"the images of {name} vary in shape, {features[fields.image].shape}: give image_size=(height, width) "
            "(--image-size) to have them resized."
        )
    chosen = [fields.label, *fields.texts, *fields.numbers, *([fields.image] if fields.image else [])]
    # Images are taken as their files' bytes, so that Pillow decodes and resizes them, and no other feature is decoded.
    parser = tfds.features.FeaturesDict(
        {key: tfds.features.Text() if key == fields.image else features[key] for key in chosen}
    )
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        records = builder.as_data_source(split=base, deserialize_method=raw, file_format="array_record")
        first, _ = (parser.deserialize_example_np(r) for r in records.__getitems__([start, stop - 1]))
    except Exception as error:  # missing, truncated or foreign files fail in many ways
        raise ValueError(
            f"the files of {name} in {builder.data_dir} cannot be read ({root_cause(error)}): delete that folder and "
            "prepare it anew."
        ) from error
    shape = _decoded(name, first[fields.image], start, channels, frame).pixels.shape if fields.image else None

    def parsed(numbers: np.ndarray) -> list[Mapping[str, Any]]:
        return [parser.deserialize_example_np(record) for record in records.__getitems__(numbers.tolist())]

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        numbers = start + checks.check_rows(name, rows, stop - start)
        try:
            examples = parsed(numbers)
        except Exception as error:  # torn records fail in many ways
            raise ValueError(_unreadable(name, numbers, parsed, builder.info.splits[base], error)) from error
        return _stack(name, examples, fields, numbers.astype(np.int32), classes, shape, frame)

    if stop - start < builder.info.splits[base].num_examples:
        check_sorted(name, split, _some_labels(parsed, fields.label, builder.info.splits[base].num_examples))
    return Source(name, stop - start, classes, shape, read, start, class_names=names)


def _classes_of(name: str, label: str, feature: Any, num_classes: int | None) -> tuple[int, tuple[str, ...]]:
    """Number of classes of a label's feature, and their names if it has as many."""
    classes = num_classes or getattr(feature, "num_classes", None)
    if not classes:
        raise ValueError(f"{name} does not say how many classes `{label}` has: give num_classes.")
    names = tuple(getattr(feature, "names", None) or ())
    return classes, names if len(names) == classes else ()


def _some_labels(parsed: Callable[[np.ndarray], list[Mapping[str, Any]]], label: str, size: int) -> np.ndarray:
    """Labels of some rows spread over a whole split; none if one of them is damaged, which its reading will say."""
    rows = np.arange(size) if size <= 64 else np.unique(np.random.RandomState(0).randint(0, size, 64))
    try:
        return np.array([int(example[label]) for example in parsed(rows)])
    except Exception:  # torn records fail in many ways
        return np.zeros(0, np.int64)


def _decoded(
    name: str, encoded: bytes, row: int, channels: int | None, frame: pictures.Frame | None
) -> pictures.Picture:
    """One image, or an error that names its row."""
    originals = "the files that the set was prepared from"
    advice = f"replace it in {originals} and prepare it anew, or choose a split without that row"
    return pictures.decode_or_explain(encoded, channels, frame, name=f"the image in row {row} of {name}", advice=advice)


def _unreadable(
    name: str, numbers: np.ndarray, parsed: Callable[[np.ndarray], Any], info: Any, error: Exception
) -> str:
    """Error message about rows that could not be read; names the first unreadable row and its file."""
    for number in numbers:
        try:
            parsed(np.array([number]))
        except Exception as found:
            error = found
            break
    else:
        return (
            f"rows {numbers.tolist()} of {name} could not be read ({root_cause(error)}) but can be now: run the same "
            "command again, and check the disk or network that holds them if the error comes back."
        )
    file = info.filepaths[int(np.searchsorted(np.cumsum(info.shard_lengths), number, side="right"))]
    return (
        f"row {number} of {name} cannot be read from {file} ({root_cause(error)}): copy that file anew, delete its "
        "folder and prepare the set again, or choose a split without that row."
    )


def _choose_fields(name: str, features: Mapping[str, Any], supervised: Any) -> _Fields:
    """Chooses image, label, texts and further numbers of fixed shape among a set's features."""
    import tensorflow_datasets as tfds

    kinds = tfds.features
    found = list(features.items()) if isinstance(features, kinds.FeaturesDict) else []
    tensors = {k: f for k, f in found if isinstance(f, kinds.Tensor) and None not in f.shape}
    decoded = [k for k, f in found if isinstance(f, kinds.Image) and f.np_dtype == np.uint8]
    integers = [k for k, f in tensors.items() if np.issubdtype(f.np_dtype, np.integer) and f.shape == ()]
    pair = supervised if isinstance(supervised, tuple) and len(supervised) == 2 else (None, None)
    label = _one_of(("label", pair[1]), integers, [k for k in integers if isinstance(tensors[k], kinds.ClassLabel)])
    image = _one_of(("image", pair[0]), decoded, decoded)
    texts = () if image else tuple(k for k, f in tensors.items() if f.np_dtype == np.object_ and f.shape == ())
    if label is None or not (image or texts):
        raise ValueError(
            f"{name} has no {'class label' if label is None else 'image and no text'}: its features are "
            f"{checks.listing([k for k, _ in found])}, and one image or text and one integer label are needed: choose "
            "another set, or give its arrays as npz:PATH."
        )
    numbers = tuple(
        k
        for k, f in tensors.items()
        if k != label and k not in RESERVED and f.np_dtype != np.object_ and k not in ("image", "label")
    )
    return _Fields(image, label, texts, numbers)


def _one_of(preferred: tuple[str | None, ...], allowed: list[str], otherwise: list[str]) -> str | None:
    """First preferred name that is allowed, else the only other candidate, else None."""
    named = [key for key in preferred if key in allowed]
    return named[0] if named else (otherwise[0] if len(otherwise) == 1 else None)


def _stack(
    name: str,
    examples: list[Mapping[str, Any]],
    fields: _Fields,
    ids: np.ndarray,
    num_classes: int,
    shape: tuple[int, ...] | None,
    frame: pictures.Frame | None,
) -> dict[str, np.ndarray]:
    """Checked batch of some examples."""
    label = np.array([example[fields.label] for example in examples])
    checks.check_labels(name, label, ids, num_classes)
    batch = {"label": label.astype(np.int32), "id": ids}
    if fields.image is not None and shape is not None:
        decoded = [
            _decoded(name, example[fields.image], row, shape[-1], frame)
            for row, example in zip(ids, examples, strict=True)
        ]
        for row, picture in zip(ids, decoded, strict=True):
            checks.check_image(name, row, picture.pixels.shape, shape)
        batch |= pictures.stack(decoded, frame)
    for field in fields.texts:
        batch[field] = np.array([example[field] for example in examples], object)
    for field in fields.numbers:
        batch[field] = np.stack([np.asarray(example[field]) for example in examples])
        checks.check_finite(name, field, batch[field], ids)
        checks.check_int32(name, field, batch[field], ids)
    return batch
