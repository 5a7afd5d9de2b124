"""The command line of an experiment, and one clear line in place of a traceback for a user's mistake."""

from __future__ import annotations

import dataclasses
import dis
import errno
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxkd.experiment import interrupts
from jaxkd.experiment.command_line import field_names, read_flags

Config = TypeVar("Config")

_USER_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, ImportError, OSError)
_MACHINE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]


def parse(
    config_class: type[Config], *, description: str, smoke: Mapping[str, Any], args: Sequence[str] | None = None
) -> Config:
    """Reads an experiment's configuration from the command line, with a flag for every field and `--smoke`.

    Args:
      config_class: A frozen dataclass whose fields all have types and defaults (see `flags.flag`), none called `smoke`.
      description: Shown by `--help`.
      smoke: Field name -> the default that `--smoke` puts in place of the usual one; explicit flags still win.
      args: Words of the command line; those of the process by default.

    Returns:
      An instance of `config_class`.

    Raises:
      SystemExit: With code 0 after `--help`, with code 2 after the message for an unknown flag or a wrong value.
      TypeError: If `smoke` names a field that the configuration does not have.
    """
    return parse_all([config_class], description=description, smoke=smoke, args=args)[0]


def parse_all(
    classes: Sequence[type[Any]], *, description: str, smoke: Mapping[str, Any], args: Sequence[str] | None = None
) -> list[Any]:
    """Reads several dataclasses from one command line, such as a configuration and the devices.

    Args:
      classes: Each as `config_class` in `parse`; no two of them share a field's name.
      description: As in `parse`.
      smoke: As in `parse`, of the first class.
      args: As in `parse`.

    Returns:
      An instance of each class.

    Raises:
      SystemExit: As in `parse`.
      TypeError: As in `parse`.
    """
    options = {"description": _wrapped(description), "args": args}
    usual = [one() for one in classes]
    small = [dataclasses.replace(usual[0], **smoke), *usual[1:]]
    found = read_flags(classes, usual, **options)
    if found["smoke"]:
        found = read_flags(classes, small, **options)
    return [one(**{name: found[name] for name in field_names(one)}) for one in classes]


def _wrapped(description: str) -> str:
    """The description in lines that fit the terminal; each begins with a space, or tyro would join them again."""
    width = min(shutil.get_terminal_size().columns, 120) - 2
    paragraphs = [
        part if part.startswith(" ") else textwrap.fill(part, width) for part in description.strip().split("\n\n")
    ]
    return textwrap.indent("\n\n".join(paragraphs), " ")


def main(function: Callable[[], object]) -> None:
    """Runs an experiment's main function and turns errors that the user can mend into one line on stderr.

    Those are errors that a `raise` statement of jaxkd, or of a file in the folder of `function`, throws on purpose, and
    errors of a disk that is full or must not be written to. Every other exception is a bug and keeps its traceback.
    `JAXKD_TRACEBACK=1` in the environment keeps all tracebacks.

    Args:
      function: Called without arguments.

    Raises:
      SystemExit: With code 2 after a user's error, with code 130 after Ctrl-C; one raised by `function` passes through.
        After a second Ctrl-C the process leaves at once, with code 130.
    """
    with interrupts.watching() as watch:
        try:
            function()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code: Any = 130
        except SystemExit as left:
            code = left.code
        except _USER_FAULTS as error:
            if os.environ.get("JAXKD_TRACEBACK") == "1" or not _meant_for_the_user(error, function):
                raise
            # str(KeyError) adds quotes
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            print(f"error: {message}", file=sys.stderr)
            code = 2
        else:
            return
        if watch is not None:
            watch.leave(code)
    sys.exit(code)


def _meant_for_the_user(error: BaseException, function: Callable[[], object]) -> bool:
    """True for an error of a `raise` in jaxkd or in the experiment's folder, and for a full or forbidden disk."""
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
    neighbour = experiment is not None and file.parent == Path(experiment).resolve().parent
    return deliberate and (neighbour or file.is_relative_to(_PACKAGE_FOLDER))
