"""Folders of pictures: numbering, slices, sizes, and what is said of those that cannot be used."""

import os

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
    part, rest = (data.open_source(f"folder:{folder}", f"train[{s}]", image_size=6) for s in ("60%:", ":60%"))
    assert part.read(np.arange(2))["id"].tolist() == part.ids.tolist()
    assert sorted([*part.ids, *rest.ids]) == [0, 1, 2, 3, 4]
    assert sorted(data.labels_of(part)) == [1, 2], "drawn from both classes"
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
    with pytest.raises(ValueError, match="nowhere does not exist"):
        data.open_source(f"folder:{folder}/nowhere", "train", image_size=5)
    (folder / "train" / "cat" / "1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"cat/1.png cannot be decoded .*: copy it anew"):
        data.open_source(spec, "train", image_size=5).read(np.arange(5))


def pictures_in(root, *paths):
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(root / path, "PNG")
    return root


def opened(root, split="train", **options):
    source = data.open_source(f"folder:{root}", split, image_size=4, **options)
    pixels = source.read(np.arange(len(source)))["image"][:, 0, 0, 0]
    labels = None if source.task == "unlabelled" else data.labels_of(source).tolist()
    return labels, source.class_names, pixels.tolist()


def test_hidden_files_and_those_of_other_kinds_are_left_out_and_counted(tmp_path, caplog):
    root = pictures_in(tmp_path / "a[1]*", "train/cat/0.png", "train/dog/0.JPG", "train/.git/0.png")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (root / "train" / name).mkdir()
        (root / name / "cat").mkdir(parents=True)
    for name in ("._0.png", "Thumbs.db", "a.heic", "b.HEIC", "c"):
        (root / "train" / "cat" / name).write_text("")
    assert opened(root) == ([0, 1], ("cat", "dog"), [0, 1])
    (said,) = caplog.messages
    assert "leaves out files that are no pictures: 2 hidden or of the system, 2 .heic and 1 without a suffix" in said


@pytest.mark.parametrize(
    ("paths", "split", "expected"),
    [
        (("cat/0.png", "dog/0.png"), "train", ([0, 1], ("cat", "dog"), [0, 1])),
        (("cat/images/0.png", "dog/images/0.png"), "train", ([0, 1], ("cat", "dog"), [0, 1])),
        (("car/0.png", "train/0.png"), "train", ([0, 1], ("car", "train"), [0, 1])),
        (("0.png", "1.png"), "train", (None, (), [0, 1])),
        (("train/0.png", "test/1.png"), "test", (None, (), [1])),
        (("train/images/0.png", "masks/0.png"), "train", (None, (), [0])),
        (("train/cat/deep/er/0.png", "train/dog/images/0.png"), "train", ([0, 1], ("cat", "dog"), [0, 1])),
        (("train/cat/0.png", "test/0.png"), "test", (None, ("cat",), [1])),
        (("images/cat/0.png", "images/dog/0.png"), "train", ([0, 1], ("cat", "dog"), [0, 1])),
        (("images/0.png", "images/1.png"), "train", (None, (), [0, 1])),
        (("fold1/cat/0.png", "fold2/dog/0.png"), "fold2", ([1], ("cat", "dog"), [1])),
    ],
)
def test_layouts(tmp_path, paths, split, expected):
    assert opened(pictures_in(tmp_path, *paths), split) == expected


def test_pictures_of_a_folder_are_turned_upright(tmp_path):
    pixels = np.repeat(np.arange(0, 240, 60, dtype=np.uint8), 4).reshape(4, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    assert opened(tmp_path)[2] == [180], "the lower left corner is the upper left one"


def test_tiny_imagenet_opens_as_it_unpacks(tmp_path):
    train = [f"train/{c}/images/{c}_{i}.JPEG" for c in ("n01", "n02") for i in range(2)]
    pictures_in(tmp_path, *train, "val/images/a.JPEG", "val/images/b.JPEG", "test/images/c.JPEG")
    (tmp_path / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.JPEG\t0\t0")
    notes = tmp_path / "val" / "val_annotations.txt"
    notes.write_text("a.JPEG\tn02\t0\t0\nb.JPEG\tn01\t0\t0\n")
    assert opened(tmp_path) == ([0, 0, 1, 1], ("n01", "n02"), [0, 1, 2, 3])
    assert opened(tmp_path, "val") == ([1, 0], ("n01", "n02"), [4, 5])
    assert opened(tmp_path, "test")[0] is None
    notes.write_text("a.JPEG\tn02")
    with pytest.raises(ValueError, match=r"b.JPEG has no line in .*val_annotations.txt"):
        opened(tmp_path, "val")
    notes.write_text("a.JPEG n02")
    with pytest.raises(ValueError, match=r"line 1 of .*val_annotations.txt is no picture, tab and class"):
        opened(tmp_path, "val")


def test_links_are_followed_but_not_in_circles_and_a_class_without_a_picture_is_said(tmp_path, caplog):
    root = pictures_in(tmp_path, "train/cat/0.png", "train/dog/0.png")
    (root / "train" / "cat" / "up").symlink_to(root)
    (root / "train" / "emu").symlink_to(root / "train" / "cat")
    (root / "train" / "fox").mkdir()
    assert opened(root)[:2] == ([0, 1, 2], ("cat", "dog", "emu", "fox"))
    (said,) = caplog.messages
    assert "has no picture of 1 of the 4 classes: fox" in said


def test_the_draw_depends_on_the_paths_below_the_folder_alone(tmp_path):
    paths = [f"train/{c}/{i}.png" for c in "ab" for i in range(10)]
    drawn = []
    for place, order in (("one", paths), ("two", paths[::-1])):
        root = pictures_in(tmp_path / place, *order)
        parts = [data.open_source(f"folder:{root}", f"train[{p}]", image_size=4) for p in (":70%", "70%:90%", "90%:")]
        drawn.append([part.ids.tolist() for part in parts])
        assert [np.bincount(data.labels_of(part)).tolist() for part in parts] == [[7, 7], [2, 2], [1, 1]]
    assert drawn[0] == drawn[1]
    assert drawn[0][1:] == [[6, 9, 13, 15], [8, 19]], "and never changes between versions"
    assert sorted(np.concatenate(drawn[0])) == list(range(20))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "holds no picture of a known kind: give a folder like"),
        (("train/images/0.png", "train/masks/0.png"), "has the folders images and masks, which are no classes"),
        (("x/train/cat/0.png",), r"holds one folder, whose folders are splits: give folder:.*/x"),
    ],
)
def test_folders_without_a_data_set_get_a_sentence(tmp_path, paths, message):
    with pytest.raises(ValueError, match=message):
        opened(pictures_in(tmp_path, *paths))


def test_the_prefix_of_a_folder_is_suggested(folder):
    for spec in (str(folder), folder):
        with pytest.raises(ValueError, match=rf"is a folder of pictures: write folder:{folder}"):
            data.open_source(spec)
    with pytest.raises(ValueError, match="is a file: give npz:PATH"):
        data.open_source(folder / "train" / "cat" / "0.png")


@pytest.mark.parametrize("content", ["eps", "empty", "cut", "pipe"])
def test_files_that_are_no_whole_pictures_are_named_and_start_no_program(folder, tmp_path, monkeypatch, content):
    path = folder / "train" / "dog" / "1.png"
    whole = path.read_bytes()
    path.unlink()
    if content == "eps":
        Image.new("RGB", (9, 9)).save(path, "eps")
        monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
        monkeypatch.setattr("subprocess.check_call", lambda *a, **k: pytest.fail("a program was started"))
    elif content == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(whole[: len(whole) // 2 if content == "cut" else 0])
    with pytest.raises(ValueError, match=r"dog/1.png cannot be decoded") as caught:
        data.open_source(f"folder:{folder}", image_size=4).read(np.arange(5))
    assert "\n" not in str(caught.value)
