"""Folders of pictures: numbering, slices, sizes, and what is said of those that cannot be used."""

import numpy as np
import pytest
from PIL import Image

from jaxkd import data


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for split, classes in (("train", {"cat": 3, "dog": 2}), ("val", {"ant": 1, "dog": 1})):
        for name, count in classes.items():
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 255, (5 + i, 7, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
            (tmp_path / split / name / "notes.txt").write_text("no picture")
    return tmp_path


def test_classes_are_numbered_over_all_splits_and_rows_by_path(folder):
    train, val = (data.open_source(f"folder:{folder}", split, image_size=(5, 7)) for split in ("train", "val"))
    assert (len(train), len(val), train.num_classes, train.image_shape) == (5, 2, 3, (5, 7, 3))
    rows = train.read(np.arange(5))
    assert rows["label"].tolist() == [1, 1, 1, 2, 2]
    assert val.read(np.arange(2))["label"].tolist() == [0, 2]
    np.testing.assert_array_equal(rows["image"][3], np.asarray(Image.open(folder / "train" / "dog" / "0.png")))
    resized = Image.open(folder / "train" / "cat" / "2.png").resize((7, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(rows["image"][2], np.asarray(resized))


def test_stretched_pictures_say_what_shape_they_had_and_cut_ones_need_not(folder):
    stretched, cut = (data.open_source(f"folder:{folder}", image_size=5, fit=fit) for fit in ("stretch", "crop"))
    aspect = stretched.read(np.arange(5))["aspect"]
    np.testing.assert_array_equal(aspect, np.array([7 / 5, 7 / 6, 1, 7 / 5, 7 / 6], np.float32))
    assert "aspect" not in cut.read(np.arange(5))
    picture = np.asarray(Image.open(folder / "train" / "cat" / "0.png"))
    np.testing.assert_array_equal(cut.read(np.arange(1))["image"][0], picture[:, 1:6])


def test_slices_keep_the_rows_of_the_whole_split(folder):
    part = data.open_source(f"folder:{folder}", "train[60%:]", image_size=6)
    assert part.read(np.arange(2))["id"].tolist() == part.ids.tolist() == [3, 4]
    batch = data.train_batches(part, 2, seed=0)[0]
    assert batch["image"].shape == (2, 6, 6, 3)


def test_what_cannot_be_used_is_said_in_a_sentence(folder, tmp_path):
    spec = f"folder:{folder}"
    with pytest.raises(ValueError, match="no split 'test': it has train and val"):
        data.open_source(spec, "test", image_size=5)
    with pytest.raises(ValueError, match="give image_size"):
        data.open_source(spec, "train")
    with pytest.raises(ValueError, match="has 3 folders of classes but num_classes is 2"):
        data.open_source(spec, "train", image_size=5, num_classes=2)
    with pytest.raises(ValueError, match="holds no folder of a split"):
        data.open_source(f"folder:{folder}/nowhere", "train", image_size=5)
    (folder / "train" / "cat" / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cat/1.png cannot be decoded .*: copy it anew"):
        data.open_source(spec, "train", image_size=5).read(np.arange(5))
