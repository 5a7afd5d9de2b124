"""Paths such as "student.pooled" or "batch.label", and the arrays that stand at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxkd.types import Batch, Outputs


def pick(outputs: Outputs, name: str, whose: str) -> Any:
    """Feature of a model by its name.

    Args:
      outputs: A model's outputs, or their abstract shapes.
      name: Name of the feature; "logits" means the logits.
      whose: "student" or "teacher", for the message.

    Returns:
      Array [B, ...].

    Raises:
      ValueError: If the model has no feature of that name.
    """
    if name == "logits" and outputs.logits is not None:
        return outputs.logits
    if name not in outputs.features:
        if outputs.logits is None:
            raise ValueError(f"this term reads {name!r} of the {whose}, but there is no {whose}: give one to the step.")
        known = ", ".join(f"{k} {tuple(v.shape)}" for k, v in outputs.features.items()) or "none"
        raise ValueError(f"the {whose} has no feature {name!r}: choose one of those it has: {known}.")
    return outputs.features[name]


def last_layer(outputs: Outputs, whose: str) -> Any:
    """Last layer of a model, which `models.with_head` adds to its outputs.

    Args:
      outputs: The model's outputs.
      whose: "student" or "teacher", for the message.

    Returns:
      Kernel and perhaps bias, by name.

    Raises:
      ValueError: If the outputs have no last layer.
    """
    if outputs.head is None:
        raise ValueError(f"the {whose} does not tell its last layer: give the step models.with_head({whose}).")
    return outputs.head


def read_field(batch: Batch, name: str) -> Any:
    """Field of a batch by its name; raises ValueError that lists the fields if there is none."""
    if name not in batch:
        raise ValueError(f"the batch has no field {name!r}: it has {', '.join(sorted(batch))}; add it in the pipeline.")
    return batch[name]


def features_of(whose: str, names: Sequence[str]) -> list[str]:
    """Paths of several features of one side ("student" or "teacher"), which are one argument of a loss: a list."""
    return [f"{whose}.{name}" for name in names]


def check_paths(paths: Sequence[str | Sequence[str]]) -> None:
    """Raises ValueError unless each path begins with "student.", "teacher." or "batch."."""
    for path in (p for given in paths for p in ([given] if isinstance(given, str) else given)):
        if path.split(".", 1)[0] not in ("student", "teacher", "batch") or "." not in path:
            raise ValueError(f"{path!r} is no path: write student.<feature>, teacher.<feature> or batch.<field>.")


def read_paths(paths: Sequence[str | Sequence[str]], student: Outputs, teacher: Outputs, batch: Batch) -> list[Any]:
    """Arrays at the paths, in order; a list of arrays for a sequence of paths."""

    def read(path: str | Sequence[str]) -> Any:
        if not isinstance(path, str):
            return [read(p) for p in path]
        whose, name = path.split(".", 1)
        if whose == "batch":
            return read_field(batch, name)
        return pick(student if whose == "student" else teacher, name, whose)

    return [read(path) for path in paths]
