"""What labels mean, and which are refused."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data

IMAGES = np.zeros((12, 2, 2, 1), np.uint8)
L = np.arange(12) % 3
SEVERAL = (np.arange(60).reshape(12, 5) % 7 < 3).astype(int)


def opened(labels, **options):
    return data.open_source({"image": IMAGES, "label": labels}, **options)


@pytest.mark.parametrize(
    ("labels", "task", "classes", "dtype", "expected"),
    [
        (L, "classification", 3, np.int32, L),
        (L.astype(np.uint8)[:, None], "classification", 3, np.int32, L),
        (L.astype(np.uint64), "classification", 3, np.int32, L),
        (L > 0, "classification", 2, np.int32, L > 0),
        ((L > 0)[:, None], "classification", 2, np.int32, L > 0),
        (list(L), "classification", 3, np.int32, L),
        (L.astype(object), "classification", 3, np.int32, L),
        (L.astype(">i8"), "classification", 3, np.int32, L),
        (SEVERAL, "multi_label", 5, np.int32, SEVERAL),
        (SEVERAL.astype(bool), "multi_label", 5, np.int32, SEVERAL),
        (L / 2, "regression", 1, np.float32, L / 2),
        (L[:, None] / 2, "regression", 1, np.float32, L[:, None] / 2),
        (SEVERAL / 2, "regression", 5, np.float32, SEVERAL / 2),
    ],
)
def test_labels_say_the_task(labels, task, classes, dtype, expected):
    source = opened(labels)
    assert (source.task, source.num_classes) == (task, classes)
    found = data.labels_of(source)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.array([0, 1000003] * 6),
            "largest label of .* is 1000003 but only 2 different labels occur: give num_classes=",
        ),
        (np.array([0, 255] * 6), "largest label of .* is 255 but only 2"),
        (np.array([0, 2**32 + 1] * 6), "row 1 of .* holds 4294967297, which does not fit into int32"),
        (np.array([0, 2**63] * 6, np.uint64), "holds 9223372036854775808, which does not fit into int32"),
        (L - 1, "label -1 in row 0"),
        (np.where(L == 1, np.nan, L), "`label` in row 1 .* holds NaN"),
        (np.full(12, 1e300), "`label` in row 0 .* holds NaN or Inf"),
        (np.eye(3)[L], "shape \\(12, 3\\) and is one-hot.*label.argmax"),
        (np.eye(3, dtype=bool)[L], "is one-hot"),
        (np.full((12, 4), 7), "shape \\(12, 4\\) and dtype int64: give class numbers"),
        (np.array(["cat", "dog"] * 6), "holds texts or objects: give class numbers, such as those that np.unique"),
        (np.array([1, "a"] * 6, object), "ragged or holds objects"),
        (L * 1j, "dtype complex128"),
        (3, "has shape \\(\\)"),
        (np.ma.array(L, mask=L == 1), "masked array"),
    ],
)
def test_other_labels_get_a_sentence(labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        opened(labels)
    assert "\n" not in str(caught.value)


def test_the_number_of_classes_may_be_given():
    assert opened(np.array([0, 1000003] * 6), num_classes=1000004).num_classes == 1000004
    for labels in (SEVERAL, L / 2):
        with pytest.raises(ValueError, match="a row but num_classes is 7: leave num_classes out"):
            opened(labels, num_classes=7)


def test_a_source_without_labels_has_none_and_says_so():
    source = data.open_source({"image": IMAGES}, num_classes=10)
    assert (source.task, source.num_classes) == ("unlabelled", 10)
    assert data.open_source({"image": IMAGES}).num_classes == 0
    assert set(data.train_batches(source, 4, seed=0)[0]) == {"image", "id", "view"}
    for ask in (data.labels_of, lambda s: data.few_labels(s, 1), lambda s: data.of_classes(s, (0,))):
        with pytest.raises(ValueError, match=r"arrays\[train\] has no labels.*add labels, or write"):
            ask(source)
    with pytest.raises(ValueError, match="`mask` is a name that the pipeline gives itself"):
        data.with_fields(source, mask=L)
    again = data.with_fields(dataclasses.replace(source, num_classes=0), label=L)
    assert (again.task, again.num_classes) == ("classification", 3)


def test_a_training_can_refuse_a_task():
    data.check_task(opened(L), "classification")
    with pytest.raises(ValueError, match=r"losses.binary_cross_entropy and losses.binary_kd suit such labels"):
        data.check_task(opened(SEVERAL), "classification")
    with pytest.raises(ValueError, match=r"label.astype\(int\); the losses of jaxkd.losses.regression"):
        data.check_task(opened(L / 2), "classification", "multi_label")


def test_splits_share_the_kind_of_labels_and_an_unlabelled_one_the_classes():
    arrays = {"train_image": IMAGES, "train_label": L, "test_image": IMAGES}
    assert data.open_source(arrays, "test").num_classes == 3
    assert data.open_source(arrays | {"test_label": L + 2}).num_classes == 5
    with pytest.raises(ValueError, match="holds class numbers but that of another split does not"):
        data.open_source(arrays | {"test_label": L / 2})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"tokens": np.full((3, 4), 2**40 + 5)}, "`tokens` in row 0 .* holds 1099511627781, which does not fit"),
        ({"tokens": np.array([[1, 2], [3, -1]])}, "`tokens` in row 1 .* holds -1, but tokens are 0 or more"),
        ({"tokens": np.ones((3, 4))}, "`tokens` .* dtype float64: give integers"),
        ({"image": IMAGES, "time": np.full(12, 2**40, ">i8")}, "`time` in row 0 .* does not fit into int32"),
        ({"image": IMAGES, "time": np.full(12, 2**40)}, "`time` in row 0 .* does not fit into int32"),
    ],
)
def test_integers_that_a_device_would_change_get_a_sentence(arrays, message):
    with pytest.raises(ValueError, match=message):
        data.open_source(arrays)


def test_numbers_are_given_in_the_byte_order_of_devices():
    source = data.open_source({"image": IMAGES.astype(">f4"), "weight": np.arange(12.0).astype(">f8")})
    assert all(values.dtype.isnative for values in source.read(np.arange(2)).values())
    halves = data.open_source({"image": jnp.asarray(IMAGES, jnp.bfloat16)})
    assert halves.read(np.arange(2))["image"].dtype == np.float32


def test_images_that_a_fixed_normalisation_would_spoil_get_a_sentence():
    data.check_unit_pixels(data.open_source({"image": IMAGES + 200}))
    data.check_unit_pixels(data.open_source({"image": IMAGES + 1.0}))
    for wrong in (IMAGES + 200.0, IMAGES - 0.5):
        with pytest.raises(ValueError, match=r"floats from (200|-0.5) to .*, but 0 to 1 is expected"):
            data.check_unit_pixels(data.open_source({"image": wrong}))
