"""Rows of slices: all classes in each, none twice, always the same; what is said and refused."""

import logging

import numpy as np
import pytest

from jaxkd.data import check_disjoint, labels_of, open_source
from jaxkd.data.splits import check_sorted, draw

SIZE = 200
SORTED = np.repeat(np.arange(10), 20)
IMAGES = np.arange(SIZE, dtype=np.float32).reshape(SIZE, 1, 1, 1)
PARTS = (":80%", "80%:90%", "90%:")


def opened(labels, parts=PARTS):
    arrays = {"image": IMAGES} if labels is None else {"image": IMAGES, "label": labels}
    return [open_source(arrays, f"train[{part}]") for part in parts]


@pytest.mark.parametrize(
    "labels",
    [SORTED, SORTED[::-1].copy(), SORTED[:, None], SORTED.astype(np.float32), None, SORTED[:, None] // [1, 5] % 2],
    ids=["sorted", "downwards", "column", "floats", "none", "several"],
)
def test_percentages_of_a_sorted_file_hold_all_of_it_and_never_share_a_row(labels):
    parts = opened(labels)
    ids = np.concatenate([part.ids for part in parts])
    assert sorted(ids) == list(range(SIZE))
    assert [len(part) for part in parts] == [160, 20, 20]
    for part, again in zip(parts, opened(labels), strict=True):
        found = part.read(np.arange(len(part)))
        np.testing.assert_array_equal(found["image"].ravel(), found["id"], "an id is the row in the file")
        np.testing.assert_array_equal(found["id"], part.ids)
        assert (np.diff(part.ids) > 0).all()
        np.testing.assert_array_equal(part.ids, again.ids)
        share = np.bincount(SORTED[part.ids], minlength=10) / len(part)
        assert share.min() >= (0.1 if labels is not None and labels.dtype.kind == "i" and labels.size == SIZE else 0)
        assert len(set(SORTED[part.ids])) >= 6


def test_each_class_has_its_share_to_within_a_row():
    random = np.random.default_rng(0)
    labels = random.choice(5, 103, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    rank = random.permutation(103)
    for start, stop in ((0, 93), (93, 103), (10, 60), (0, 103)):
        rows = draw(rank, labels, start, stop)
        assert len(rows) == stop - start
        expected = np.bincount(labels) * (stop - start) / 103
        assert (abs(np.bincount(labels[rows], minlength=5) - expected) <= 1.5).all()
    few = np.repeat([0, 1], [90, 10])
    assert [few[draw(np.arange(100), few, 0, stop)].sum() for stop in (4, 6, 14, 16)] == [0, 1, 1, 2], "rounded shares"


def test_the_draw_never_changes_between_versions():
    # Runs resume and caches are read by these rows.
    assert opened(SORTED, ("95%:",))[0].ids.tolist() == [5, 35, 52, 62, 89, 101, 138, 151, 176, 196]


def test_row_numbers_count_in_the_files_order_and_a_lost_class_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        (part,) = opened(SORTED, ("30:150",))
        assert part.ids.tolist() == list(range(30, 150))
        (said,) = caplog.messages
        assert "has no example of 3 of the 10 classes of its split (0, 8 and 9): its rows are in the order" in said
        caplog.clear()
        opened(SORTED / 7, ("30:150", "30%:60%"))
        (said,) = caplog.messages
        assert "[30:150]] is a slice of rows that are sorted by their labels" in said
        caplog.clear()
        opened(np.arange(SIZE) % 10, ("30:150", ":7", ":100%", ":5%"))
        assert not caplog.messages, "a part that is small, or whole, or holds all classes"
        opened(np.r_[np.zeros(SIZE - 1, int), 1], (":90%", "90%:"))
        (said,) = caplog.messages
        assert "1 of the 2 classes of its split (1): these have too few examples" in said


def test_classes_that_only_one_split_has_and_classes_without_an_example_are_said(caplog):
    arrays = {f"{s}_{f}": v[:9] for s in ("train", "test") for f, v in (("image", IMAGES), ("label", np.arange(9) % 3))}
    open_source(arrays, "test")
    open_source(arrays | {"test_label": 1 + np.arange(9) % 3}, "test")
    open_source({"image": IMAGES[:9], "label": 1 + np.arange(9) % 3})
    open_source(arrays | {"test_label": np.full(9, -1)}, "train")
    open_source(arrays | {"test_label": np.arange(9, dtype=np.uint64) % 3}, "train")
    new, empty = caplog.messages
    assert "arrays[test] has 1 of its classes for itself (3), since the split train has no example" in new
    assert "no example of 1 of the classes 0..3 (0): number the labels from 0 if they count from 1" in empty


def test_slices_that_share_rows_or_mix_rows_and_percentages_are_refused():
    one, other, rows = opened(SORTED, (":90%", "90%:", "150:200"))
    check_disjoint(one, other)
    arrays = {"train_image": IMAGES, "test_image": IMAGES}
    check_disjoint(*(open_source(arrays, split) for split in ("train[:50%]", "test", "train[50%:]")))
    with pytest.raises(ValueError, match=r"arrays\[train\[:90%\]\] and arrays\[train\[150:200\]\] share 45 rows, such"):
        check_disjoint(one, rows)
    with pytest.raises(ValueError, match=r"mixes a row and a percentage.*give both bounds as rows or both as"):
        opened(SORTED, ("20:50%",))


def test_a_sorted_set_whose_rows_cannot_be_drawn_is_refused(caplog):
    with pytest.raises(ValueError, match="rows are sorted by class, so it lacks some classes: prepare the set with"):
        check_sorted("set[train[:90%]]", "train[:90%]", SORTED)
    check_sorted("set[train[:90]]", "train[:90]", SORTED[::-1])
    (said,) = caplog.messages
    assert "sorted by class" in said
    check_sorted("set[train[:90%]]", "train[:90%]", np.arange(SIZE) % 10)
    check_sorted("set[train[:90%]]", "train[:90%]", np.zeros(SIZE, int))


def test_labels_of_drawn_rows_are_their_own():
    (part,) = opened(SORTED, ("90%:",))
    np.testing.assert_array_equal(labels_of(part), SORTED[part.ids])
