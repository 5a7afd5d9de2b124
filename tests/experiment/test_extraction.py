"""Documents of users' files: their sentences, the labels made of summaries, floors, scores, and bad lines."""

import json

import numpy as np
import pytest

from jaxkd.experiment import extraction
from jaxkd.experiment.extraction import Document

TEXT = 'The cat sat. It cost 3.50 euros! "Why?" asked Dr Lee.\nNobody knew'
SENTENCES = ["the cat sat", "a dog ran home", "the sun rose early", "the dog sat"]


def write(path, *lines):
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return f"jsonl:{path}"


def test_sentences_end_before_capitals_alone():
    assert extraction.split_sentences(TEXT) == [
        "The cat sat.",
        "It cost 3.50 euros!",
        '"Why?" asked Dr Lee.',
        "Nobody knew",
    ]
    assert extraction.split_sentences(" \n ") == []


def test_rouge_1_counts_shared_words_by_hand():
    assert extraction.rouge_1("the cat the cat", "The cat sat.") == pytest.approx(2 * 2 / 7)
    assert extraction.rouge_1("a", "b") == extraction.rouge_1("", "") == 0
    assert extraction.rouge_1("One, two", "two one") == 1


def test_the_oracle_adds_sentences_while_they_help():
    assert extraction.oracle(SENTENCES, "a dog ran and the sun rose", 3) == [1, 2]
    assert extraction.oracle(SENTENCES, "a dog ran and the sun rose", 1) == [1]
    assert extraction.oracle(SENTENCES, "nothing alike", 2) == []


def test_both_forms_of_lines_are_read_and_what_has_nothing_to_choose_is_left_out(tmp_path):
    long = {"document": "A dog ran. The sun rose. It was early.", "summary": "the sun rose"}
    flagged = {"sentences": SENTENCES, "chosen": [3, 0, 3]}
    single = {"document": "One sentence.", "summary": "One sentence"}
    spec = write(tmp_path / "d.jsonl", *[long, flagged, single] * 10)
    found = extraction.open_documents(spec, 2)
    assert {split: len(documents) for split, documents in found.items()} == {"train": 16, "validation": 2, "test": 2}
    every = [one for documents in found.values() for one in documents]
    assert Document(SENTENCES, [0, 3], "the cat sat the dog sat") in every
    assert Document(["A dog ran.", "The sun rose.", "It was early."], [1], "the sun rose") in every
    texts = extraction.as_texts("d", found)
    assert len(texts.test) == sum(len(one.sentences) for one in found["test"])
    assert texts.train.labels.sum() == sum(len(one.chosen) for one in found["train"])


@pytest.mark.parametrize(
    "line",
    [{"document": "A. B."}, {"sentences": ["a", "b"], "chosen": [2]}, {"sentences": "a", "chosen": [0]}],
    ids=str,
)
def test_lines_of_another_form_are_named(tmp_path, line):
    spec = write(tmp_path / "d.jsonl", {"sentences": ["a", "b"], "chosen": [0]}, line)
    with pytest.raises(ValueError, match=r"line 2 of .*d.jsonl is no document with a summary: write \{"):
        extraction.open_documents(spec, 2)


def test_too_few_documents_and_other_files_are_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no document for the validation split: give at least ten"):
        extraction.open_documents(write(tmp_path / "d.jsonl", {"sentences": ["a", "b"], "chosen": [0]}), 1)
    with pytest.raises(ValueError, match="write jsonl:PATH of lines such as"):
        extraction.open_documents("tsv:x", 1)


def test_summaries_are_evaluated_by_hand_and_beside_floors():
    one = Document(SENTENCES, [0, 3], "the cat sat the dog sat")
    scores = np.array([0.5, 0.9, 0.1, 0.2])
    found = extraction.evaluate([one, one], [scores, -scores], 2)
    assert found["precision"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    expected = [
        extraction.rouge_1(text, one.summary)
        for text in ("the cat sat a dog ran home", "the sun rose early the dog sat")
    ]
    assert found["rouge_1"] == pytest.approx(np.mean(expected))
    assert extraction.evaluate([one], [extraction.lead(one)], 1)["precision"] == 1
    labels = np.isin(np.arange(4), one.chosen)
    assert extraction.evaluate([one], [labels], 2) == {"precision": 1, "rouge_1": 1}
    central = extraction.centroid([one])(one)
    assert np.argmax(central) in (0, 3)  # they share words with others
    np.testing.assert_array_equal(extraction.at_random(one), extraction.at_random(one))
