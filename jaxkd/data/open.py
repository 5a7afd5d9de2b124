"""Opening of a data set by its name, path or arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias, get_args

from jaxkd.data.readers import arrays, folders, tfds
from jaxkd.data.readers.pictures import Fit, Frame
from jaxkd.data.source import Source

Spec: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"
"""Name, path or contents of a data set, as `open_source` takes it."""


def open_source(
    spec: Spec,
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    fit: Fit = "stretch",
) -> Source:
    """Opens a data set as a source, whose rows are read by number.

    Args:
      spec: One of
        - a TFDS name ("mnist", "mnist:3.0.1", "paws_wiki/labeled_final"), downloaded and prepared at the first use;
        - a prepared TFDS folder, which holds a dataset_info.json;
        - "npz:PATH", a file of arrays, where PATH may contain "{split}";
        - "folder:PATH", a folder of pictures PATH/split/class/picture;
        - a mapping of arrays.
        Arrays, also those in a file, are named `image` and `label` (one split, "train"), or `x_train`, `y_train`,
        `x_test`, ..., or `train_image`, `train_label`, `test_image`, ...; texts and further arrays have other names.
      split: "train", "train[:90%]", "train[100:200]", ...
      data_dir: Folder in which TFDS keeps its data; TFDS's default, ~/tensorflow_datasets, if None.
      num_classes: Number of classes, for sources that do not say it; of arrays by default the largest label of all
        splits plus one.
      image_size: Height and width, or one number for both, to which images are resized; needed for pictures of various
        shapes.
      fit: How images of another shape are resized. "stretch" resizes both sides to `image_size` and adds the field
        `aspect`, the width over the height of the original, from which `jaxkd.augment.random_resized_crop` cuts windows
        that are not distorted. "crop" keeps the aspect ratio and crops the longer side to its middle, as ImageNet is
        usually evaluated.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence: unknown name or split, empty split, no network, unsupported format, images of
        different shapes, labels outside the classes, NaN or Inf, missing arrays or arrays of different lengths.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"image_size is {image_size}: give one positive number or (height, width).")
    if fit not in get_args(Fit):
        raise ValueError(f"fit is {fit!r}: give {' or '.join(map(repr, get_args(Fit)))}.")
    frame = None if size is None else Frame(*size, fit)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: give at least 1.")
    if isinstance(spec, Mapping):
        return arrays.from_arrays("arrays", spec, split, num_classes, frame)
    text = os.fspath(spec)
    if text.startswith("npz:"):
        return arrays.from_npz(text.removeprefix("npz:"), split, num_classes, frame)
    if text.startswith("folder:"):
        return folders.from_pictures(Path(text.removeprefix("folder:")).expanduser(), split, num_classes, frame)
    if text.endswith(".npz"):
        raise ValueError(f"{text} is named like a file of arrays: write npz:{text}.")
    path = Path(text).expanduser()
    if isinstance(spec, os.PathLike) or text.startswith((".", "~", os.sep)) or (path / tfds.INFO_FILE).exists():
        return tfds.from_folder(path, split, num_classes, frame)
    return tfds.from_name(text, split, data_dir, num_classes, frame)
