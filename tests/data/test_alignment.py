"""Two tokenisations of one text: shared characters, pooled distributions, labels of words."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxkd.data.alignment import NO_LABEL, carry_tokens, label_tokens, pool_tokens, shared_characters

#        "[CLS] Zoë ate 🍕 pizza [SEP]" in the teacher's pieces and in the student's.
TEXT = "Zoë ate 🍕pizza"
TEACHER = np.array([[0, 0], [0, 2], [2, 3], [4, 7], [8, 9], [9, 11], [11, 14], [0, 0]])
STUDENT = np.array([[0, 3], [4, 7], [8, 11], [11, 14], [0, 0]])
LOGITS = np.random.default_rng(0).normal(0, 2, (8, 3)).astype(np.float32)


def by_characters(student, teacher):
    return np.array([[len(set(range(*s)) & set(range(*t))) for t in teacher] for s in student])


def test_shared_characters_are_counted_as_sets_of_characters():
    found = shared_characters(STUDENT, TEACHER)
    np.testing.assert_array_equal(found, by_characters(STUDENT, TEACHER))
    np.testing.assert_array_equal(found[2], [0, 0, 0, 0, 1, 2, 0, 0])  # the pizza's sign and "pi"
    assert not found[-1].any(), "a special token shares nothing"
    rng = np.random.default_rng(1)
    one, other = (np.sort(rng.integers(0, 12, (9, 2)), axis=1) for _ in range(2))
    np.testing.assert_array_equal(shared_characters(one, other), by_characters(one, other))
    assert shared_characters(np.zeros((0, 2), int), TEACHER).shape == (0, 8)


def test_the_first_shared_token_or_the_weighted_mean_speaks():
    shared = shared_characters(STUDENT, TEACHER)
    first, known = pool_tokens(LOGITS, shared, "first")
    mean, also = pool_tokens(LOGITS, shared, "mean")
    assert known.tolist() == also.tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(first[:4], log_softmax(LOGITS, -1)[[1, 3, 4, 6]], rtol=1e-5)
    p = softmax(LOGITS, -1)
    expected = [(2 * p[1] + p[2]) / 3, p[3], (p[4] + 2 * p[5]) / 3, p[6]]
    np.testing.assert_allclose(np.exp(mean[:4]), expected, rtol=1e-5)
    np.testing.assert_allclose(np.exp(np.stack([first, mean])).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(first[4], -np.log(3), rtol=1e-6)
    assert first.dtype == mean.dtype == np.float32


def test_tokens_behind_the_end_of_a_cut_text_are_unknown():
    shared = shared_characters(STUDENT, TEACHER)
    for pool in ("first", "mean"):
        whole, _ = pool_tokens(LOGITS, shared, pool)
        cut, known = pool_tokens(LOGITS[:4], shared, pool)  # the teacher saw "Zoë ate"
        assert known.tolist() == [True, True, False, False, False]
        np.testing.assert_array_equal(cut[:2], whole[:2])
        nothing, known = pool_tokens(LOGITS[:0], shared, pool)
        assert not known.any()
        np.testing.assert_allclose(nothing, -np.log(3), rtol=1e-6)


def test_impossible_classes_and_large_logits_stay_exact():
    z = np.array([[1e4, 0, -np.inf], [1e4, 1e4, -np.inf]])
    mean, _ = pool_tokens(z, np.array([[1, 1]]), "mean")
    np.testing.assert_allclose(np.exp(mean), [[0.75, 0.25, 0]], rtol=1e-6)


def test_carrying_takes_text_by_text_and_leaves_padding_out():
    padded = np.concatenate([LOGITS, np.full((3, 3), np.nan, np.float32)])
    empty = np.zeros((0, 2), int)
    carried = carry_tokens([padded, LOGITS], [STUDENT, empty], [TEACHER, TEACHER], pool="mean")
    one, known = pool_tokens(LOGITS, shared_characters(STUDENT, TEACHER), "mean")
    np.testing.assert_array_equal(carried.logits[0], one)
    np.testing.assert_array_equal(carried.known[0], known)
    assert carried.logits[1].shape == (0, 3)


def test_the_first_token_of_a_word_has_its_label():
    words = np.array([[0, 3], [4, 7], [8, 9], [9, 14]])
    found = label_tokens([5, 6, 7, 8], words, TEACHER)
    assert found.tolist() == [NO_LABEL, 5, NO_LABEL, 6, 7, 8, NO_LABEL, NO_LABEL]
    # The student's third token holds the beginnings of two words, of which the first counts.
    assert label_tokens([5, 6, 7, 8], words, STUDENT).tolist() == [5, 6, 7, NO_LABEL, NO_LABEL]
    assert label_tokens([5, 6, 7, 8], words, TEACHER[:4]).tolist() == [NO_LABEL, 5, NO_LABEL, 6]
    assert label_tokens([], words[:0], TEACHER).tolist() == [NO_LABEL] * 8
    assert label_tokens([5], words[:1], TEACHER[:0]).shape == (0,)


def test_spaces_that_belong_to_tokens_do_not_move_labels():
    words, tokens = np.array([[0, 3], [4, 8]]), np.array([[0, 3], [3, 6], [6, 8]])
    assert label_tokens([1, 2], words, tokens).tolist() == [1, 2, NO_LABEL]


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(ValueError, match=r"logits have shape \(9, 3\) but the teacher has 8 tokens"):
        pool_tokens(np.zeros((9, 3)), shared_characters(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"no pooling 'max'"):
        pool_tokens(LOGITS, shared_characters(STUDENT, TEACHER), "max")
    with pytest.raises(ValueError, match=r"of the student have shape \(5,\) .* integers \[tokens, 2\]"):
        shared_characters(STUDENT[:, 0], TEACHER)
    with pytest.raises(ValueError, match=r"of the teacher ends at 1, before it begins at 3"):
        shared_characters(STUDENT, np.array([[3, 1]]))
    with pytest.raises(ValueError, match=r"logits of 1 texts, and tokens of 2 \(student\) and 1 \(teacher\)"):
        carry_tokens([LOGITS], [STUDENT, STUDENT], [TEACHER])
    with pytest.raises(ValueError, match=r"1 labels of 2 words"):
        label_tokens([1], np.array([[0, 1], [2, 3]]), TEACHER)
