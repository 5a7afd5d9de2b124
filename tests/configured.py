"""What the tests of the command line and of the run directory share: a configuration, failures and exits."""

from __future__ import annotations

import dataclasses
import os

import pytest

from jaxkd.experiment import cli


@dataclasses.dataclass(frozen=True)
class Inner:
    """Part of the configuration."""

    width: int = 8
    """Units of a layer."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What the tests configure."""

    name: str = "digits"
    """Folder of the run, below runs/."""
    steps: int = 1000
    """Updates of each student."""
    temperature: float = 4.0
    """Softens both distributions."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the layers."""
    model: Inner = dataclasses.field(default_factory=Inner)


def refusal(code):
    """A system call that fails."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    return refuse


def leaves(function) -> int | str | None:
    with pytest.raises(SystemExit) as left:
        cli.main(function)
    return left.value.code
