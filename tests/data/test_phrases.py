"""Phrases cut from texts, draws of texts, and texts that a teacher has labelled beside labelled ones."""

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.phrases import add_texts, draw_texts, phrases

COLUMNS = {"sentence": ["a b c d", "e f", "g", "a  b"], "label": ["x", "y", "x", "y"]}
TEXTS = data.open_texts(COLUMNS)


def test_phrases_are_neighbouring_words_that_are_no_whole_text_and_never_come_twice():
    found = phrases(TEXTS, 1000)
    assert sorted(found.texts) == ["a", "a b c", "b", "b c", "b c d", "c", "c d", "d", "e", "f"]
    assert found.labels is None
    assert found.ids.tolist() == list(range(10))
    assert found.class_names == ("x", "y")
    few = phrases(TEXTS, 3, seed=1)
    assert len(set(few.texts)) == 3
    assert few.texts == phrases(TEXTS, 3, seed=1).texts != phrases(TEXTS, 3, seed=2).texts


def test_texts_are_drawn_in_their_order():
    drawn = draw_texts(TEXTS, 2, seed=3)
    assert drawn.ids.tolist() == sorted(drawn.ids.tolist())
    assert [TEXTS.texts[i] for i in drawn.ids] == drawn.texts
    assert draw_texts(TEXTS, 4) is TEXTS


def test_labelled_texts_come_first_and_keep_their_labels():
    more = phrases(TEXTS, 2)
    both = add_texts(TEXTS, more, np.array([1, 0]))
    assert both.texts == TEXTS.texts + more.texts
    assert both.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert both.labels.dtype == np.int32
    assert both.ids.tolist() == list(range(6))
    assert both.class_names == TEXTS.class_names


def test_what_gives_no_phrases_or_no_union_is_refused():
    pairs = data.open_texts({"sentence1": ["a b"], "sentence2": ["c"], "label": ["x"]})
    for texts, count, said in ((TEXTS, 0, "at least 1"), (pairs, 5, "of pairs"), (TEXTS.take([2]), 5, "two words")):
        with pytest.raises(ValueError, match=said):
            phrases(texts, count)
    with pytest.raises(ValueError, match="at least 1"):
        draw_texts(TEXTS, 0)
    for more, labels in ((phrases(TEXTS, 2), [1]), (pairs, [1])):
        with pytest.raises(ValueError, match="one class for each"):
            add_texts(TEXTS, more, np.array(labels))
