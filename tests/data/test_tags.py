"""Entities to tags and back, in sequences that schemes allow and in others."""

import itertools

import numpy as np
import pytest

from jaxkd.data.tags import entities_of, in_characters, read_tag, read_tags, split_words, tag_names, tag_words

TEXT = "Ms. Müller-Śmith flew to New York, on May 3"
ENTITIES = [(4, 16, "PERSON"), (25, 33, "GPE"), (38, 43, "DATE")]


def test_words_are_runs_of_letters_and_single_signs():
    words = [TEXT[a:b] for a, b in split_words(TEXT)]
    assert words == ["Ms", ".", "Müller", "-", "Śmith", "flew", "to", "New", "York", ",", "on", "May", "3"]
    assert split_words(" \n").shape == (0, 2)


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_entities_come_back_from_their_tags(scheme):
    words = split_words(TEXT)
    tags = tag_words(words, ENTITIES, scheme)
    assert set(tags) <= set(tag_names([kind for *_, kind in ENTITIES], scheme))
    assert in_characters(entities_of(tags), words) == ENTITIES
    assert tags[2:5] == ["B-PERSON", "I-PERSON", "I-PERSON" if scheme == "BIO" else "L-PERSON"]


def test_part_of_a_word_makes_the_word_belong_to_the_entity():
    words = np.array([[0, 4], [5, 9]])
    assert tag_words(words, [(2, 3, "X")], "BILOU") == ["U-X", "O"]
    assert in_characters(entities_of(["U-X", "O"]), words) == [(0, 4, "X")]


def test_any_sequence_is_read_by_the_rule_of_the_conll_evaluation():
    assert entities_of(["I-A", "I-A", "O", "I-A", "B-A", "I-B", "I-B"]) == [
        (0, 2, "A"),
        (3, 4, "A"),
        (4, 5, "A"),
        (5, 7, "B"),
    ]
    assert entities_of(["U-A", "I-A", "L-A", "L-A", "B-A"]) == [(0, 1, "A"), (1, 3, "A"), (3, 4, "A"), (4, 5, "A")]
    assert entities_of(["S-A", "B-A", "E-A"]) == entities_of(["U-A", "B-A", "L-A"])
    assert entities_of([]) == entities_of(["O"]) == []


def test_reading_writing_and_reading_again_changes_nothing():
    words = np.stack([np.arange(3), np.arange(3) + 1], axis=1)
    for scheme in ("BIO", "BILOU"):
        for tags in itertools.product(tag_names("AB", scheme), repeat=3):
            found = entities_of(tags)
            assert entities_of(tag_words(words, found, scheme)) == found


def test_numbered_tags_know_their_types():
    tags = read_tags(("O", "B-B", "I-B", "U-A-x"))
    assert tags.types == ("B", "A-x")
    assert tags.kind.tolist() == [-1, 0, 0, 1]
    assert tags.begins.tolist() == [False, True, False, True]
    assert tags.ends.tolist() == [False, False, False, True]


def test_what_is_no_tag_or_no_entity_is_a_sentence():
    for wrong in ("", "PER", "B-", "X-PER", "BI-PER", "o"):
        with pytest.raises(ValueError, match=r"is no tag of an entity: write O, or B-TYPE"):
            read_tag(wrong)
    with pytest.raises(ValueError, match=r"no scheme of tags 'IO': give BIO or BILOU"):
        tag_names("A", "IO")
    with pytest.raises(ValueError, match=r"GPE of the characters 90..95 has no word"):
        tag_words(split_words(TEXT), [(90, 95, "GPE")])
    with pytest.raises(ValueError, match=r"DATE of the characters 30..36 shares a word with another"):
        tag_words(split_words(TEXT), [*ENTITIES, (30, 36, "DATE")])
