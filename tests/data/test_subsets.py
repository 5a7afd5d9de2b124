"""Parts of a source: whose rows they are, how they are numbered, what is refused."""

import dataclasses

import numpy as np
import pytest

from jaxkd import data

RNG = np.random.default_rng(0)
ARRAYS = {"image": RNG.integers(0, 255, (60, 4, 4, 1)).astype(np.uint8), "label": np.repeat(np.arange(6), 10)}
SOURCE = data.open_source(ARRAYS, "train[6:]")  # four of class 0, ten of each other one


def rows(source):
    return source.read(np.arange(len(source)))


def test_classes_are_numbered_in_the_order_given():
    chosen = data.of_classes(SOURCE, (4, 2))
    found = rows(chosen)
    assert (len(chosen), chosen.num_classes) == (20, 2)
    np.testing.assert_array_equal(found["image"], ARRAYS["image"][np.r_[20:30, 40:50]])
    np.testing.assert_array_equal(found["label"], [1] * 10 + [0] * 10)
    np.testing.assert_array_equal(found["id"], chosen.ids)
    np.testing.assert_array_equal(data.labels_of(chosen), found["label"])
    batch = data.train_batches(chosen, 20, seed=0)[0]
    np.testing.assert_array_equal(batch["label"], found["label"][batch["id"]])


def test_few_labels_are_balanced_drawn_without_replacement_and_kept_by_the_seed():
    few, again, other = (data.few_labels(SOURCE, 3, seed=seed) for seed in (0, 0, 1))
    found = rows(few)
    assert np.bincount(found["label"]).tolist() == [3] * 6
    assert len(np.unique(found["image"].reshape(18, -1), axis=0)) == 18
    np.testing.assert_array_equal(found["image"], rows(again)["image"])
    assert not np.array_equal(found["image"], rows(other)["image"])
    for image, label in zip(found["image"], found["label"], strict=True):
        assert (ARRAYS["image"][ARRAYS["label"] == label] == image).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("classes", [(), (1, 1), (6,), (-1,), ("a",), (0.5,)])
def test_classes_that_are_none_are_refused(classes):
    with pytest.raises(ValueError, match=r"has 0\.\.5: name some, each once"):
        data.of_classes(SOURCE, classes)


def test_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"no example of the classes \[0\]"):
        data.of_classes(data.open_source(ARRAYS, "train[10:]"), (0, 1))
    with pytest.raises(ValueError, match=r"5 examples of each class.*class 0 of .* has 4: give 1\.\.4"):
        data.few_labels(SOURCE, 5)
    with pytest.raises(ValueError, match=r"1.5 examples of each class"):
        data.few_labels(SOURCE, 1.5)
    with pytest.raises(ValueError, match="seed is -1: give an integer"):
        data.few_labels(SOURCE, 1, seed=-1)
    with pytest.raises(ValueError, match="choose rows before joining them"):
        data.few_labels(dataclasses.replace(SOURCE, targets=lambda rows, view: {}), 2)


def test_a_part_of_drawn_rows_is_numbered_anew_and_keeps_the_names_of_its_classes():
    drawn = dataclasses.replace(data.open_source(ARRAYS, "train[:50%]"), class_names=tuple("abcdef"))
    chosen = data.of_classes(drawn, (4, 2))
    assert chosen.class_names == ("e", "c")
    np.testing.assert_array_equal(rows(chosen)["id"], chosen.ids)
    assert chosen.ids.tolist() == list(range(10))


def test_rows_may_come_several_times_with_numbers_of_their_own():
    few = data.few_labels(SOURCE, 2)
    again = data.repeated(few, 3)
    found, once = rows(again), rows(few)
    assert len(again) == 3 * len(few)
    np.testing.assert_array_equal(found["image"], np.concatenate([once["image"]] * 3))
    np.testing.assert_array_equal(found["id"], np.arange(len(again)))
    np.testing.assert_array_equal(data.labels_of(again), np.tile(once["label"], 3))
    with pytest.raises(ValueError, match="cannot be repeated 0 times"):
        data.repeated(few, 0)
    with pytest.raises(ValueError, match="has targets"):
        data.repeated(dataclasses.replace(few, targets=lambda rows, view: {}), 2)
