"""A configuration, failures and exits, for the tests of the command line and of the run directory."""

from __future__ import annotations

import dataclasses
import os

import pytest

from jaxkd.experiment import RUN, TRAINING, cli, flag


@dataclasses.dataclass(frozen=True)
class Inner:
    """Part of the configuration."""

    width: int = 8
    """Units of a layer."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of the tests."""

    name: str = flag("digits", "folder of the run", RUN)
    steps: int = flag(1000, "Updates of each student.", TRAINING)
    temperature: float = flag(4.0, "Softens both distributions.", TRAINING)
    hidden: tuple[int, ...] = flag((64, 64), "Widths of the layers.", TRAINING)
    model: Inner = dataclasses.field(default_factory=Inner)


def refusal(code):
    """A system call that fails."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    return refuse


def leaves(function) -> int | str | None:
    """The exit code of an experiment's main function."""
    with pytest.raises(SystemExit) as left:
        cli.main(function)
    return left.value.code
