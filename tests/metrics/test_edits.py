"""Error rates against jiwer, and decoding against an enumeration of all alignments."""

import itertools

import jax
import jiwer
import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.metrics.edits import count_edits

WORDS = ("zero", "one", "two", "nine")


@pytest.fixture(scope="module")
def texts():
    """References and hypotheses, among them equal ones, empty hypotheses, and common beginnings and ends."""
    rng = np.random.default_rng(0)

    def text(least):
        return " ".join(rng.choice(WORDS, rng.integers(least, 8)))

    pairs = [(text(1), text(0)) for _ in range(250)]
    pairs += [(a, a) for a, _ in pairs[:5]] + [(f"{a} {b}", f"{a} nine") for a, b in pairs[:20]]
    return [list(side) for side in zip(*pairs, strict=True)]


def test_word_and_character_edits_are_those_of_jiwer(texts):
    for ours, theirs in (
        (metrics.word_edits, jiwer.process_words),
        (metrics.character_edits, jiwer.process_characters),
    ):
        found, expected = ours(*texts), theirs(*texts)
        hits = found.length - found.substitutions - found.deletions
        assert (found.substitutions, found.deletions, found.insertions, hits) == (
            expected.substitutions,
            expected.deletions,
            expected.insertions,
            expected.hits,
        )
    assert metrics.word_edits(*texts).value() == jiwer.wer(*texts)
    assert metrics.character_edits(*texts).value() == jiwer.cer(*texts)


def test_edits_of_parts_add_up_to_those_of_the_whole(texts):
    whole = metrics.word_edits(*texts)
    parts = [metrics.word_edits(*(side[rows] for side in texts)) for rows in (slice(0, 40), slice(40, None))]
    assert jax.tree.map(np.add, *parts) == whole
    assert metrics.word_edits([], []).value() == 0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [("", "", (0, 0, 0, 0)), ("", "ab", (0, 0, 2, 0)), ("ab", "", (0, 2, 0, 2)), ("abc", "axc", (1, 0, 0, 3))],
)
def test_edits_of_short_sequences(reference, hypothesis, expected):
    assert count_edits(reference, hypothesis) == expected


def test_white_space_separates_words_as_in_jiwer():
    texts = ["a\tb  c", "a\xa0b", " \n a ", "a \t\nb", ""], ["a b c", "a b", "a\n\nb", "a  b", "\t"]
    for references, hypotheses in (texts, texts[::-1]):
        found, expected = metrics.word_edits(references, hypotheses), jiwer.process_words(references, hypotheses)
        assert found.value() == expected.wer
        assert found[:3] == (expected.substitutions, expected.deletions, expected.insertions)


def test_texts_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match=r"2 references but 1 hypotheses: give one for each"):
        metrics.word_edits(["one", "two"], ["one"])


def test_greedy_decoding_joins_repeats_and_then_drops_blanks():
    paths = np.array([[1, 1, 0, 1, 2], [0, 2, 2, 9, 9], [0, 0, 0, 0, 0], [9, 1, 9, 1, 2]])
    mask = paths != 9
    logits = np.where(mask[..., None], np.eye(10)[paths], np.nan)[..., :3].astype(np.float32)
    labels, real = jax.jit(metrics.greedy_ctc)(logits, mask)
    assert [row[m].tolist() for row, m in zip(np.asarray(labels), np.asarray(real), strict=True)] == [
        [1, 1, 2],
        [2],
        [],
        [1, 2],
    ]
    assert (np.asarray(labels)[~np.asarray(real)] == 0).all()
    with pytest.raises(ValueError, match=r"give \[B, T, K\] and \[B, T\]"):
        metrics.greedy_ctc(logits, mask[:, 1:])


def all_texts(log_p, blank):
    """Text -> probability of all its alignments."""
    found = {}
    for path in itertools.product(range(log_p.shape[1]), repeat=len(log_p)):
        text = tuple(k for k, _ in itertools.groupby(path) if k != blank)
        found[text] = found.get(text, 0) + np.exp(sum(log_p[t, k] for t, k in enumerate(path)))
    return found


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_the_probability_of_every_text(blank):
    z = np.random.default_rng(blank).standard_normal((5, 3))
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    expected = all_texts(log_p, blank)
    found = metrics.beam_search(log_p, beam=1000, blank=blank)
    assert {h.labels for h in found} == set(expected)
    np.testing.assert_allclose([np.exp(h.log_probability) for h in found], [expected[h.labels] for h in found])
    assert found == sorted(found, key=lambda h: -h.log_probability)
    narrow = metrics.beam_search(log_p, beam=3, blank=blank, classes=2)
    assert len(narrow) == 3
    assert narrow[0].log_probability <= found[0].log_probability + 1e-12


def test_a_beam_search_refuses_what_it_cannot_search():
    for log_p, options in ((np.zeros(3), {}), (np.full((2, 3), np.nan), {}), (np.zeros((2, 3)), {"beam": 0})):
        with pytest.raises(ValueError, match=r"give log-probabilities \[T, K\] without NaN"):
            metrics.beam_search(log_p, **options)
