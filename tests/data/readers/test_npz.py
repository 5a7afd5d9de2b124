"""Names of arrays, images of other layouts, and files that are damaged."""

import struct
import zipfile

import numpy as np
import pytest

from jaxkd import data

IMAGES = np.zeros((6, 4, 4, 3), np.uint8)
L = np.arange(6) % 3


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": IMAGES, "labels": L},
        {"X": IMAGES, "y": L},
        {"data": IMAGES, "target": L},
        {"Images": IMAGES, "targets": L},
        {"train_images": IMAGES, "train_labels": L[:, None], "val_images": IMAGES[:2], "val_labels": L[:2]},
        {"X_train": IMAGES, "y_train": L, "X_test": IMAGES, "y_test": L},
        {"images_train": IMAGES, "labels_train": L},
    ],
)
def test_usual_names_are_understood(arrays):
    source = data.open_source(arrays)
    assert (len(source), source.num_classes, source.image_shape) == (6, 3, (4, 4, 3))
    assert set(source.read(np.arange(2))) == {"image", "label", "id"}


def test_a_target_beside_an_image_is_a_field_and_names_that_clash_are_refused(caplog):
    assert "target" in data.open_source({"image": IMAGES, "target": L}).read(np.arange(1))
    assert "test_score" in data.open_source({"image": IMAGES, "test_score": L}).read(np.arange(1)), "of no split"
    with pytest.raises(ValueError, match="several arrays that may be its `image`s \\(images and x\\)"):
        data.open_source({"images": IMAGES, "x": IMAGES})
    data.open_source({"x_train": IMAGES, "y_train": L, "names": np.array(["a"])})
    (said,) = caplog.messages
    assert "belong to no split, which are left out: names" in said


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 1, 28, 28), (6, 3, 20, 30)])
def test_channels_first_are_refused_with_what_to_write(shape):
    with pytest.raises(ValueError, match=r"channels first.*give image.transpose\(0, 2, 3, 1\)"):
        data.open_source({"image": np.zeros(shape, np.float32)})
    with pytest.raises(ValueError, match=r"channels first.*give image.transpose\(1, 2, 0\)"):
        data.open_source({"image": list(np.zeros(shape, np.uint8))}, image_size=4)


@pytest.mark.parametrize("shape", [(6, 4, 4, 64), (6, 3, 4, 4), (6, 4, 7, 64), (6, 28, 28), (6, 784)])
def test_other_shapes_are_not_mistaken_for_channels_first(shape):
    assert data.open_source({"image": np.zeros(shape, np.uint8)}).image_shape[:1] == shape[1:2]


def test_one_file_a_split_may_lie_in_folders_with_brackets_and_repeat_the_split(tmp_path):
    for split in ("train", "test"):
        place = tmp_path / "a[1]*" / split
        place.mkdir(parents=True)
        np.savez(place / f"[x]_{split}.npz", **{f"x_{split}": IMAGES, f"y_{split}": L})
    source = data.open_source(f"npz:{tmp_path}/a[1]*/{{split}}/[x]_{{split}}.npz", "test")
    assert (len(source), source.num_classes) == (6, 3)
    with pytest.raises(ValueError, match=r"there is no file .* for any \{split\}"):
        data.open_source(f"npz:{tmp_path}/{{split}}/none.npz")


def npy(shape):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (10 + len(head)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


@pytest.mark.parametrize("kind", ["npy", "encrypted", "compression", "huge", "no array", "text", "empty"])
def test_damaged_files_get_a_sentence_that_names_them(tmp_path, kind):
    path = tmp_path / "w.npz"
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.arange(3.0))
    elif kind in ("text", "empty"):
        path.write_text("hello" if kind == "text" else "")
    elif kind in ("huge", "no array"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(*(("image.npy", npy("(1000000000000000,)")) if kind == "huge" else ("image", b"hello")))
    else:
        np.savez(path, image=np.arange(5.0))
        content = bytearray(path.read_bytes())
        local, central = content.find(b"PK\x03\x04"), content.rfind(b"PK\x01\x02")
        for at, offset in ((local, 6), (central, 8)):
            if kind == "encrypted":
                content[at + offset] |= 1
            else:
                content[at + offset + 2] = 99
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.npz cannot be read as an .npz file of plain arrays"):
        data.open_source(f"npz:{path}")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ((IMAGES, L), {}, "given as tuple: give a name"),
        (None, {}, "given as NoneType"),
        ("npz:", {}, "the path is empty"),
        ("folder:~nobody-here/x", {"image_size": 4}, "is no path \\(RuntimeError\\): give one of a file or folder"),
        ("/" + "a" * 5000, {}, "is no path"),
        ("https://example.org/a.npz", {}, "is an address: download it"),
        ({b"data": IMAGES}, {}, "under b'data', which is no text"),
        ({"image": IMAGES}, {"image_size": "8"}, "image_size is 8"),
        ({"image": IMAGES}, {"image_size": 2.5}, "image_size is 2.5"),
        ({"image": IMAGES}, {"image_size": 10**9}, "image_size is 1000000000: give at most 32768"),
        ({"image": IMAGES}, {"num_classes": 2.0}, "num_classes is 2.0: give an integer"),
        ({"image": IMAGES}, {"split": None}, "split is None: give a name"),
        (
            {"image": IMAGES},
            {"split": "test"},
            r"it has train, choose one of these, or a slice of it such as train\[90%:\]",
        ),
    ],
)
def test_arguments_of_another_type_get_a_sentence(spec, options, message):
    with pytest.raises(ValueError, match=message):
        data.open_source(spec, **options)


def test_rows_that_do_not_exist_get_a_sentence():
    source = data.open_source({"image": IMAGES}, "train[2:5]")
    for row in (3, -1):
        with pytest.raises(IndexError, match=rf"row {row} of .* which has 3 rows: give 0..2"):
            source.read(np.array([row]))
