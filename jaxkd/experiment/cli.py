"""The command line of an experiment, and one clear line where a user's input is at fault."""

from __future__ import annotations

import dataclasses
import dis
import errno
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

Config = TypeVar("Config")
Flags = TypeVar("Flags")

_USER_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, ImportError, OSError)
_MACHINE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]


def parse(
    config_class: type[Config], *, description: str, smoke: Mapping[str, Any], args: Sequence[str] | None = None
) -> Config:
    """Reads an experiment's configuration from the command line, with a flag for every field and `--smoke`.

    Args:
      config_class: A frozen dataclass whose fields all have types, defaults and doc-comments, none called `smoke`.
      description: What the experiment does, shown by `--help`.
      smoke: Field name -> the default that `--smoke` puts in place of the usual one; explicit flags still win.
      args: Words of the command line; those of the process by default.

    Returns:
      An instance of `config_class`.

    Raises:
      SystemExit: With code 0 after `--help`, with code 2 after the message for an unknown flag or a wrong value.
      TypeError: If `smoke` names a field that the configuration does not have.
    """
    return _parse(config_class, [], description, smoke, args)[0]


def parse_beside(
    config_class: type[Config],
    flags_class: type[Flags],
    *,
    description: str,
    smoke: Mapping[str, Any],
    args: Sequence[str] | None = None,
) -> tuple[Config, Flags]:
    """As `parse`, with flags beside the configuration that are no part of it.

    Args:
      config_class: As in `parse`.
      flags_class: A frozen dataclass, whose fields have other names than the configuration's.
      description: As in `parse`.
      smoke: As in `parse`.
      args: As in `parse`.

    Returns:
      An instance of each.

    Raises:
      SystemExit: As in `parse`.
      TypeError: As in `parse`.
    """
    return _parse(config_class, [flags_class], description, smoke, args)


def _parse(
    config_class: type[Any], beside: list[type[Any]], description: str, smoke: Mapping[str, Any], args: Any
) -> Any:
    """The configuration, and an instance of each class beside it."""
    import tyro

    small = dataclasses.replace(config_class(), **smoke)
    help_smoke = "Shrink everything to a run of a few steps that only shows that the experiment works."
    command_line: Any = dataclasses.make_dataclass(
        "CommandLine",
        [
            ("config", Annotated[config_class, tyro.conf.arg(name="")]),
            ("smoke", Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=help_smoke)]),
            *((f"beside{i}", Annotated[one, tyro.conf.arg(name="")]) for i, one in enumerate(beside)),
        ],
    )

    def read(default: Any) -> Any:
        """Lets tyro parse on top of these defaults."""
        start = command_line(default, False, *(one() for one in beside))
        return tyro.cli(command_line, default=start, description=description, args=args)

    parsed = read(config_class())
    parsed = read(small) if parsed.smoke else parsed
    return parsed.config, *(getattr(parsed, f"beside{i}") for i, _ in enumerate(beside))


def parse_grid(words: Sequence[str], names: Sequence[str]) -> dict[str, list[float]]:
    """Reads the points of a sweep, such as `temperature=1,2,4`.

    Args:
      words: One a name.
      names: Which names there are.

    Returns:
      Name -> values, in the order given.

    Raises:
      ValueError: If a word has another form, a name is not one of those, or stands twice.
    """
    found: dict[str, list[float]] = {}
    for word in words:
        name, _, values = word.partition("=")
        if name not in names or name in found:
            what = "stands twice in the grid" if name in found else "is nothing that a grid can vary"
            raise ValueError(f"{name!r} {what}: give each of {', '.join(names)} once at most.")
        try:
            found[name] = [float(value) for value in values.split(",")]
        except ValueError:
            raise ValueError(f"{word!r} is no part of a grid: write {name}=1,2,4.") from None
    return found


def check_positive(config: Any, *names: str) -> None:
    """Refuses a configuration in which a count is not positive.

    Args:
      config: The configuration.
      *names: Fields that must be at least 1.

    Raises:
      ValueError: If one is smaller.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}: give at least 1.")


def main(function: Callable[[], object]) -> None:
    """Runs an experiment's main function; what the user can mend becomes one line on stderr instead of a traceback.

    That is: an error that a `raise` of jaxkd, or of a file beside that of `function`, throws on purpose, and a disk
    that is full or may not be written to. Every other exception is a bug and keeps its traceback.
    `JAXKD_TRACEBACK=1` in the environment keeps all tracebacks.

    Args:
      function: Called without arguments.

    Raises:
      SystemExit: With code 2 after a user's error, with code 130 after Ctrl-C; one raised by `function` passes through.
    """
    try:
        function()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except _USER_FAULTS as error:
        if os.environ.get("JAXKD_TRACEBACK") == "1" or not _meant_for_the_user(error, function):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) adds quotes
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def _meant_for_the_user(error: BaseException, function: Callable[[], object]) -> bool:
    """Whether the error comes from a `raise` in jaxkd or beside the experiment, or from a full or forbidden disk."""
    if isinstance(error, OSError) and error.errno in _MACHINE_FAULTS:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    # An accident, such as int("x"), ends on another instruction than RAISE_VARARGS, which is what `raise` compiles to.
    deliberate = code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    experiment = getattr(getattr(inspect.unwrap(function), "__code__", None), "co_filename", None)
    file = Path(code.co_filename).resolve()
    beside = experiment is not None and file.parent == Path(experiment).resolve().parent
    return deliberate and (beside or file.is_relative_to(_PACKAGE_FOLDER))
