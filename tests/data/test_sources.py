"""Sources from arrays and files, statistics, and the copy in memory."""

import dataclasses

import numpy as np
import pytest

from jaxkd.data import in_memory, open_source, statistics
from jaxkd.data.readers import pictures

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 4, 3, 2), dtype=np.uint8)
LABELS = np.arange(12) % 5


def test_arrays_are_read_by_row_with_their_ids():
    source = open_source({"image": IMAGES, "label": LABELS, "weight": np.arange(12.0)}, "train[4:10]")
    assert (len(source), source.num_classes, source.image_shape) == (6, 5, (4, 3, 2))
    batch = source.read(np.array([5, 0, 0]))
    np.testing.assert_array_equal(batch["id"], [9, 4, 4])
    np.testing.assert_array_equal(batch["image"], IMAGES[[9, 4, 4]])
    np.testing.assert_array_equal(batch["label"], LABELS[[9, 4, 4]])
    np.testing.assert_array_equal(batch["weight"], [9, 4, 4])
    assert {key: batch[key].dtype for key in ("image", "label", "id")} == {
        "image": np.uint8,
        "label": np.int32,
        "id": np.int32,
    }
    np.testing.assert_array_equal(source.ids, source.read(np.arange(6))["id"])


def test_grey_images_get_a_channel_and_floats_become_float32():
    source = open_source({"image": IMAGES[..., 0] / 3.0, "label": LABELS[:, None]})
    assert source.image_shape == (4, 3, 1)
    assert source.read(np.arange(2))["image"].dtype == np.float32


def test_texts_beside_images_are_dropped_but_texts_alone_are_kept():
    names = np.array(["a", "b"] * 6)
    assert "name" not in open_source({"image": IMAGES, "label": LABELS, "name": names}).read(np.arange(2))
    source = open_source({"text": [b"a", "b"] * 6, "label": LABELS})
    assert source.image_shape is None
    assert list(source.read(np.array([0, 1]))["text"]) == ["a", "b"]


def test_every_way_to_name_arrays_in_a_file_gives_the_same_source(tmp_path):
    train, test = slice(0, 8), slice(8, 12)
    np.savez(tmp_path / "plain.npz", image=IMAGES[train], label=LABELS[train])
    keras = {"x_train": IMAGES[train], "y_train": LABELS[train], "x_test": IMAGES[test], "y_test": LABELS[test]}
    np.savez(tmp_path / "keras.npz", **keras)
    prefixed = {
        f"{s}_{f}": a[r]
        for s, r in (("train", train), ("test", test))
        for f, a in zip(("image", "label"), (IMAGES, LABELS), strict=True)
    }
    np.savez(tmp_path / "prefixed.npz", **prefixed)
    for split, rows in (("train", train), ("test", test)):
        np.savez(tmp_path / f"many_{split}.npz", image=IMAGES[rows], label=LABELS[rows])
    for name in ("plain", "keras", "prefixed", "many_{split}"):
        source = open_source(f"npz:{tmp_path}/{name}.npz", "train[2:]")
        np.testing.assert_array_equal(source.read(np.arange(6))["image"], IMAGES[2:8])
        if name != "plain":
            source = open_source(f"npz:{tmp_path}/{name}.npz", "test")
            assert source.num_classes == 5, "from the labels of all splits"
            np.testing.assert_array_equal(source.read(np.arange(4))["label"], LABELS[test])


def test_images_are_resized_on_request():
    ragged = [RNG.integers(0, 256, (4 + i, 5, 3), dtype=np.uint8) for i in range(3)]
    ragged.append(np.full((9, 9, 3), 77, np.uint8))
    source = open_source({"image": ragged, "label": [0, 1, 0, 1]}, image_size=(6, 7))
    assert source.image_shape == (6, 7, 3)
    assert (source.read(np.array([3]))["image"] == 77).all()
    np.testing.assert_allclose(source.read(np.arange(4))["aspect"], [5 / 4, 5 / 5, 5 / 6, 1])
    middle = open_source({"image": ragged, "label": [0, 1, 0, 1]}, image_size=4, fit="crop").read(np.array([0]))
    assert set(middle) == {"image", "label", "id"}
    np.testing.assert_array_equal(middle["image"][0], pictures.resize(ragged[0], pictures.Frame(4, 4, "crop")).pixels)
    floats = open_source({"image": np.full((2, 4, 4, 2), 1.5), "label": [0, 1]}, image_size=8)
    np.testing.assert_allclose(floats.read(np.array([0]))["image"], 1.5)
    # Averaging over whole blocks: halving a ramp keeps its mean.
    ramp = np.broadcast_to(np.arange(8.0)[:, None, None], (8, 8, 1))
    small = open_source({"image": [ramp, ramp], "label": [0, 1]}, image_size=4).read(np.array([0]))["image"]
    np.testing.assert_allclose(small.mean(), 3.5, rtol=1e-6)


