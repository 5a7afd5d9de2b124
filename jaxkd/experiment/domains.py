"""Domains of flags: the values that make sense for a field, declared with it and checked before anything is opened."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MOST = 2**31 - 1
"""Largest whole number of a flag: steps, seeds and row numbers are int32."""
LARGEST, SMALLEST = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
"""Largest and smallest positive number that float32 holds, in which trainings compute."""


class Domain(NamedTuple):
    """Interval of numbers, both bounds included; NaN and infinities lie outside of every domain.

    Attributes:
      text: The domain in words, for messages.
      low: Lower bound.
      high: Upper bound.
      whole: True for whole numbers.
    """

    text: str
    low: float
    high: float
    whole: bool = False

    @property
    def short(self) -> str:
        """The domain in fewer words, for `--help`; "" for counts and sides, which need none."""
        return "" if self in (COUNT, SIDE) else self.text.removeprefix("a number ")

    def holds(self, value: Any) -> bool:
        """Tells if a value lies in the domain.

        Args:
          value: A number.

        Returns:
          True if it does.
        """
        return (isinstance(value, int) or not self.whole) and self.low <= value <= self.high

    def advice(self, value: float) -> str:
        """Values to give in place of one that lies outside.

        Args:
          value: The value.

        Returns:
          The end of a sentence.
        """
        if math.isfinite(value) and (value > self.high or 0 < value < self.low < 1):  # beyond an unspoken bound
            return f"a number from {_number(self.low)} to {_number(self.high)}"
        return self.text


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


COUNT = Domain("at least 1", 1, MOST, whole=True)
SEVERAL = Domain("at least 2, for a standard error", 2, MOST, whole=True)
WHOLE = Domain("at least 0", 0, MOST, whole=True)
SIDE = Domain("at least 1", 1, 2**14, whole=True)
"""Heights and widths of images, in pixels."""
SEED = Domain(f"a number from 0 to {MOST - 1}", 0, MOST - 1, whole=True)  # some add 1 to it
POSITIVE = Domain("a number above 0", SMALLEST, LARGEST)
NON_NEGATIVE = Domain("0 or more", 0, LARGEST)
FRACTION = Domain("a number from 0 to 1", 0, 1)
DECAY = Domain("a number from 0 to 0.999999", 0, 0.999999)
TEMPERATURE = Domain("a number above 0", 1e-6, 1e6)
"""Softmax temperatures; T^2 and logits / T stay finite in float32."""
SECONDS = Domain("a number above 0", 1e-3, 1e6)


def declaration(kind: type[Any], name: str) -> Mapping[str, Any]:
    """Help, group and domain of a field, from the nearest class that declares them by `flags.flag`.

    Args:
      kind: The dataclass.
      name: The field.

    Returns:
      The declaration; empty if there is none.
    """
    for base in kind.__mro__:
        field = base.__dict__.get("__dataclass_fields__", {}).get(name)
        if field is not None and "group" in field.metadata:
            return dict(field.metadata)
    return {}


def check_domains(config: Any) -> None:
    """Refuses a configuration with a value outside its field's domain, an empty text, or an empty list.

    Numbers of a field without a domain must be finite. A list may be empty if that is its default.

    Args:
      config: The configuration, a dataclass.

    Raises:
      ValueError: If a value lies outside; the sentence names the flag, the value and the domain.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == () and field.default != ():
            raise ValueError(f"{flag_name(field.name)} is empty: give one value at least, or leave it out.")
        for one in value if isinstance(value, tuple) else (value,):
            check_value(type(config), field.name, one)


def check_value(kind: type[Any], name: str, value: Any, flag: str | None = None) -> None:
    """Refuses a value outside the domain of a field.

    Args:
      kind: The configuration's class.
      name: The field.
      value: The value, one of several for a field that is a tuple.
      flag: The flag that the value was given by; the field's own if None.

    Raises:
      ValueError: If it lies outside.
    """
    flag = flag_name(name) if flag is None else flag
    if value == "":
        raise ValueError(f"{flag} is an empty text: give another one, or leave it out.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    domain: Domain | None = declaration(kind, name).get("domain")
    if domain is None and not math.isfinite(value):
        raise ValueError(f"{flag} is {value}: give a finite number.")
    if domain is not None and not domain.holds(value):
        raise ValueError(f"{flag} is {value}: give {domain.advice(value)}.")


def flag_name(field: str) -> str:
    """The flag of a field, as `--batch-size` of `batch_size`.

    Args:
      field: The field's name.

    Returns:
      The flag.
    """
    return "--" + field.replace("_", "-")
