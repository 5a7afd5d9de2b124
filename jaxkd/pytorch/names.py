"""How the tensors of a PyTorch state dict are called here, and the way back, by short tables of rules.

A rule pairs two templates. Holes such as {b}, {b+1} or {3*b} stand for a number on either side, so that one rule says
how all blocks of a network are called, in both directions.
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
"""Last part of a name there -> what it may be here: weights are kernels of layers and scales of norms."""


class Rule(NamedTuple):
    """What a layer or a single parameter is called.

    Attributes:
      theirs: "layer{s}.{b}.conv{n}", a name in PyTorch without the leaf (weight, bias, ...). A name that ends in "_" is
        joined to its leaf without a dot.
      ours: "stage{s}_block{b+1}/conv{n}", a path in params and running statistics without the leaf (kernel, scale,
        ...); several paths are layers that stand one after the other in the tensor's first axis.
      ones: How many axes of length one follow the tensor's others there and not here.
    """

    theirs: str
    ours: str | tuple[str, ...]
    ones: int = 0


class Place(NamedTuple):
    """Where a tensor belongs.

    Attributes:
      paths: One for each part of the tensor, which is split along its first axis.
      ones: As in `Rule`.
    """

    paths: tuple[str, ...]
    ones: int


class Name(NamedTuple):
    """What a parameter or running statistic is called in PyTorch.

    Attributes:
      theirs: Name of the tensor.
      part: Which of its parts this is.
      ones: As in `Rule`.
    """

    theirs: str
    part: int
    ones: int


def place(rules: Sequence[Rule], name: str) -> tuple[Place, ...]:
    """Finds what a tensor is called here.

    Args:
      rules: The first that fits holds.
      name: Its name in PyTorch.

    Returns:
      The places it may belong to, which differ in what a weight is; none if no rule fits.
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
    """Finds what a parameter or a running statistic is called in PyTorch.

    Args:
      rules: The first that fits holds.
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
    """Values of the letters in a template's holes, if the text can come from it."""
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
