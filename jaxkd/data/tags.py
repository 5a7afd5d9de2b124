"""Entities as tags of words: BIO and BILOU, with sequences that no scheme allows read by one rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

OUTSIDE = "O"
"""Tag of a word that belongs to no entity."""

Scheme: TypeAlias = Literal["BIO", "BILOU"]
"""Letters of tags. BIO: B- begins an entity and I- goes on. BILOU: L- also ends one, and U- is one of a single word."""

_LETTERS = {"BIO": "BI", "BILOU": "BILU"}
_BEGINS, _ENDS, _ALL = "BUS", "LUES", "BILUES"  # E and S are the letters of BIOES for L and U
WORD = re.compile(r"\w+|[^\w\s]")
"""A word: a run of letters, digits and underscores, or a single other character that is no space."""


class Entity(NamedTuple):
    """A named entity.

    Attributes:
      start: Its first character, or word.
      end: The one after its last.
      type: Its type, such as "PERSON".
    """

    start: int
    end: int
    type: str


class Tags(NamedTuple):
    """Numbered tags, taken apart.

    Attributes:
      types: Types of entities [T], in the order in which they occur first.
      kind: Number of each tag's type in 0..T-1, -1 for no entity, int32 [K].
      begins: Whether each tag always begins an entity, bool [K].
      ends: Whether each tag always ends one, bool [K].
    """

    types: tuple[str, ...]
    kind: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def tag_names(types: Iterable[str], scheme: Scheme = "BIO") -> tuple[str, ...]:
    """Names of all tags, whose positions are their numbers.

    Args:
      types: Types of entities.
      scheme: The scheme.

    Returns:
      ("O", "B-DATE", "I-DATE", "B-GPE", ...), with the types in the order of the alphabet; [K].

    Raises:
      ValueError: If there is no such scheme.
    """
    if scheme not in _LETTERS:
        raise ValueError(f"there is no scheme of tags {scheme!r}: give {' or '.join(_LETTERS)}.")
    return (OUTSIDE, *(f"{letter}-{kind}" for kind in sorted(set(types)) for letter in _LETTERS[scheme]))


def read_tag(tag: str) -> tuple[str, str]:
    """Takes a tag apart.

    Args:
      tag: "O", or a letter of BIO, BILOU or BIOES, a hyphen and a type.

    Returns:
      (letter, type); ("O", "") outside of entities.

    Raises:
      ValueError: If the tag has another form.
    """
    letter, _, kind = tag.partition("-")
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if len(letter) != 1 or letter not in _ALL or not kind:
        raise ValueError(f"{tag!r} is no tag of an entity: write O, or B-TYPE and I-TYPE (also L-, U-, E-, S-).")
    return letter, kind


def read_tags(names: Sequence[str]) -> Tags:
    """Takes numbered tags apart, for programs that work on numbers.

    Args:
      names: Name of each tag [K].

    Returns:
      The tags.

    Raises:
      ValueError: If a tag has another form than `read_tag` reads.
    """
    parts = [read_tag(name) for name in names]
    types = tuple(dict.fromkeys(kind for _, kind in parts if kind))
    return Tags(
        types,
        np.array([types.index(kind) if kind else -1 for _, kind in parts], np.int32),
        np.array([letter in _BEGINS for letter, _ in parts]),
        np.array([letter in _ENDS for letter, _ in parts]),
    )


def split_words(text: str) -> np.ndarray:
    """Words of a text: runs of letters, digits and underscores, and each other character that is no space.

    Args:
      text: The text.

    Returns:
      First character of each word and the one after its last, int32 [W, 2].
    """
    return np.array([match.span() for match in WORD.finditer(text)], np.int32).reshape(-1, 2)


def tag_words(words: np.ndarray, entities: Iterable[Entity | Sequence], scheme: Scheme = "BIO") -> list[str]:
    """Writes entities as tags of words; a word of which a part belongs to an entity belongs to it.

    Args:
      words: First character of each word and the one after its last, integers [W, 2], in order.
      entities: (start, end, type) of each entity, in characters, in any order.
      scheme: The scheme.

    Returns:
      A tag for each word [W].

    Raises:
      ValueError: If an entity has no word, or shares one with another entity.
    """
    words, tags = np.asarray(words).reshape(-1, 2), [OUTSIDE] * len(words)
    for start, end, kind in entities:
        inside = np.flatnonzero((words[:, 0] < end) & (words[:, 1] > start))
        if not inside.size:
            raise ValueError(
                f"the entity {kind} of the characters {start}..{end} has no word: give first characters and those "
                "after the last ones, counted from 0 in the text."
            )
        if any(tags[i] != OUTSIDE for i in inside):
            raise ValueError(
                f"the entity {kind} of the characters {start}..{end} shares a word with another one: tags cannot "
                "express entities that overlap; keep one of them."
            )
        first, last = int(inside[0]), int(inside[-1])
        letters = ["B", *["I"] * (last - first)]
        if scheme == "BILOU":
            letters[-1] = "L" if last > first else "U"
        tags[first : last + 1] = [f"{letter}-{kind}" for letter in letters]
    return tags


def entities_of(tags: Iterable[str]) -> list[Entity]:
    """Reads entities from tags, also from sequences that no scheme allows.

    An entity goes on as long as tags of its type follow, up to one that begins another (B-, U-, S-) or after one that
    ends it (L-, E-, U-, S-). So I- after O or after another type begins an entity, as in the CoNLL evaluation.

    Args:
      tags: Tag of each word [W].

    Returns:
      The entities, in words, in order.

    Raises:
      ValueError: If a tag has another form than `read_tag` reads.
    """
    found: list[Entity] = []
    is_open = False
    for i, tag in enumerate(tags):
        letter, kind = read_tag(tag)
        if not kind:
            is_open = False
        elif is_open and letter not in _BEGINS and found[-1].type == kind:
            found[-1] = found[-1]._replace(end=i + 1)
        else:
            found.append(Entity(i, i + 1, kind))
            is_open = True
        is_open = is_open and letter not in _ENDS
    return found


def in_characters(entities: Iterable[Entity], words: np.ndarray) -> list[Entity]:
    """Entities of words as entities of characters.

    Args:
      entities: Entities, in words.
      words: First character of each word and the one after its last, integers [W, 2].

    Returns:
      Entities, in characters.
    """
    return [Entity(int(words[e.start][0]), int(words[e.end - 1][1]), e.type) for e in entities]
