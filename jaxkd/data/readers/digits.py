"""Scikit-learn's handwritten digits, prepared as a TFDS data set without a network."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.checks import root_cause
from jaxkd.data.readers.preparing import quiet

SIZES = {"train": 1000, "validation": 297, "test": 500}
"""Split -> number of its images; 1,797 in all."""

_VERSION = "1.0.0"
_SEED = 1797


def prepare_digits(data_dir: str | os.PathLike[str]) -> Path:
    """Prepares scikit-learn's 1,797 digits as ArrayRecord files, unless an earlier call has done so.

    Images are uint8 [8, 8, 1], the original 0..16 scaled to 0..255. The splits are fixed and stratified. Every slice
    of `train` from its start holds all classes equally often, to within one image.

    Args:
      data_dir: Folder under which digits/1.0.0 is made.

    Returns:
      The prepared folder, for `open_source`.

    Raises:
      ValueError: In one sentence, if the folder cannot be written or is full; no unfinished data set is left there.

    Reference:
      Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
      https://doi.org/10.24432/C50P49
    """
    folder = Path(data_dir).expanduser() / "digits" / _VERSION
    if _is_prepared(folder):
        return folder
    try:
        with quiet():
            _builder_class()(data_dir=os.fspath(folder.parents[1])).download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as a RuntimeError
        # Another process may have finished the same folder first, which makes the renaming fail.
        if not _is_prepared(folder):
            raise ValueError(
                f"the digits cannot be prepared in {folder} ({root_cause(error)}): see that the folder can be written "
                "and that the disk is not full, or give another data_dir."
            ) from error
    if not _is_prepared(folder):
        raise ValueError(f"{folder} exists but holds no whole data set: delete it to have the digits prepared again.")
    return folder


def _is_prepared(folder: Path) -> bool:
    """Tests if TFDS has finished a folder: it gets its name only when both files are in it."""
    return all((folder / name).is_file() for name in ("dataset_info.json", "features.json"))


def split_rows() -> dict[str, np.ndarray]:
    """Stratified splits of scikit-learn's digits.

    Returns:
      Split -> row numbers, in the order in which they are written.
    """
    from sklearn.datasets import load_digits

    labels = load_digits().target
    # RandomState's stream is frozen for good, unlike the newer generators'.
    rows = np.random.RandomState(_SEED).permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    splits: dict[str, np.ndarray] = {}
    for split in ("test", "validation"):
        # Of the rows sorted by class every (N / n)-th is taken: n in all, of each class in proportion to within one.
        steps = np.arange(len(rows) + 1) * SIZES[split] // len(rows)
        taken = np.diff(steps).astype(bool)
        splits[split], rows = rows[taken], rows[~taken]
    splits["train"] = rows
    return {split: _round_robin(splits[split], labels) for split in SIZES}


def _round_robin(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rows in an order in which the classes alternate."""
    own = labels[rows]
    turn = np.zeros(len(rows), np.int64)
    for label in np.unique(own):
        turn[own == label] = np.arange((own == label).sum())
    return rows[np.lexsort((own, turn))]


def _png(pixels: np.ndarray) -> io.BytesIO:
    """Digit as a PNG file; TFDS would need TensorFlow to encode the array."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.round(pixels * (255 / 16)).astype(np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


@functools.cache
def _builder_class() -> Any:
    """TFDS builder of the digits, defined once and only when it is needed, since TFDS is slow to import."""
    import tensorflow_datasets as tfds
    from sklearn.datasets import load_digits

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """Handwritten digits of 8 by 8 pixels, from scikit-learn."""

        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            del dl_manager
            return {split: self._generate_examples(rows) for split, rows in split_rows().items()}

        def _generate_examples(self, rows: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            digits = load_digits()
            for place, row in enumerate(rows):
                yield place, {"image": _png(digits.images[row]), "label": int(digits.target[row])}

    return Digits