def nan_at(row):
    images = IMAGES.astype(np.float32)
    images[row, 0, 0, 0] = np.nan
    return images


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": IMAGES, "label": LABELS}, "has no array `image`: it holds pixels and label"),
        ({"image": IMAGES[:7], "label": LABELS}, "different numbers of rows \\(`image` 7 and `label` 12\\)"),
        ({"image": nan_at(7), "label": LABELS}, "`image` in row 7 of arrays\\[train\\] holds NaN or Inf"),
        ({"image": IMAGES, "label": LABELS, "w": [np.inf] * 12}, "`w` in row 0 .* holds NaN or Inf"),
        ({"image": IMAGES, "label": LABELS - 1}, "label -1 in row 0 .* lies outside 0..3 \\(4 classes\\)"),
        (
            {"image": IMAGES, "label": LABELS[:, None, None]},
            "dtype int64: give class numbers, integers of shape \\(12,\\)",
        ),
        ({"image": IMAGES, "label": np.eye(12, dtype=int)}, "has shape \\(12, 12\\)"),
        ({"image": IMAGES.astype(int), "label": LABELS}, "dtype int64: give uint8"),
        (
            {"image": [*IMAGES[:11], IMAGES[0, 1:]], "label": LABELS},
            "row 11 .* has shape \\(3, 3, 2\\) but \\(4, 3, 2\\)",
        ),
        ({"image": IMAGES, "label": LABELS, "box": [[1]] * 11 + [[1, 2]]}, "`box` .* is ragged or holds objects"),
        ({"image": IMAGES, "label": LABELS, "id": LABELS}, "holds an array `id`, a name that jaxkd gives itself"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "split 'train' of arrays is empty"),
        ({}, "split 'train' of arrays is empty"),
    ],
)
def test_bad_arrays_get_a_sentence(arrays, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_source(arrays)
    assert "\n" not in str(caught.value)


def test_labels_are_checked_against_the_given_classes():
    with pytest.raises(ValueError, match=r"label 3 in row 3 of arrays\[train\] lies outside 0..2 \(3 classes\)"):
        open_source({"image": IMAGES, "label": LABELS}, num_classes=3)


def test_bad_files_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*none\.npz"):
        open_source(f"npz:{tmp_path}/none.npz")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match=r"cannot be read as an .npz file of plain arrays"):
        open_source(f"npz:{broken}")
    for save, reason in ((np.savez, "Bad CRC-32"), (np.savez_compressed, "Error -3 while decompressing|Bad CRC-32")):
        save(broken, label=np.arange(4000) % 3, image=np.random.default_rng(0).integers(0, 9, (4000, 2, 2), np.uint8))
        torn = bytearray(broken.read_bytes())
        torn[len(torn) // 2 : len(torn) // 2 + 40] = bytes(range(200, 240))
        broken.write_bytes(torn)
        with pytest.raises(ValueError, match=rf"broken\.npz cannot be read .*\(array `\w+`: .*({reason})"):
            open_source(f"npz:{broken}")
    np.savez(tmp_path / "objects.npz", image=np.array([{}, {}]), label=[0, 1])
    with pytest.raises(ValueError, match=r"cannot be read as an .npz file of plain arrays"):
        open_source(f"npz:{tmp_path}/objects.npz")
    np.savez(tmp_path / "one_train.npz", image=IMAGES, label=LABELS)
    with pytest.raises(ValueError, match="has no split 'test': it has train"):
        open_source(f"npz:{tmp_path}/one_{{split}}.npz", "test[:3]")
    with pytest.raises(ValueError, match=r"write npz:some/file\.npz"):
        open_source("some/file.npz")


@pytest.mark.parametrize("size", [0, (3,), (4, -1)])
def test_bad_image_size_gets_a_sentence(size):
    with pytest.raises(ValueError, match="image_size is"):
        open_source({"image": IMAGES, "label": LABELS}, image_size=size)
    with pytest.raises(ValueError, match="fit is 'pad': give 'stretch' or 'crop'"):
        open_source({"image": IMAGES, "label": LABELS}, image_size=4, fit="pad")


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_match_numpy_in_float64(offset):
    images = RNG.normal(size=(1300, 3, 3, 2)) * [1, 5] + offset
    source = open_source({"image": images, "label": np.zeros(1300, int)})
    mean, std = statistics(source, limit=1300)
    first = images.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(mean, first.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, first.std((0, 1, 2)), rtol=1e-5)
    assert mean.dtype == std.dtype == np.float32


def test_statistics_sample_all_parts_of_a_source_and_meet_all_of_what_alternates():
    images = np.repeat(np.arange(4.0), 500)[:, None, None, None] + np.tile([0.0, 0.5], 1000)[:, None, None, None]
    source = open_source({"image": images})
    seen = []
    counted = dataclasses.replace(source, read=lambda rows: seen.append(rows) or source.read(rows))
    (mean,), (std,) = statistics(counted, limit=200)
    assert sum(map(len, seen)) <= 200
    assert (abs(mean - images.mean()), abs(std - images.std())) < (0.03, 0.02)
    assert statistics(source, limit=200)[0] == mean, "the same rows each time"


def test_statistics_scale_bytes_and_never_give_zero():
    images = IMAGES.copy()
    images[..., 1] = 51
    mean, std = statistics(open_source({"image": images, "label": LABELS}))
    np.testing.assert_allclose(mean, [images[..., 0].mean() / 255, 0.2], rtol=1e-6)
    np.testing.assert_allclose(std, [images[..., 0].std() / 255, 1.0], rtol=1e-6)


def test_statistics_of_texts_get_a_sentence():
    with pytest.raises(ValueError, match=r"arrays\[train\] has no images"):
        statistics(open_source({"text": ["a"], "label": [0]}))


def test_in_memory_reads_each_row_once_and_serves_the_same():
    source = open_source({"image": np.repeat(IMAGES, 100, 0), "label": np.repeat(LABELS, 100)}, "train[7:]")
    seen = []

    def counted(rows):
        seen.extend(rows)
        return source.read(rows)

    held = in_memory(dataclasses.replace(source, read=counted))
    rows = np.array([1000, 3, 3, 700])
    for field, values in source.read(rows).items():
        np.testing.assert_array_equal(held.read(rows)[field], values)
    assert seen == list(range(source.size))
