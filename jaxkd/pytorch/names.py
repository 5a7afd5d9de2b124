"""Names of a PyTorch state dict's tensors and of a model's parameters, translated by short tables of rules.

A rule pairs two templates. Holes such as {b}, {b+1} or {3*b} stand for a number on either side, so that one rule names
all blocks of a network, in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_HOLE = re.compile(r"\{(?:(\d+)\*)?([a-z])(?:\+(\d+))?\}")
_LEAVES = {
    "weight": ("kernel", "scale"),
    "bias": ("bias",),
    "running_mean": ("mean",),
    "running_var": ("var",),
}
"""Last part of a name in PyTorch -> last parts here: a weight is the kernel of a layer or the scale of a norm."""


class Rule(NamedTuple):
    """Names of a layer, or of a single parameter, in PyTorch and here.

    Attributes:
      theirs: "layer{s}.{b}.conv{n}", a name in PyTorch without the leaf (weight, bias, ...). A name that ends in "_" is
        joined to its leaf without a dot.
      ours: "stage{s}_block{b+1}/conv{n}", a path in params and running statistics without the leaf (kernel, scale,
        ...); several paths are layers that stand one after the other in the tensor's first axis.
      ones: Number of axes of length one that the tensor has at its end in PyTorch alone.
    """

    theirs: str
    ours: str | tuple[str, ...]
    ones: int = 0


class Place(NamedTuple):
    """Place of a tensor in a model.

    Attributes:
      paths: Paths of its parts, into which it is split along its first axis.
      ones: As in `Rule`.
    """

    paths: tuple[str, ...]
    ones: int


class Name(NamedTuple):
    """Name in PyTorch of a parameter or running statistic.

    Attributes:
      theirs: Name of the tensor.
      part: Number of the part of that tensor.
      ones: As in `Rule`.
    """

    theirs: str
    part: int
    ones: int


def place(rules: Sequence[Rule], name: str) -> tuple[Place, ...]:
    """Finds the places that a tensor of PyTorch may have in a model.

    Args:
      rules: The first rule that fits is taken.
      name: Its name in PyTorch.

    Returns:
      The places, one for each meaning of `weight` (kernel, scale); none if no rule fits.
    """
    leaf = next((x for x in _LEAVES if re.search(rf"[._]{x}$", name)), "")
    stem = name.removesuffix(leaf).removesuffix(".") if leaf else name
    for rule in rules:
        numbers = _match(rule.theirs, stem)
        if numbers is not None:
            paths = [_fill(ours, numbers) for ours in ((rule.ours,) if isinstance(rule.ours, str) else rule.ours)]
            ends = [f"/{kind}" for kind in _LEAVES[leaf]] if leaf else [""]
            return tuple(Place(tuple(path + end for path in paths), rule.ones) for end in ends)
    return ()


def name_of(rules: Sequence[Rule], path: str) -> Name | None:
    """Finds the name in PyTorch of a parameter or running statistic.

    Args:
      rules: The first rule that fits is taken.
      path: Its path here, with the leaf.

    Returns:
      Its name, None if no rule fits.
    """
    before, _, last = path.rpartition("/")
    leaf = next((theirs for theirs, ours in _LEAVES.items() if last in ours), "")
    for rule in rules:
        for part, ours in enumerate((rule.ours,) if isinstance(rule.ours, str) else rule.ours):
            numbers = _match(ours, before if leaf else path)
            if numbers is not None:
                name = _fill(rule.theirs, numbers)
                dot = "." if leaf and not name.endswith("_") else ""
                return Name(f"{name}{dot}{leaf}", part, rule.ones)
    return None


def _match(template: str, text: str) -> dict[str, int] | None:
    """Values of the letters in a template's holes for a text, or None if it does not fit."""
    pieces = _HOLE.split(template)  # text, factor, letter, offset, text, ...
    found = re.fullmatch(r"(\d+)".join(map(re.escape, pieces[::4])), text)
    if found is None:
        return None
    values: dict[str, int] = {}
    for number, factor, letter, offset in zip(found.groups(), pieces[1::4], pieces[2::4], pieces[3::4], strict=True):
        value, rest = divmod(int(number) - int(offset or 0), int(factor or 1))
        if rest or value < 0 or values.setdefault(letter, value) != value:
            return None
    return values


def _fill(template: str, values: Mapping[str, int]) -> str:
    return _HOLE.sub(lambda hole: str(int(hole[1] or 1) * values[hole[2]] + int(hole[3] or 0)), template)
