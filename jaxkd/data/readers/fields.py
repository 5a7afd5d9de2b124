"""Fields of a file of texts: which of them is the text, its pair and the label, by the names that sets use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from jaxkd.data.checks import listing
from jaxkd.data.readers.columns import Columns, shortened
from jaxkd.data.splits import say

_TEXTS = (
    *("text", "sentence", "sentences", "content", "review", "document", "query", "question", "title", "tweet"),
    *(
        "comment",
        "utterance",
        "message",
        "body",
        "caption",
        "headline",
        "description",
        "texts",
        "review_text",
        "reviewtext",
    ),
)
_SEPARATORS = re.compile(r"[\s-]+")
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
)
_LABELS = (
    *("label", "labels", "class", "category", "target", "sentiment", "score", "intent", "rating", "stars", "y"),
    *("coarse_label", "label_text", "gold_label", "polarity", "topic", "class_index", "emotion"),
)


class Chosen(NamedTuple):
    """Fields that are read, by their names in the file."""

    text: str
    pair: str | None
    label: str | None


def choose_fields(columns: Columns, text: str | None, pair: str | None, label: str | None) -> Chosen:
    """Chooses the fields of texts and labels: those that are named, or those with usual names.

    Args:
      columns: The file's columns.
      text: Field of the texts, or None.
      pair: Field of the second texts, or None.
      label: Field of the labels, or None.

    Returns:
      The names. What was chosen among several is logged as a warning.

    Raises:
      ValueError: If a field that is named is not there, none can be the text, or one is named twice.
    """
    have = list(columns.values)
    for flag, name in (("--text-field", text), ("--pair-field", pair), ("--label-field", label)):
        if name is not None and name not in have:
            raise ValueError(f"{columns.name} has no field {name!r} ({flag}): it has {listing(have)}.")
    lower = {_SEPARATORS.sub("_", name.lower()): name for name in reversed(have)}
    if label is None:
        label = _first(columns, "labels", "--label-field", [lower[n] for n in _LABELS if n in lower], (text, pair))
    if text is None and pair is None:
        both = [
            (lower[a], lower[b]) for a, b in _PAIRS if a in lower and b in lower and label not in (lower[a], lower[b])
        ]
        text, pair = both[0] if both else (None, None)
    if text is None:
        usual = [lower[name] for name in _TEXTS if name in lower]
        text = _first(columns, "texts", "--text-field", usual, (pair, label))
    if text is None and label is not None:  # one field beside the label can be nothing else
        rest = [name for name in have if name not in (pair, label)]
        text = rest[0] if len(rest) == 1 else None
    if text is None and len(have) == 1:
        other = next((f"write {kind}:PATH" for sign, kind in ((",", "csv"), ("\t", "tsv")) if sign in have[0]), None)
        other = "part its fields by tabs or commas" if other is None and ";" in have[0] else other
        raise ValueError(
            f"{columns.name} has one field only, which its first line names {shortened(have[0])}: "
            f"{other or 'write lines:PATH if each line is a text, or name the field sentence'}."
        )
    if text is None:
        raise ValueError(
            f"{columns.name} has no field with a usual name of texts, such as sentence or text: it has "
            f"{listing([shortened(name) for name in have])}; name one by text= (--text-field), or put a line with the "
            "names of the fields first if these are values."
        )
    if len({text, pair, label} - {None}) < sum(name is not None for name in (text, pair, label)):
        raise ValueError(f"a field of {columns.name} is named twice ({text}, {pair}, {label}): name different ones.")
    return Chosen(text, pair, label)


def _first(
    columns: Columns, what: str, flag: str, candidates: Sequence[str], taken: Sequence[str | None]
) -> str | None:
    """First candidate that is not taken; if there are several, the choice is said."""
    free = [name for name in candidates if name not in taken]
    if len(free) > 1:
        say(
            f"{columns.name} has several fields that may be its {what} ({listing(free)}): {free[0]} is taken, name "
            f"another one by {flag}."
        )
    return free[0] if free else None


def texts_of(columns: Columns, field: str) -> list[str]:
    """The values of a field, checked to be texts.

    Args:
      columns: The file's columns.
      field: The field.

    Returns:
      The texts.

    Raises:
      ValueError: If a value is missing, no text, or cannot be written in UTF-8; the sentence names its place.
    """
    values = columns.values[field]
    for row, value in enumerate(values):
        if not isinstance(value, str):
            what = "is missing" if value is None else f"is {shortened(value)}, which is no text"
            raise ValueError(f"`{field}` {what} in {columns.place(row, field)}: give a text in every row.")
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(
                f"`{field}` holds half a surrogate pair in {columns.place(row, field)}: correct its encoding."
            )
    return values
