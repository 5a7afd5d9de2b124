"""Names of arrays: which split and which field each of them is, by the conventions of various authors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.data.checks import listing
from jaxkd.data.splits import say

INPUTS = ("image", "tokens")
"""Fields that a network reads, besides texts."""

_SPLITS = "train|training|validation|valid|val|dev|eval|test|testing"
_IMAGES = ("images", "x", "data", "img", "imgs")
_LABELS = ("labels", "y", "targets")
_TARGET = "target"  # a label beside arrays called `data` or `x`; beside an `image` it is a further field
_PREFIXED = re.compile(rf"(?P<split>{_SPLITS})_(?P<field>\w+)", re.IGNORECASE)
_SUFFIXED = re.compile(
    rf"(?P<field>image|label|tokens|target|{'|'.join((*_IMAGES, *_LABELS))})_(?P<split>{_SPLITS})", re.IGNORECASE
)
_KERAS = re.compile(r"(?P<field>[xy])_(?P<split>\w+)", re.IGNORECASE)


def splits_of(name: str, arrays: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorts arrays into splits and gives images and labels their names.

    Args:
      name: Name of the data set, for messages.
      arrays: Name -> array. `image` and `label` (or `images`, `labels`, `x`, `y`, ...) are one split, "train";
        `train_image`, `train_label`, `test_image`, ... and `x_train`, `y_train`, `x_test`, ... are several.

    Returns:
      Split -> field -> array.

    Raises:
      ValueError: If a name is no text, or if two arrays could be the same field.
    """
    if odd := [key for key in arrays if not isinstance(key, str)]:
        raise ValueError(f"{name} has an array under {odd[0]!r}, which is no text: name it, such as `image`.")
    whole = _renamed(name, arrays)
    # MNIST's `train_label` and `x_train` belong to splits, unless there is an array that is of none.
    found = {} if {"label", *INPUTS} & set(whole) else {key: m for key in arrays if (m := _match(key))}
    if not found:
        return {"train": whole}
    splits: dict[str, dict[str, Any]] = {}
    for key, m in found.items():
        splits.setdefault(m["split"].lower() if m.re is not _KERAS else m["split"], {})[m["field"]] = arrays[key]
    if rest := [key for key in arrays if key not in found]:
        say(f"{name} has arrays that belong to no split, which are left out: {listing(rest)}.")
    return {split: _renamed(f"{name}[{split}]", fields) for split, fields in splits.items()}


def label_names(names: Iterable[str]) -> list[str]:
    """Names, among those of a file's arrays, that may be the labels.

    Args:
      names: All names.

    Returns:
      Some of them.
    """
    last = (*_LABELS, "label", _TARGET)
    return [key for key in names if key.lower() in last or ((m := _match(key)) and m["field"].lower() in last)]


def _match(key: str) -> re.Match[str] | None:
    """Split and field in a name, or None if it names no split."""
    return _PREFIXED.fullmatch(key) or _SUFFIXED.fullmatch(key) or _KERAS.fullmatch(key)


def _renamed(name: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of one split, of which those with another usual name of `image` or `label` get these names."""
    by_other_name = not any(key in arrays for key in INPUTS)
    new: dict[str, str] = {}
    for field, others in (("image", _IMAGES), ("label", (*_LABELS, *([_TARGET] if by_other_name else [])))):
        have = [] if field in arrays else [key for key in arrays if key.lower() in (field, *others)]
        if field == "image" and not by_other_name:
            have = []
        if len(have) > 1:
            raise ValueError(
                f"{name} has several arrays that may be its `{field}`s ({listing(have)}): name one of them {field}."
            )
        new |= dict.fromkeys(have, field)
    return {new.get(key, key): value for key, value in arrays.items()}
