"""Texts with tagged words, the floor of taggers, and the parts of their table."""

import numpy as np
import pytest

from jaxkd import data, metrics
from jaxkd.data.tokenizer import Encoded
from jaxkd.experiment import entities, taggers
from jaxkd.experiment.entities import Tagged, apart, open_pipeline, tag_texts

NAMES = data.tag_names(["GPE", "PER"])


def texts(*rows, **fields):
    return data.Texts("rows", list(rows), np.arange(len(rows), dtype=np.int32), fields=fields)


@pytest.fixture(scope="module")
def tagged():
    found = [[(8, 12, "GPE"), (0, 4, "PER")], [(3, 7, "GPE")], []]
    return tag_texts(texts("Anna in Rome .", "to Rome !", "nothing", entities=found))


def test_entities_of_the_file_become_tags_of_words(tagged):
    assert tagged.tags == [["B-PER", "O", "B-GPE", "O"], ["O", "B-GPE", "O"], ["O"]]
    assert tagged.entities == 3
    few = tagged.known([1]).take([0, 1]).join(tagged.take([2]))
    assert few.tags == [None, ["O", "B-GPE", "O"], ["O"]]
    assert few.texts.ids.tolist() == [0, 1, 2]
    assert tag_texts(tagged.texts, known=False).tags == [None] * 3
    own = tag_texts(texts("to Rome", words=[np.array([[0, 7]])], entities=[[[3, 7, "GPE"]]]))
    assert own.tags == [["B-GPE"]]


def test_a_pipeline_labels_texts():
    assert tag_texts(texts("in 1999 or 2", "none"), open_pipeline("digits")).tags == [
        ["O", "B-NUMBER", "O", "B-NUMBER"],
        ["O"],
    ]
    for wrong in ("spacy:", "bert"):
        with pytest.raises(ValueError, match=r"names no pipeline of entities: give spacy:PACKAGE, or digits"):
            open_pipeline(wrong)


def test_entities_that_are_missing_or_do_not_fit_are_sentences():
    with pytest.raises(ValueError, match=r"rows has no field `entities`: .*conll:PATH.*--silver"):
        tag_texts(texts("a"))
    for wrong in ([(5, 9, "GPE")], [(0, 1)], [(0, 1, "A"), (0, 1, "B")], 3):
        with pytest.raises(
            ValueError, match=r"entities of row 0 of rows are not understood .*\[start, end, \"TYPE\"\]"
        ):
            tag_texts(texts("a", entities=[wrong]))


def test_no_text_stands_in_two_splits():
    held_out = texts("a", "b")
    assert apart(texts("c", "a", "c", "d"), held_out).texts == ["c", "d"]
    with pytest.raises(ValueError, match="stand in the other splits too"):
        apart(texts("b", "a"), held_out)


class Characters:
    """A tokenizer of single characters."""

    pad, size = 0, 256

    def __call__(self, rows):
        offsets = [np.stack([np.arange(len(row)), np.arange(len(row)) + 1], axis=1) for row in rows]
        ids = [np.array([ord(c) % 256 for c in row], np.int32) for row in rows]
        return Encoded(ids, ids, ids, offsets, 0, 0)


def test_sources_have_labels_and_the_teachers_word_at_first_tokens(tagged, caplog):
    tokenizer = Characters()
    encoded = tokenizer(tagged.texts.texts)
    logits = [np.full((len(row), 5), i, np.float32) for i, row in enumerate(encoded.tokens)]
    carried = data.Carried(logits, [np.arange(len(row)) < 9 for row in encoded.tokens])
    some = tagged.known([0, 2])
    source = entities.tag_source(some, encoded, tokenizer, NAMES, capitals=True, carried=carried)
    batch = source.read(np.arange(3))
    label = batch["label"]
    starts = {0: 3, 5: 0, 8: 1, 13: 0}
    assert {i: int(k) for i, k in enumerate(label[0]) if k != data.NO_LABEL} == starts
    assert (label[1] == data.NO_LABEL).all(), "its entities are not known"
    assert np.flatnonzero(batch["segments"][0]).tolist() == [0, 8]
    assert np.flatnonzero(batch["heard"][0]).tolist() == [0, 5, 8], "the teacher's text was cut"
    assert batch["teacher_logits"].shape == (3, 14, 5)
    assert source.num_classes == 5
    assert not caplog.messages
    entities.tag_source(tagged.known([]), encoded._replace(cut=1), tokenizer, NAMES)
    assert "1 texts are cut" in caplog.messages[0], "though none of its words has a tag"


def test_the_floor_knows_frequent_words_and_capital_letters(tagged):
    floor = taggers.most_frequent_tags(tagged)
    said = floor(tag_texts(texts("Anna to Rome and Paris", "Paris"), known=False))
    assert said == [["B-PER", "O", "B-GPE", "O", "I-GPE"], ["O"]]
    counts = taggers.count_spans(floor(tagged), tagged, NAMES)
    assert counts.value() == 1
    found = {"spans": metrics.SpanF1(*np.array([[[1, 0]] * 2, [[1, 1]] * 2, [[2, 0]] * 2], float).squeeze())}
    row = taggers.result("one", {"spans": found["spans"]}, NAMES)
    assert row["network"] == "one"
    assert row["per_type"].keys() == {"GPE", "PER"}
    assert Tagged(tagged.texts, tagged.words, [None] * 3).entities == 0
