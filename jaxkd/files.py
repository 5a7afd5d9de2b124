"""Writing files: whole or not at all, strict JSON, and errors that say what to do."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an OSError of the body into one sentence that names the path and the system's reason.

    Args:
      path: What the body writes.

    Raises:
      OSError: If the body raises one.
    """
    try:
        yield
    except OSError as error:
        advice = "free or unlock that place, or choose another folder"
        raise OSError(f"cannot write {path} ({error.strerror or error}): {advice}.") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all, whatever happens on the way.

    Args:
      path: The file; its folder must exist.
      text: Its new contents.

    Raises:
      OSError: If the disk is full or may not be written to; the old file is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # the first failure is the one to report
                temporary.unlink(missing_ok=True)
            raise


def plain(value: Any, *, non_finite: Callable[[float], Any] = lambda _: None) -> Any:
    """Turns configurations, arrays, paths and nests of them into what strict JSON can hold.

    Args:
      value: A dataclass, mapping, sequence, set, array, path, enumeration, number, string, boolean or None.
      non_finite: What a NaN or an infinity becomes; null by default, for strict JSON has neither.

    Returns:
      Dicts, lists, strings, numbers, booleans and None.

    Raises:
      TypeError: If there is something else in it.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(jax.device_get(value)).tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else non_finite(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, non_finite=non_finite) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, Sequence):
        return [plain(item, non_finite=non_finite) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: use numbers, strings and nests of them.")


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON, indented, atomically."""
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that `write_json` wrote."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot read {path} ({error.strerror}): make it readable or choose another --name.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): restore it, or delete {path.parent} to start again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: restore it, or delete {path.parent} to start again.")
    return value
