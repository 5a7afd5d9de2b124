"""Atomic writes, strict JSON, and file errors that say what to do."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np


@contextlib.contextmanager
def explain_write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager that rewords an OSError of its body: one sentence with the path and the system's reason.

    Args:
      path: The file or folder that the body writes.

    Raises:
      OSError: If the body raises one.
    """
    try:
        yield
    except OSError as error:
        advice = "free or unlock that place, or choose another folder"
        raise OSError(f"cannot write {path} ({error.strerror or error}): {advice}.") from error


def prepare_file(path: str | os.PathLike[str]) -> None:
    """Makes the folder of a file that is written later, so that a place that cannot hold it is known at once.

    Args:
      path: The file.

    Raises:
      OSError: If its folder cannot be made, or it is a folder itself.
    """
    with explain_write_errors(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Context manager that writes a file atomically: a crash leaves either the old or the new contents, whole.

    The body writes to a temporary file `.<name>.<pid>.tmp` in the same folder, which then replaces the file.

    Args:
      path: The file; its folder must exist.

    Yields:
      The temporary file.

    Raises:
      OSError: If the disk is full or may not be written to; the old file is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_write_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first failure is the one to report
                temporary.unlink(missing_ok=True)
            raise


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file atomically, as `replacing` does.

    Args:
      path: The file; its folder must exist.
      text: Its new contents.

    Raises:
      OSError: If the disk is full or may not be written to; the old file is then unchanged.
    """
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


def to_json(value: Any, *, non_finite: Callable[[float], Any] = lambda _: None) -> Any:
    """Converts configurations, arrays, paths and nests of them to values that strict JSON can hold.

    Args:
      value: A dataclass, mapping, sequence, set, array, path, enumeration, number, string, boolean or None.
      non_finite: Converts a NaN or an infinity, neither of which strict JSON has; to None (null) by default.

    Returns:
      Dicts, lists, strings, numbers, booleans and None.

    Raises:
      TypeError: If the nest holds a value of another type.
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
        return {str(key): to_json(item, non_finite=non_finite) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value)
    if isinstance(value, Sequence):
        return [to_json(item, non_finite=non_finite) for item in value]
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: use numbers, strings and nests of them.")


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON, indented by two spaces, atomically.

    Args:
      path: The file; its folder must exist.
      value: A value that strict JSON can hold, as `to_json` returns it.

    Raises:
      OSError: As `write_atomically`.
    """
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that `write_json` wrote.

    Args:
      path: The file, whose outermost value is a JSON object.

    Returns:
      The object.

    Raises:
      OSError: If the file cannot be read.
      ValueError: If it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"cannot read {path} ({error.strerror or error}): make it a readable file.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it or delete {path.parent} to start again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: restore it, or delete {path.parent} to start again.")
    return value
