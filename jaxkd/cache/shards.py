"""Shards: ArrayRecord files of fixed-size records, written atomically, whose names hold their checksums."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ENDING = ".array_record"
"""End of the file names of finished shards."""

_PART = ".part"
_NAME = re.compile(rf"(?P<stem>.+)-(?P<checksum>[0-9a-f]{{8}}){re.escape(ENDING)}")
_PIECE = 1 << 20


@contextlib.contextmanager
def writing(folder: Path, stem: str) -> Iterator[Callable[[np.ndarray], None]]:
    """Context manager that writes one shard: it gets its name when the body ends; a failing body leaves no file.

    Args:
      folder: Folder of the shard.
      stem: Name of the shard without checksum and ending.

    Yields:
      Function that appends records, a structured array [N].

    Raises:
      ValueError: In one sentence, if the shard cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    part = folder / f"{stem}{_PART}"
    try:
        writer = ArrayRecordWriter(os.fspath(part), "group_size:1,uncompressed")

        def append(records: np.ndarray) -> None:
            for record in records:
                writer.write(record.tobytes())

        yield append
        writer.close()
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, folder / f"{stem}-{_checksum(part):08x}{ENDING}")
    except (OSError, RuntimeError) as error:  # the latter is ArrayRecord's
        raise ValueError(
            f"{part.with_suffix(ENDING)} cannot be written ({_reason(error)}): see that its folder can be written and "
            "that the disk is not full, then run the same command again to go on."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # a failure above is the one to report
            part.unlink(missing_ok=True)


def find(folder: Path) -> dict[str, Path]:
    """Finds the shards in a folder.

    Args:
      folder: The folder.

    Returns:
      Stem -> path.
    """
    matches = ((path, _NAME.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return {match["stem"]: path for path, match in matches if match}


def clear_parts(folder: Path) -> None:
    """Deletes the unfinished files that a killed writer has left.

    Args:
      folder: The folder, in which no process is writing.
    """
    for path in [*folder.glob(f"*{_PART}"), *folder.glob(".*.tmp")]:
        path.unlink()


def is_whole(path: Path) -> bool:
    """Compares a shard's bytes with the checksum in its name.

    Args:
      path: The file.

    Returns:
      True if they agree, false if a byte differs or is missing.
    """
    match = _NAME.fullmatch(path.name)
    return match is not None and int(match["checksum"], 16) == _checksum(path)


class Shard:
    """Open shard with random access, verified when it is opened; several threads may read it.

    Args:
      path: The file.
      record: Structured dtype of its records.
      count: Number of records that it should hold.

    Raises:
      ValueError: In one sentence that names the file, if it is missing, a byte differs or the number of records does.
    """

    def __init__(self, path: Path, record: np.dtype[Any], count: int) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self._path, self._record = path, record
        try:
            if not is_whole(path):
                raise self._broken("its bytes do not have the checksum in its name")
            options = "readahead_buffer_size:0,max_parallelism:0"
            self._reader = ArrayRecordReader(os.fspath(path), options, file_reader_buffer_size=1 << 15)
        except OSError as error:
            raise self._broken(_reason(error)) from error
        if self._reader.num_records() != count:
            raise self._broken(f"it holds {self._reader.num_records()} records, not {count}")

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Reads some records.

        Args:
          positions: Positions [N] of the records in the shard.

        Returns:
          Structured array [N].

        Raises:
          ValueError: If a record cannot be read.
        """
        return self._decode(self._reader.read, positions.tolist())

    def read_all(self) -> np.ndarray:
        """Reads all records in order.

        Returns:
          Structured array [count].

        Raises:
          ValueError: If a record cannot be read.
        """
        return self._decode(self._reader.read_all)

    def _decode(self, read: Callable[..., list[bytes]], *arguments: Any) -> np.ndarray:
        try:
            return np.frombuffer(b"".join(read(*arguments)), self._record)
        except (RuntimeError, ValueError) as error:
            raise self._broken(_reason(error)) from error

    def _broken(self, why: str) -> ValueError:
        return ValueError(
            f"{self._path} cannot be read ({why}): run the command that wrote it again, which writes it anew."
        )


def _checksum(path: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _reason(error: Exception) -> str:
    """Reason that the system gives for an error, or the first line of a library's message."""
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
