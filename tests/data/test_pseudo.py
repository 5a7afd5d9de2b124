"""Pseudo-labels: which rows are certain, that the classes balance, and what is refused."""

import numpy as np
import pytest

from jaxkd import data


def logits_of(labels, likely):
    """Logits of two classes in which each label has its probability."""
    p = np.array(likely)[:, None] * np.eye(2)[labels] + (1 - np.array(likely))[:, None] * (1 - np.eye(2)[labels])
    return np.log(p)


LABELS = [0, 1, 0, 0, 1, 0, 1]
LIKELY = [0.9, 0.7, 0.95, 0.6, 0.99, 0.95, 0.8]
LOGITS = logits_of(LABELS, LIKELY)


def test_the_most_certain_rows_of_each_class_are_taken_as_many_of_each():
    rows, labels = data.pseudo_labels(LOGITS, threshold=0.75)
    assert rows.tolist() == [2, 4, 5, 6]  # rows 0, 2 and 5 are sure of class 0, and 4 and 6 of class 1
    assert labels.tolist() == [0, 1, 0, 1]
    assert (rows.dtype, labels.dtype) == (np.int64, np.int32)


def test_equally_certain_rows_come_in_their_order():
    rows, labels = data.pseudo_labels(LOGITS, threshold=0.9)  # of class 1 row 4 alone
    assert (rows.tolist(), labels.tolist()) == ([2, 4], [0, 1])
    many = logits_of([0, 1] * 50, [0.8] * 100)
    assert data.pseudo_labels(many, threshold=0.5, per_class=3)[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_class_gives_at_most_its_certain_rows():
    rows, labels = data.pseudo_labels(LOGITS, threshold=0.75, per_class=3)
    assert (rows.tolist(), labels.tolist()) == ([0, 2, 4, 5, 6], [0, 0, 1, 0, 1])
    assert data.pseudo_labels(LOGITS, threshold=0.0, per_class=99)[0].tolist() == list(range(7))
    rows, labels = data.pseudo_labels(LOGITS, threshold=0.75, per_class=1)
    assert (rows.tolist(), labels.tolist()) == ([2, 4], [0, 1])


def test_the_threshold_itself_is_certain_and_huge_logits_are_no_accident():
    assert data.pseudo_labels([[0, 0], [-1e4, 1e4], [1e4, -1e4]], threshold=1.0)[0].tolist() == [1, 2]
    rows, labels = data.pseudo_labels([[0.0, 0.0], [1.0, 2.0]], threshold=0.5)
    assert (rows.tolist(), labels.tolist()) == ([0, 1], [0, 1])  # of two equal logits the first
    assert data.pseudo_labels(np.float32([[3, 1], [1, 3]]), threshold=0.8)[0].tolist() == [0, 1]


def test_classes_are_balanced_exactly_by_repeated_rows_or_not_at_all():
    rows, labels = data.pseudo_labels(LOGITS, threshold=0.75, balance="repeat")
    assert (rows.tolist(), labels.tolist()) == ([0, 2, 4, 4, 5, 6], [0, 0, 1, 1, 0, 1])  # row 4 is surest of class 1
    rows, labels = data.pseudo_labels(LOGITS, threshold=0.75, per_class=5, balance="repeat")
    assert np.bincount(labels).tolist() == [5, 5]
    assert np.bincount(rows, minlength=7).tolist() == [1, 0, 2, 0, 3, 2, 2]
    rows, labels = data.pseudo_labels(LOGITS, threshold=0.0, balance="none")
    assert (rows.tolist(), labels.tolist()) == (list(range(7)), LABELS)
    assert data.pseudo_labels(LOGITS, threshold=0.97, balance="none")[0].tolist() == [4]


def test_chosen_rows_have_the_labels_of_the_teacher():
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)
    for arrays in ({"image": images, "label": np.array([0, 1, 0])}, {"image": images}):
        source = data.with_pseudo_labels(data.open_source(arrays), np.array([0, 2, 2]), np.array([1, 0, 0]), 3)
        batch = source.read(np.array([2, 0]))
        assert (batch["label"].tolist(), batch["id"].tolist()) == ([0, 1], [2, 0])
        np.testing.assert_array_equal(batch["image"], images[[2, 0]])
        assert (len(source), source.num_classes, source.task) == (3, 3, "classification")
    for rows, labels, said in (
        ([0], [0, 1], r"\(1,\) rows and \(2,\) labels"),
        ([], [], "at least one"),
        ([3], [0], r"rows are 3\.\.3"),
        ([0], [3], r"labels are 3\.\.3: give ones from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=said):
            data.with_pseudo_labels(data.open_source({"image": images}), np.array(rows), np.array(labels), 3)


@pytest.mark.parametrize(
    ("logits", "options", "said"),
    [
        (LOGITS, {"threshold": 1.0, "balance": "none"}, r"no row of the classes \[0, 1\]"),
        (LOGITS, {"threshold": 0.5, "balance": "all"}, "balance is 'all': give one of drop, repeat, none"),
        (LOGITS, {"threshold": 0.5, "balance": "none", "per_class": 2}, "leave one out"),
        (LOGITS, {"threshold": 0.97}, r"no row of the classes \[0\] a probability of at least 0.97 \(at most 0.95\)"),
        (LOGITS[:1], {"threshold": 0.5}, r"no row of the classes \[1\] .* \(never the likeliest\)"),
        (LOGITS[:0], {"threshold": 0.5}, r"no row of the classes \[0, 1\]"),
        (LOGITS[:, :1], {"threshold": 0.5}, r"shape \(7, 1\)"),
        (LOGITS[0], {"threshold": 0.5}, r"shape \(2,\)"),
        ([["a", "b"]], {"threshold": 0.5}, "give numbers"),
        ([[0, 1], [np.nan, 1]], {"threshold": 0.5}, "not finite in 1 rows, first in row 1"),
        (LOGITS, {"threshold": 1.2}, r"threshold is 1\.2"),
        (LOGITS, {"threshold": np.nan}, "threshold is nan"),
        (LOGITS, {"threshold": 0.5, "per_class": 0}, "per_class is 0"),
    ],
)
def test_what_cannot_be_gets_a_sentence(logits, options, said):
    with pytest.raises(ValueError, match=said):
        data.pseudo_labels(logits, **options)
