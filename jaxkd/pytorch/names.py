"""Names of a PyTorch state dict's tensors and of a model's parameters, translated by short tables of rules.

A rule pairs two templates. Holes such as {b}, {b+1} or {3*b} stand for a number on either side, so that one rule names
all blocks of a network, in both directions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

_HOLE = re.compile(r"\{(?:(\d+)\*)?([a-z])(?:\+(\d+))?\}")
_LEAVES = {
    "weight": ("kernel", "scale", "embedding"),
    "bias": ("bias",),
    "running_mean": ("mean",),
    "running_var": ("var",),
    "gamma": ("scale",),
    "beta": ("bias",),
    "scale": ("scale",),
}
"""Last part of a name in PyTorch -> last parts here: a weight is the kernel of a layer, the scale of a norm, or an
embedding. Where several have the same meaning, the first one is written."""


class Rule(NamedTuple):
    """Names of a layer, or of a single parameter, in PyTorch and here.

    Attributes:
      theirs: "layer{s}.{b}.conv{n}", a name in PyTorch without the leaf (weight, bias, ...), or with it for that
        parameter alone ("norm.weight", "cls_token"). A name that ends in "_" is joined to its leaf without a dot.
      ours: "stage{s}_block{b+1}/conv{n}", a path in params and running statistics without the leaf (kernel, scale,
        embedding, bias, mean, var), or with it for that parameter alone; several paths are layers that stand one after
        the other in the tensor's first axis. A side without the leaf takes it from the other one.
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


def check_rules(rules: Sequence[Rule]) -> None:
    """Raises ValueError or TypeError for rules that could never be followed.

    Args:
      rules: The rules.

    Raises:
      TypeError: If they are no sequence of `Rule`.
      ValueError: If a hole is misspelt, or a letter stands on one side alone.
    """
    if isinstance(rules, Rule) or not all(isinstance(rule, Rule) for rule in rules):
        raise TypeError("the rules should be a sequence of pytorch.Rule, such as (Rule('fc', 'head'),).")
    for rule in rules:
        letters = [{h[1] for h in _HOLE.findall(t)} for t in (rule.theirs, *_paths(rule))]
        left = "".join(_HOLE.sub("", t) for t in (rule.theirs, *_paths(rule)))
        if "{" in left or "}" in left or any(found != letters[0] for found in letters):
            raise ValueError(
                f"{rule} does not say which numbers stand on both sides: write holes such as {{b}}, {{b+1}} or "
                "{{3*b}}, with the same letters on either side."
            )


def place(rules: Sequence[Rule], name: str) -> tuple[Place, ...]:
    """Finds the places that a tensor of PyTorch may have in a model.

    Args:
      rules: The first rule that fits is taken.
      name: Its name in PyTorch.

    Returns:
      The places, one for each meaning of the name's last part (a weight is a kernel, a scale or an embedding); none if
      no rule fits.
    """
    leaf = next((x for x in _LEAVES if re.search(rf"[._]{x}$", name)), "")
    stem = name.removesuffix(leaf).removesuffix(".")
    kinds = _LEAVES.get(leaf, ())
    for rule in rules:
        for text in (name, stem) if leaf else (name,):
            numbers = _match(rule.theirs, text)
            if numbers is not None:
                paths = tuple(_fill(ours, numbers) for ours in _paths(rule))
                whole = text == name or all(_split(path)[1] in kinds for path in paths)
                ends = ("",) * whole + tuple(f"/{kind}" for kind in kinds)
                return tuple(Place(tuple(path + end for path in paths), rule.ones) for end in ends)
    return ()


def names_of(rules: Sequence[Rule], path: str) -> tuple[Name, ...]:
    """Finds the names that a parameter or running statistic may have in PyTorch.

    Args:
      rules: The first rule that fits is taken.
      path: Its path here, with the leaf.

    Returns:
      Its names, the usual one first; none if no rule fits.
    """
    before, last = _split(path)
    leaves = [theirs for theirs, ours in _LEAVES.items() if last in ours]
    for rule in rules:
        for part, ours in enumerate(_paths(rule)):
            for text in (before, path) if leaves else (path,):
                numbers = _match(ours, text)
                if numbers is None:
                    continue
                name = _fill(rule.theirs, numbers)
                if not leaves or name.rpartition(".")[2] in leaves:
                    return (Name(name, part, rule.ones),)
                if text == path or name.rpartition(".")[2] not in _LEAVES or "." not in name:
                    dot = "" if name.endswith("_") else "."
                    found = [f"{name}{dot}{leaf}" for leaf in leaves] + [name] * (text == path)
                    return tuple(Name(x, part, rule.ones) for x in found)
    return ()


def name_of(rules: Sequence[Rule], path: str) -> Name | None:
    """Finds the usual name in PyTorch of a parameter or running statistic.

    Args:
      rules: The first rule that fits is taken.
      path: Its path here, with the leaf.

    Returns:
      Its name, None if no rule fits.
    """
    return next(iter(names_of(rules, path)), None)


def prefixes(rules: Sequence[Rule], names: Collection[str], wanted: Collection[str] | None = None) -> dict[str, int]:
    """Finds the prefixes, such as "backbone.", below which the tensors have a place in a model.

    Args:
      rules: The first rule that fits is taken.
      names: Names of the tensors in PyTorch.
      wanted: Paths of the model's parameters and statistics; any if None.

    Returns:
      The prefixes below which most tensors have a place, the shortest first, and the number of those: several prefixes
      if they are equally good.
    """

    def fitting(name: str) -> tuple[str, ...]:
        ways = (p.paths for p in place(rules, name))
        return next((paths for paths in ways if wanted is None or all(path in wanted for path in paths)), ())

    fits = {"": {path for name in names for path in fitting(name)}}
    if not all(map(fitting, names)):
        for name in names:
            for dot in re.finditer(r"\.", name):
                fits.setdefault(name[: dot.end()], set()).update(fitting(name[dot.end() :]))
    best = max(map(len, fits.values()), default=0)
    found = sorted((p for p, paths in fits.items() if best and len(paths) == best), key=lambda p: (len(p), p))
    return dict.fromkeys(found or [""], best)


def _paths(rule: Rule) -> tuple[str, ...]:
    return (rule.ours,) if isinstance(rule.ours, str) else tuple(rule.ours)


def _split(path: str) -> tuple[str, str]:
    """A path without its last part, and that part."""
    before, _, last = path.rpartition("/")
    return before, last


def _match(template: str, text: str) -> dict[str, int] | None:
    """Values of the letters in a template's holes for a text, or None if it does not fit."""
    pattern, pieces = _pattern(template)
    found = pattern.fullmatch(text)
    if found is None:
        return None
    values: dict[str, int] = {}
    for number, factor, letter, offset in zip(found.groups(), pieces[1::4], pieces[2::4], pieces[3::4], strict=True):
        value, rest = divmod(int(number) - int(offset or 0), int(factor or 1))
        if rest or value < 0 or values.setdefault(letter, value) != value:
            return None
    return values


@functools.lru_cache(maxsize=4096)
def _pattern(template: str) -> tuple[re.Pattern[str], list[str]]:
    """Regular expression of a template, and its pieces: text, factor, letter, offset, text, ..."""
    pieces = _HOLE.split(template)
    return re.compile(r"(\d+)".join(map(re.escape, pieces[::4]))), pieces


def _fill(template: str, values: Mapping[str, int]) -> str:
    return _HOLE.sub(lambda hole: str(int(hole[1] or 1) * values[hole[2]] + int(hole[3] or 0)), template)
