"""Texts without labels: phrases cut from texts, and further texts beside the labelled ones."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxkd.data.checks import is_whole
from jaxkd.data.texts import Texts


def phrases(texts: Texts, count: int, *, seed: int = 0) -> Texts:
    """Cuts phrases of neighbouring words out of texts, for a teacher to label where there are no further texts.

    A text, the number of words and the place of the first are drawn with equal chances. No phrase is given twice, and
    none that is a whole text; there are fewer than asked for where texts are few and short.

    Args:
      texts: The texts; labels are not read.
      count: Number of phrases at most.
      seed: Seed of the draw.

    Returns:
      Texts without labels.

    Raises:
      ValueError: If the count is not positive, the texts are pairs, or no text has two words.
    """
    if not is_whole(count) or count < 1 or texts.pairs is not None:
        what = f"of {count} phrases" if texts.pairs is None else "of pairs"
        raise ValueError(
            f"phrases of {texts.name} were asked for, {what}: give single texts, and a count of at least 1."
        )
    words = [text.split() for text in texts.texts]
    usable = [row for row, parts in enumerate(words) if len(parts) > 1]
    if not usable:
        raise ValueError(f"no text of {texts.name} has two words, so there are no phrases in it: give longer texts.")
    random = np.random.RandomState(seed)  # its stream is frozen for good
    whole, found = {" ".join(parts) for parts in words}, dict[str, None]()
    for _ in range(4 * count):
        parts = words[usable[random.randint(len(usable))]]
        length = random.randint(1, len(parts))
        first = random.randint(len(parts) - length + 1)
        phrase = " ".join(parts[first : first + length])
        if phrase not in whole:
            found[phrase] = None
        if len(found) == count:
            break
    name, kept = f"phrases of {texts.name}", list(found)
    return Texts(name, kept, np.arange(len(kept), dtype=np.int32), class_names=texts.class_names)


def draw_texts(texts: Texts, count: int, *, seed: int = 0) -> Texts:
    """Draws some of the texts, in their order.

    Args:
      texts: The texts.
      count: Number of texts at most.
      seed: Seed of the draw.

    Returns:
      Texts.

    Raises:
      ValueError: If the count is not positive.
    """
    if not is_whole(count) or count < 1:
        raise ValueError(f"{count} of the texts of {texts.name} were asked for: give a count of at least 1.")
    if count >= len(texts):
        return texts
    drawn = np.random.RandomState(seed).permutation(len(texts))[:count]
    return texts.take(np.sort(drawn))


def add_texts(texts: Texts, more: Texts, labels: np.ndarray) -> Texts:
    """Labelled texts, and further ones with labels that a teacher gave them.

    Args:
      texts: Labelled texts [N].
      more: Further texts [M].
      labels: Class of each of them, integers [M].

    Returns:
      Texts [N + M] with ids 0..N+M-1, the labelled ones first, without further fields.

    Raises:
      ValueError: If the first have no classes, one has pairs and the other not, or there are not M labels.
    """
    if texts.task != "classification" or (texts.pairs is None) != (more.pairs is None) or len(labels) != len(more):
        raise ValueError(
            f"{more.name} ({len(more)} texts{', pairs' * (more.pairs is not None)}) with {len(labels)} labels cannot "
            f"stand beside {texts.name} ({texts.task}{', pairs' * (texts.pairs is not None)}): give one class "
            "for each, and texts of one kind."
        )
    return dataclasses.replace(
        texts,
        name=f"{texts.name} + {more.name}",
        texts=texts.texts + more.texts,
        ids=np.arange(len(texts) + len(more), dtype=np.int32),
        pairs=None if texts.pairs is None or more.pairs is None else texts.pairs + more.pairs,
        labels=np.concatenate([np.asarray(texts.labels), labels]).astype(np.int32),
        fields={},
    )
