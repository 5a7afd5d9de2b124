"""Opening of a data set by its name, path or arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias, get_args

from jaxkd.data.checks import is_whole, path_of
from jaxkd.data.readers import arrays, folders, npz, tar, tfds
from jaxkd.data.readers.pictures import Fit, Frame
from jaxkd.data.source import Source

Spec: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"
"""Name, path or contents of a data set, as `open_source` takes it."""

_LARGEST = 1 << 15  # pixels of a side, beyond which not even one image fits into memory


def open_source(
    spec: Spec,
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    fit: Fit = "stretch",
    ignore: float | None = None,
) -> Source:
    """Opens a data set as a source, whose rows are read by number.

    Args:
      spec: One of
        - a TFDS name ("mnist", "mnist:3.0.1", "paws_wiki/labeled_final"), downloaded and prepared at the first use;
        - a prepared TFDS folder, which holds a dataset_info.json;
        - "npz:PATH", a file of arrays, where PATH may contain "{split}";
        - "folder:PATH", a folder of pictures PATH/split/class/picture, PATH/class/picture (one split, "train"), or
          without folders of classes, which gives unlabelled pictures;
        - "tar:PATH", shards of pictures as WebDataset has them, KEY.jpg beside KEY.cls or KEY.json: a file, a name such
          as "tar:PATH-{000..009}.tar", in which "{split}" may stand for the split, or a folder of shards;
        - a mapping of arrays.
        Arrays, also those in a file, are named `image` and `label` (one split, "train"), or `x_train`, `y_train`,
        `x_test`, ..., or `train_image`, `train_label`, `test_image`, ...; texts and further arrays have other names.
        `images`, `x`, `data` stand for `image`; `labels`, `y`, `targets` for `label`. Labels decide the source's task:
        integers [N] or [N, 1] are classes, 0 and 1 [N, K] are several labels, floats are numbers to regress on; without
        labels the source is unlabelled.
      split: "train", "train[:90%]", "train[100:200]", ... Percentages of arrays and all slices of a folder are drawn
        from each class in proportion, always the same rows. Row numbers of arrays, and all slices of TFDS sets, count
        in the order in which they are stored.
      data_dir: Folder in which TFDS keeps its data; TFDS's default, ~/tensorflow_datasets, if None.
      num_classes: Number of classes, for sources that do not say it; of arrays by default the largest label of all
        splits plus one.
      image_size: Height and width, or one number for both, to which images are resized; needed for pictures of various
        shapes.
      fit: How images of another shape are resized. "stretch" resizes both sides to `image_size` and adds the field
        `aspect`, the width over the height of the original, from which `jaxkd.augment.random_resized_crop` cuts windows
        that are not distorted. "crop" keeps the aspect ratio and crops the longer side to its middle, as ImageNet is
        usually evaluated.
      ignore: Label of arrays that says that there is none, such as -1, 255, -100 or NaN. Metrics by the source's
        task leave it out; a term does by `objectives.from_labels(..., ignore=...)`. None if every label is one.

    Returns:
      The source.

    Raises:
      ValueError: In one sentence: unknown name or split, empty split, no network, unsupported format, images of
        different shapes, labels outside the classes, NaN or Inf, missing arrays or arrays of different lengths.
        What is left out or missing, such as files of other kinds or a class without an example, is logged as a warning.
    """
    size = _size(image_size)
    if fit not in get_args(Fit):
        raise ValueError(f"fit is {fit!r}: give {' or '.join(map(repr, get_args(Fit)))}.")
    frame = None if size is None else Frame(*size, fit)
    if num_classes is not None and (not is_whole(num_classes) or num_classes < 1):
        raise ValueError(f"num_classes is {num_classes!r}: give an integer of at least 1.")
    if not isinstance(split, str):
        raise ValueError(f"split is {split!r}: give a name such as 'train' or 'train[:90%]'.")
    if isinstance(spec, Mapping):
        return arrays.from_arrays("arrays", spec, split, num_classes, frame, ignore)
    if not isinstance(spec, (str, os.PathLike)):
        raise ValueError(
            f"a data set was given as {type(spec).__name__}: give a name, a path such as 'folder:PATH', or a dict of "
            "arrays such as {'image': ..., 'label': ...}."
        )
    text = os.fspath(spec)
    text = text.decode() if isinstance(text, bytes) else text
    kind, _, place = text.partition(":")
    if kind.lower() == "npz":
        return npz.from_npz(place, split, num_classes, frame, ignore)
    if ignore is not None:
        raise ValueError(f"ignore is {ignore}, but labels of {text} cannot be missing: give arrays or npz:PATH.")
    if kind.lower() == "folder":
        return folders.from_pictures(path_of(place), split, num_classes, frame)
    if kind.lower() == "tar":
        return tar.from_shards(place, split, num_classes, frame)
    if text.endswith(".tar"):
        raise ValueError(f"{text} is named like a shard of pictures: write tar:{text}.")
    if "://" in text:
        raise ValueError(f"{text} is an address: download it, and give npz:PATH or folder:PATH of the copy.")
    if text.endswith(".npz"):
        raise ValueError(f"{text} is named like a file of arrays: write npz:{text}.")
    path = path_of(text)
    is_path = isinstance(spec, os.PathLike) or text.startswith((".", "~", os.sep)) or (path.is_dir() and os.sep in text)
    if path.is_file():
        raise ValueError(
            f"{text} is a file: give npz:PATH of a file of arrays, or folder:PATH of a folder of pictures."
        )
    if is_path or (path / tfds.INFO_FILE).exists():
        if not (path / tfds.INFO_FILE).exists() and folders.holds_pictures(path):
            raise ValueError(f"{text} is a folder of pictures: write folder:{text}.")
        return tfds.from_folder(path, split, num_classes, frame)
    return tfds.from_name(text, split, data_dir, num_classes, frame)


def _size(image_size: Any) -> tuple[int, int] | None:
    """Height and width to which images are resized."""
    if image_size is None:
        return None
    sides = (image_size, image_size) if is_whole(image_size) else image_size
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(is_whole(s) and s > 0 for s in sides):
        raise ValueError(f"image_size is {image_size}: give one positive number or (height, width).")
    if max(sides) > _LARGEST:
        raise ValueError(f"image_size is {image_size}: give at most {_LARGEST} pixels a side.")
    height, width = map(int, sides)
    return height, width
