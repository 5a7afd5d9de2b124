"""Texts as labels, and strings joined from recordings of single words."""

import numpy as np
import pytest

from jaxkd.data import transcripts
from jaxkd.data.sounds import LOUDNESS, Sounds

RATE = 1000


def words(lengths=(100, 120, 140, 160), speakers=("a", "b")):
    """Recordings of constants: those of speaker number s and word number w are 0.1 + s + w."""
    grid = [(s, w) for s in range(len(speakers)) for w in range(len(lengths))]
    return Sounds(
        "words",
        [np.full(lengths[w], 0.1 + s + w, np.float32) for s, w in grid],
        RATE,
        np.array([w for _, w in grid], np.int32),
        tuple(f"word{w}" for w in range(len(lengths))),
        np.array([speakers[s] for s, _ in grid]),
        np.arange(len(grid), dtype=np.int32),
    )


def test_units_write_texts_as_labels_and_back():
    texts = ["two one", "one", "one  three "]
    units = transcripts.find_units(texts, "words")
    assert units.names == ("one", "three", "two")
    assert units.classes == 4
    labels, mask = units.encode(texts)
    assert labels.tolist() == [[3, 1], [1, 0], [1, 2]]
    assert [units.decode(row[m]) for row, m in zip(labels, mask, strict=True)] == ["two one", "one", "one three"]
    letters = transcripts.find_units(["ab a"], "characters")
    assert letters.names == (" ", "a", "b")
    assert letters.decode(letters.encode(["b a"])[0][0]) == "b a"


def test_units_that_are_unknown_are_refused_or_said(caplog):
    units = transcripts.find_units(["one two"], "words")
    with pytest.raises(ValueError, match=r"text 1, 'one six', has 'six', which is none of 2 words"):
        units.encode(["two", "one six"])
    transcripts.say_unknown_units("test", ["one", "six ten"], units)
    assert "test has 2 words that the training texts lack, such as six and ten" in caplog.text
    with pytest.raises(ValueError, match="3 texts have no words"):
        transcripts.find_units(["", " ", ""], "words")


def test_a_string_is_its_words_of_one_speaker_with_pauses():
    pauses = {"pause": (0.05, 0.1), "words": (2, 3), "snr": np.inf}
    strings = transcripts.join_words(words(), 20, seed=3, **pauses)
    assert len(strings) == 20
    for x, text, speaker in zip(strings.samples, transcripts.texts_of(strings), strings.speakers, strict=True):
        runs = [run for run in np.split(x, np.flatnonzero(np.diff(x)) + 1) if run[0]]
        numbers = [int(word.removeprefix("word")) for word in text.split()]
        assert 2 <= len(numbers) <= 3
        assert len(set(numbers)) == len(numbers)
        np.testing.assert_allclose(
            [run[0] for run in runs], [0.1 + "ab".index(speaker) + n for n in numbers], rtol=1e-6
        )
        assert [len(run) for run in runs] == [100 + 20 * n for n in numbers]
        silence = [len(run) for run in np.split(x, np.flatnonzero(np.diff(x)) + 1) if not run[0]]
        assert len(silence) == len(numbers) + 1
        assert all(50 <= n <= 100 for n in silence)


def test_a_string_depends_on_the_seed_and_its_number_alone():
    some, more = (transcripts.join_words(words(), n, seed=1, words=(2, 3), speed=(0.9, 1.1)) for n in (3, 6))
    for x, y in zip(some.samples, more.samples, strict=False):
        np.testing.assert_array_equal(x, y)
    other = transcripts.join_words(words(), 6, seed=2, words=(2, 3))
    assert transcripts.texts_of(other) != transcripts.texts_of(more)
    assert set(more.speakers) == {"a", "b"}


def test_noise_and_speed_of_strings():
    fast = transcripts.join_words(words(), 4, seed=0, words=(2, 2), pause=(0.1, 0.1), speed=(2.0, 2.0), snr=20.0)
    plain = transcripts.join_words(words(), 4, seed=0, words=(2, 2), pause=(0.1, 0.1), snr=20.0)
    assert [abs(len(x) - 2 * len(y)) <= 2 for x, y in zip(plain.samples, fast.samples, strict=True)] == [True] * 4
    assert [x[:90].std() / LOUDNESS for x in plain.samples] == pytest.approx([0.1] * 4, rel=0.3)


def test_strings_that_cannot_be_joined_are_refused(caplog):
    with pytest.raises(ValueError, match=r"the speaker 'a' of words has 4 recordings of up to 1 s: strings of up to 5"):
        transcripts.join_words(words(), 1, seed=0, words=(2, 5))
    with pytest.raises(ValueError, match="give at least 1 string, and the lower bound first"):
        transcripts.join_words(words(), 1, seed=0, words=(3, 2))
    transcripts.join_words(words(), 1, seed=0, words=(1, 2), longest=0.15)
    assert "2 of 8 recordings of words are longer than 0.15 s: left out" in caplog.text
