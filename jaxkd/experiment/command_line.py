"""The command line as tyro reads it: one panel of flags for each group of fields, whatever class declares them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from jaxkd.experiment.domains import declaration
from jaxkd.experiment.flags import GROUPS, RUN, StepOptions

_SMOKE = "shrink the experiment to a run of a few steps that only shows that it works"


_OF_STEPS = {field.name for field in dataclasses.fields(StepOptions)}


def read_flags(classes: Sequence[type[Any]], defaults: Sequence[Any], **options: Any) -> dict[str, Any]:
    """Reads the fields of several dataclasses, and `--smoke`, from one command line.

    A field made with `flags.flag` stands in the panel of its group; any other stands by itself, and a dataclass among
    those has flags such as `--model.width`.

    Args:
      classes: The dataclasses; no two of them share a field's name.
      defaults: An instance of each.
      **options: Of `tyro.cli`.

    Returns:
      Field -> value, and "smoke" -> bool.

    Raises:
      SystemExit: With code 0 after `--help`, with code 2 after the message for an unknown flag or a wrong value.
    """
    import tyro

    single, panels = _fields(classes, defaults)
    values = {"smoke": False} | {n: getattr(one, n) for one in defaults for n in field_names(one)}
    kinds = {group: dataclasses.make_dataclass(group, fields) for group, fields in panels.items()}
    shown = [(group, Annotated[kind, tyro.conf.OmitArgPrefixes]) for group, kind in kinds.items()]
    command_line: Any = dataclasses.make_dataclass("CommandLine", [*single, *shown])
    start = {name: values[name] for name, _ in single}
    start |= {group: kind(**{n: values[n] for n in field_names(kind)}) for group, kind in kinds.items()}
    parsed = tyro.cli(command_line, default=command_line(**start), **options)
    found = {name: getattr(parsed, name) for name, _ in single}
    return found | {name: value for group in kinds for name, value in vars(getattr(parsed, group)).items()}


def field_names(one: Any) -> list[str]:
    """Names of the fields of a dataclass or of an instance, in order.

    Args:
      one: The dataclass.

    Returns:
      The names.
    """
    return [field.name for field in dataclasses.fields(one)]


def _fields(classes: Sequence[type[Any]], defaults: Sequence[Any]) -> tuple[list[Any], dict[str, list[Any]]]:
    """(name, type) of the fields without a group, and of those with one by their group, in the order of `GROUPS`."""
    import tyro

    single: list[Any] = []
    panels: dict[str, list[Any]] = {group: [] for group in GROUPS}
    for kind, default in zip(classes, defaults, strict=True):
        hints = typing.get_type_hints(kind, include_extras=True)
        for name in sorted(field_names(kind), key=_OF_STEPS.__contains__):  # stable: those of every experiment last
            declared = declaration(kind, name)
            if not declared:
                single.append((name, hints[name]))
            else:
                shown = _shown(hints[name], getattr(default, name))
                about = tyro.conf.arg(help=_help(declared), **shown)
                panels[declared["group"]].append((name, Annotated[hints[name], about]))
    smoke = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=_SMOKE, help_behavior_hint="")]
    panels[RUN].insert(0, ("smoke", smoke))
    return single, {group: fields for group, fields in panels.items() if fields}


def _help(declared: Mapping[str, Any]) -> str:
    """Help of a field with its domain, where that says more than the word "number"."""
    domain = declared["domain"]
    return f"{declared['help']}; {domain.short}" if domain is not None and domain.short else declared["help"]


def _shown(hint: Any, default: Any) -> dict[str, Any]:
    """Options of `tyro.conf.arg`: a value that may be absent reads as its type, and no default as "optional"."""
    shown: dict[str, Any] = {}
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    if type(None) in kinds:
        shown["metavar"] = "|".join(kind.__name__.upper() for kind in kinds if kind is not type(None))
    if default is None or default == ():
        shown["help_behavior_hint"] = "(optional)"
    return shown
