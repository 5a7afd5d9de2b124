"""Pictures with masks: pairs of files, weak masks from boxes, what is refused, and flips of both together."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from jaxkd import augment, data
from jaxkd.data.masks import ellipses
from jaxkd.data.source import Source

MASK = np.array([[0, 0, 1, 1], [0, 0, 2, 255]], np.uint8)


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette([*range(256)] * 3)
    image.save(path)


@pytest.fixture
def write(tmp_path):
    """(names, change of the mask of one name) -> folders of pictures and masks."""

    def made(names, masks=None, mode=None):
        for i, name in enumerate(names):
            save(tmp_path / "pictures" / f"{name}.png", np.full((2, 4, 3), 10 * i, np.uint8))
            mask = MASK if masks is None else masks.get(name, MASK)
            if mask is not None:
                save(tmp_path / "masks" / f"{name}.png", mask, mode)
        return tmp_path / "pictures", tmp_path / "masks"

    return made


SPLIT = ("train/a", "train/b", "val/c", "test/d")


@pytest.mark.parametrize("mode", [None, "P"])
def test_pairs_are_read_by_name_from_folders_of_splits(write, mode):
    found = data.open_masks(*write(SPLIT, mode=mode), image_size=(4, 4), names=("sky", "cell", "tool"))
    assert {split: len(source) for split, source in found.items()} == {"train": 2, "val": 1, "test": 1}
    rows = found["train"].read(np.array([1]))
    assert rows["image"].shape == (1, 4, 4, 3)
    assert rows["image"][0, 0, 0, 0] == 10
    np.testing.assert_array_equal(rows["label"][0], MASK.repeat(2, axis=0))  # twice as high
    assert rows["label"].dtype == np.int32
    assert (found["train"].num_classes, found["test"].class_names) == (3, ("sky", "cell", "tool"))


def test_without_folders_of_splits_they_are_drawn(write, caplog):
    found = data.open_masks(*write("abcdefghij"), image_size=(2, 4))
    assert [len(source) for source in found.values()] == [7, 1, 2]
    assert "70 % of its pictures are drawn" in caplog.text


def test_listed_values_are_the_classes_in_their_order(write):
    masks = {name: np.array([[0, 255, 7, 0]] * 2, np.uint8) for name in SPLIT}
    source = data.open_masks(*write(SPLIT, masks), image_size=(2, 4), values=(255, 0), ignore=7)["val"]
    np.testing.assert_array_equal(source.read(np.array([0]))["label"][0], [[1, 0, 255, 1]] * 2)


def test_masks_without_a_picture_are_left_out_and_said(write, caplog):
    pictures, masks = write(SPLIT)
    save(masks / "train" / "more.png", MASK)
    assert len(data.open_masks(pictures, masks, image_size=(2, 4))["train"]) == 2
    assert "1 mask(s)" in caplog.text


@pytest.mark.parametrize(
    ("masks", "options", "sentence"),
    [
        ({"train/b": None}, {}, r"1 of the 4 pictures .* have no mask in .* \(train/b\): give each a PNG"),
        ({"val/c": np.zeros((4, 4), np.uint8)}, {}, r"c\.png is 4 x 4 pixels but c\.png is 2 x 4: .*--resize-masks"),
        ({"val/c": np.full((2, 4), 9, np.uint8)}, {"values": (0, 1, 2)}, r"c\.png has the value 9 \(8 pixels.*0, 1, 2"),
        (
            {"val/c": np.full((2, 4), 99, np.uint8)},
            {},
            r"values up to 99 but only 4 different ones: correct the mask of .*, which has 99.*--mask-values 0 1 2",
        ),
        ({"val/c": np.zeros((2, 4, 3), np.uint8)}, {}, r"c\.png has colours \(mode RGB\): save it as a PNG of one"),
        (dict.fromkeys(SPLIT, np.uint8([[0, 255]] * 2)), {"resize": True}, r"fewer than two classes .*--mask-values 0"),
        ({}, {"values": (0, 0)}, "one of them twice"),
        ({}, {"names": ("cell",)}, "1 classes are named, cell, but the masks have 3"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(write, masks, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.open_masks(*write(SPLIT, masks), image_size=(2, 4), **options)


def test_masks_of_another_size_are_stretched_if_asked_and_said(write, caplog):
    masks = {"val/c": MASK.repeat(3, axis=0).repeat(3, axis=1)}
    source = data.open_masks(*write(SPLIT, masks), image_size=(2, 4), resize=True)["val"]
    np.testing.assert_array_equal(source.read(np.array([0]))["label"][0], MASK)
    assert "1 of 4 masks" in caplog.text


def test_damaged_files_and_other_formats_are_named(write):
    pictures, masks = write(SPLIT)
    Image.fromarray(MASK).save(masks / "val" / "c.jpg")
    (masks / "val" / "c.png").unlink()
    with pytest.raises(ValueError, match=r"c\.jpg is of JPEG, which changes values"):
        data.open_masks(pictures, masks, image_size=(2, 4))
    (masks / "val" / "c.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"c\.jpg cannot be read"):
        data.open_masks(pictures, masks, image_size=(2, 4))
    save(masks / "val" / "c.png", MASK)
    with pytest.raises(ValueError, match=r"differ in their suffix alone"):
        data.open_masks(pictures, masks, image_size=(2, 4))
    with pytest.raises(ValueError, match=re.escape(f"{masks / 'none'} is no folder")):
        data.open_masks(pictures, masks / "none", image_size=(2, 4))


def test_ellipses_touch_the_edges_and_the_smaller_lies_on_top():
    boxes = np.float32([[0, 0, 8, 8], [2, 2, 6, 6], [0, 0, 8, 8], [7, 7, 8, 8]])
    mask = ellipses(boxes, np.array([1, 0, -1, 2]), np.array([False, False, False, True]), (8, 10))
    y, x = np.mgrid[:8, :10] + 0.5
    expected = np.where((x - 4) ** 2 + (y - 4) ** 2 <= 16, 2, 0)
    expected[(x - 4) ** 2 + (y - 4) ** 2 <= 4] = 1
    expected[7, 7] = 255
    np.testing.assert_array_equal(mask, expected)


def test_weak_masks_of_boxes_have_a_background():
    fields = {
        "image": np.zeros((2, 8, 10, 3), np.uint8),
        "boxes": np.float32([[[0, 0, 8, 8]], [[0, 0, 0, 0]]]),
        "label": np.int32([[1], [-1]]),
    }
    boxes = Source("cells[val]", 2, 2, (8, 10, 3), lambda rows: {k: v[rows] for k, v in fields.items()})
    source = data.masks_of_boxes(boxes)
    assert (source.num_classes, source.class_names) == (3, ("background", "0", "1"))
    assert [np.unique(label).tolist() for label in source.read(np.arange(2))["label"]] == [[0, 2], [0]]
    with pytest.raises(ValueError, match=r"has no boxes of pictures, only image, label and id"):
        data.masks_of_boxes(source)
    with pytest.raises(ValueError, match=r"row 1 of x has the label 9, but there are 2 classes"):
        data.from_masks("x", np.zeros((2, 1, 1, 3)), np.array([[[0]], [[9]]]), ("a", "b"))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 1, 3\) and masks \(2, 1, 2\)"):
        data.from_masks("x", np.zeros((2, 1, 1, 3)), np.zeros((2, 1, 2)), ("a", "b"))


def test_a_picture_and_its_mask_are_mirrored_together():
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3).repeat(16, axis=0)
    batch = {"image": image, "label": image[..., 0].astype(np.int32), "id": np.arange(16), "view": np.zeros(16, int)}
    found = jax.jit(augment.augment_batch(augment.flip_with_mask(), seed=0))(batch)
    np.testing.assert_array_equal(found["label"], found["image"][..., 0])
    assert len(np.unique(found["label"][:, 0, 0])) == 4
    with pytest.raises(ValueError, match=r"`label` is missing but image has shape"):
        augment.flip_with_mask()(jax.random.key(0), {"image": image[0]})
