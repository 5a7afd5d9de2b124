"""Files of tagged words: a word a line with its tag in the last column, and an empty line after each sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.data.readers.columns import Columns, read_lines, shortened
from jaxkd.data.tags import entities_of, in_characters, read_tag

_NEW_DOCUMENT = "-DOCSTART-"


def read_conll(path: Path) -> Columns:
    """Reads a file in columns, as those of the CoNLL shared tasks.

    Columns are separated by tabs or spaces: the word is the first, its tag (BIO, BILOU or BIOES) the last. Lines that
    begin with -DOCSTART-, and comments, which begin with # and end in no tag, are left out.

    Args:
      path: The file.

    Returns:
      A row for each sentence: `text`, its words with spaces between them; `words`, the first character of each word and
      the one after its last, an array [W, 2]; and `entities`, a list of (start, end, type) in characters.

    Raises:
      ValueError: As `read_lines` says, or if a line has one column, or no tag in its last; the sentence names the line.
    """
    sentences: list[list[tuple[str, str]]] = [[]]
    lines = [1]
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split("\t") if "\t" in line else line.split()
        columns = [column.strip() for column in columns]
        if not any(columns) or columns[0].startswith(_NEW_DOCUMENT):
            if sentences[-1]:
                sentences.append([])
        elif not (line.startswith("#") and not _is_tag(columns[-1])):
            if not sentences[-1]:
                lines[len(sentences) - 1 :] = [number]
            sentences[-1].append(_word(path, number, line, columns))
    found = [sentence for sentence in sentences if sentence]
    if not found:
        raise ValueError(f"{path} has no tagged words: give lines such as Berlin<TAB>B-LOC.")
    rows = [_row(sentence) for sentence in found]
    return Columns(str(path), {name: [row[name] for row in rows] for name in rows[0]}, lines[: len(rows)])


def _is_tag(column: str) -> bool:
    try:
        read_tag(column)
    except ValueError:
        return False
    return True


def _word(path: Path, number: int, line: str, columns: list[str]) -> tuple[str, str]:
    """Word and tag of a line."""
    if len(columns) < 2 or not columns[0]:
        raise ValueError(
            f"line {number} of {path} ({shortened(line)}) has one column: give a word and its tag, such as "
            "Berlin<TAB>B-LOC, and an empty line after each sentence."
        )
    try:
        read_tag(columns[-1])
    except ValueError as error:
        raise ValueError(f"line {number} of {path} ends in no tag: {error}") from error
    return columns[0], columns[-1]


def _row(sentence: list[tuple[str, str]]) -> dict[str, Any]:
    """Fields of one sentence."""
    ends = np.cumsum([len(word) + 1 for word, _ in sentence]) - 1
    words = np.stack([ends - [len(word) for word, _ in sentence], ends], axis=1).astype(np.int32)
    entities = in_characters(entities_of(tag for _, tag in sentence), words)
    return {
        "text": " ".join(word for word, _ in sentence),
        "words": words,
        "entities": [tuple(entity) for entity in entities],
    }
