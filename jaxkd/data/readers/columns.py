"""Columns of a file of texts, and the text of a file: decompressed, decoded, and checked line by line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxkd.data.checks import listing

_MAGIC = ((b"\xfd7zXZ\x00", lzma.decompress), (b"\x1f\x8b", gzip.decompress), (b"BZh", bz2.decompress))
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet", "unpack it, or export it as CSV"),
    (b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
    (b"PAR1", "a Parquet file", "write parquet:PATH"),
    (b"ARROW1", "an Arrow file", "write hf:FOLDER of the folder that datasets.save_to_disk has made"),
)
_LONGEST = 40


class Columns(NamedTuple):
    """Columns of one file, as they stand in it.

    Attributes:
      name: Name of the file, for messages.
      values: Field -> its values, all lists of one length.
      lines: Line of each row in the file, counted from 1; empty if the file has no lines.
      classes: Field -> names of the classes that its integers number, where the file says so.
      files: Field -> the columns of another file that it stands in.
    """

    name: str
    values: Mapping[str, list[Any]]
    lines: Sequence[int] = ()
    classes: Mapping[str, tuple[str, ...]] = {}
    files: Mapping[str, Any] = {}

    def place(self, row: int, field: str | None = None) -> str:
        """The place of a row, for a sentence.

        Args:
          row: Its number, from 0.
          field: The field that is meant, which may stand in another file.

        Returns:
          Such as "line 17 of train.tsv".
        """
        if field is not None and field in self.files:
            return str(self.files[field].place(row))
        return f"line {self.lines[row]} of {self.name}" if len(self.lines) else f"row {row} of {self.name}"


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file in UTF-8, which may be compressed by xz, gzip or bzip2, as its first bytes tell.

    Lines end with LF, CR LF or, in a file without any LF, CR. A byte order mark is left out, and so is the end of the
    last line. No other character ends a line.

    Args:
      path: The file.

    Returns:
      The lines.

    Raises:
      ValueError: If there is no such file, it is damaged, of another kind, empty, not in UTF-8, or holds NUL bytes; the
        sentence names the line.
    """
    raw = _decompressed(path)
    for magic, what, advice in _FOREIGN:
        if raw.startswith(magic):
            raise ValueError(f"{path} is {what}, where a text file in UTF-8 is expected: {advice}.")
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    if not raw.strip():
        raise ValueError(f"{path} is empty: give a file with at least one line.")
    end = b"\n" if b"\n" in raw else b"\r"
    if (nul := raw.find(b"\0")) >= 0:
        raise ValueError(
            f"line {raw.count(end, 0, nul) + 1} of {path} holds a NUL byte, which no text has: restore or correct the "
            "file."
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(end, 0, error.start) + 1
        raise ValueError(
            f"line {line} of {path} is not UTF-8 (byte 0x{raw[error.start]:02x}): convert the file, such as by "
            "iconv -f latin1 -t utf-8."
        ) from error
    lines = [line.removesuffix("\r") for line in text.split(end.decode())]
    return lines if lines[-1] else lines[:-1]


def _decompressed(path: Path) -> bytes:
    """Contents of a file."""
    check_file(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}): make it a readable file.") from error
    for magic, decompress in _MAGIC:
        if raw.startswith(magic):
            try:
                return decompress(raw)
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
                raise ValueError(f"{path} cannot be decompressed ({error}): copy or download it anew.") from error
    return raw


def check_file(path: Path) -> None:
    """Refuses a path that is no file.

    Args:
      path: The path.

    Raises:
      ValueError: If there is no such file; the sentence names files beside it that may be meant.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the path of a file in it, with {{split}} in place of its split.")
    near = sorted(p.name for p in path.parent.glob(f"{path.name[:3]}*")) if path.parent.is_dir() else []
    hint = f"that folder has {listing(near[:5])}" if near else "give the path of a file"
    raise ValueError(f"{path} does not exist: {hint}.")


def shortened(value: Any) -> str:
    """A value for a sentence, cut if it is long.

    Args:
      value: Anything.

    Returns:
      Its representation.
    """
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
