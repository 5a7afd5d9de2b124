"""Span F1 against counts made by hand, by another program, and by reading one sentence after the other."""

import functools

import jax
import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.data.tags import entities_of
from jaxkd.types import Outputs

TAGS = ("O", "B-A", "I-A", "U-A", "L-A", "B-B", "I-B", "U-B", "L-B")
METRIC = metrics.span_f1(TAGS)
IGNORING = metrics.ignoring({"f1": METRIC}, -100)["f1"]


SHAPE = (20, 9)


@jax.jit
def measured(logits, label, mask):
    return [metric(Outputs(logits), Outputs(None), {"label": label, "mask": mask}) for metric in (METRIC, IGNORING)]


def measure(predicted, label, mask=True, ignoring=False):
    """Counts of one batch, padded to a shape that is compiled once."""
    rows = [(0, size - given) for size, given in zip(SHAPE, np.shape(label), strict=True)]
    counts = np.pad(np.broadcast_to(mask, np.shape(label)), rows)
    logits = np.eye(len(TAGS), dtype=np.float32)[np.pad(predicted, rows)]
    return jax.device_get(measured(logits, np.pad(label, rows).astype(np.int32), counts)[ignoring])


def numbers(*sentences):
    return np.array([[TAGS.index(tag) for tag in sentence.split()] for sentence in sentences])


def read(rows, counts):
    """Entities of each sentence, read from the words that count."""
    found = set()
    for i, (row, keep) in enumerate(zip(rows, counts, strict=True)):
        found |= {(i, *entity) for entity in entities_of([TAGS[k] for k in row[keep]])}
    return found


def test_counts_made_by_hand():
    label = numbers("B-A I-A O B-B O O", "B-B I-B I-B O B-A O")
    said = numbers("B-A I-A O B-A O B-B", "B-B I-B O O B-A B-A")
    found = measure(said, label)
    np.testing.assert_array_equal(found.hits, [2, 0])
    np.testing.assert_array_equal(found.predicted, [4, 2])
    np.testing.assert_array_equal(found.labelled, [2, 2])
    np.testing.assert_allclose([found.precision(), found.recall(), found.value()], [2 / 6, 2 / 4, 4 / 10])
    np.testing.assert_allclose(found.per_type(), [4 / 6, 0])
    nothing = metrics.SpanF1(*np.zeros((3, 2)))
    assert nothing.value() == nothing.precision() == nothing.recall() == 0


def test_random_tags_are_counted_as_they_are_read():
    rng = np.random.default_rng(0)
    label, said = (rng.integers(0, len(TAGS), (60, 9)) for _ in range(2))
    said = np.where(rng.random(said.shape) < 0.7, label, said)
    counts = rng.random(label.shape) < 0.7
    parts = [slice(i, i + 20) for i in (0, 20, 40)]

    def added(label, **options):
        return functools.reduce(
            lambda a, b: jax.tree.map(np.add, a, b), [measure(said[p], label[p], counts[p], **options) for p in parts]
        )

    ours, theirs = read(said, counts), read(label, counts)
    for sums, entities in zip(added(label), (ours & theirs, ours, theirs), strict=True):
        np.testing.assert_array_equal(sums, [sum(e[-1] == kind for e in entities) for kind in "AB"])
    np.testing.assert_array_equal(added(np.where(counts, label, -100), ignoring=True), added(label))


def test_padding_counts_nothing():
    label = numbers("B-A O O", "B-B I-B O")
    np.testing.assert_array_equal(measure(label, label, np.array([[True], [False]])).labelled, [1, 0])


def test_a_label_outside_the_tags_is_nan_unless_it_is_ignored():
    label = numbers("B-A O O", "B-B I-B O")
    wrong = np.where(label == TAGS.index("I-B"), 99, label)
    assert np.isnan(measure(label, wrong).value())
    assert measure(label, np.where(wrong == 99, -100, wrong), ignoring=True).value() == 1


def test_logits_of_other_tags_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 9\) but there are 9 tags: give logits \[B, L, 9\]"):
        METRIC(Outputs(np.zeros((2, 9))), Outputs(None), {"label": np.zeros(2, int)})
    with pytest.raises(ValueError, match=r"'PER' is no tag"):
        metrics.span_f1(("O", "PER"))
