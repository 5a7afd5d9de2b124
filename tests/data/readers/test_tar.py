"""Tar shards of pictures: their order, classes and splits, random access, and what is refused in a sentence."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxkd import data


def picture(number, suffix="png"):
    """A small picture whose red is its number."""
    out = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), (number, 0, 0), np.uint8)).save(out, {"png": "PNG", "webp": "WEBP"}[suffix])
    return out.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(numbers, label=lambda n: str(n % 3).encode(), suffix="cls"):
    return [m for n in numbers for m in ((f"s/{n:04}.png", picture(n)), (f"s/{n:04}.{suffix}", label(n)))]


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        write(tmp_path / f"pets-{shard:03}.tar", samples(range(10 * shard, 10 * shard + 10)))
    return tmp_path


def opened(place, split="train", **options):
    return data.open_source(f"tar:{place}", split, image_size=4, **options)


def test_rows_stand_in_the_order_of_shards_and_are_read_by_number(shards):
    source = opened(shards / "pets-{000..002}.tar")
    assert (source.size, source.num_classes, source.task, source.image_shape) == (30, 3, "classification", (4, 4, 3))
    rows = source.read(np.array([29, 0, 11]))
    np.testing.assert_array_equal(rows["image"][:, 0, 0, 0], [29, 0, 11])
    np.testing.assert_array_equal(rows["label"], [2, 0, 2])
    np.testing.assert_array_equal(rows["id"], [29, 0, 11])
    np.testing.assert_allclose(rows["aspect"], 1.5)
    assert opened(shards).read(np.array([17]))["image"][0, 0, 0, 0] == 17
    seventh = data.train_batches(source, 8, seed=0)[7]
    np.testing.assert_array_equal(seventh["image"][:, 0, 0, 0], seventh["id"])
    parts = [opened(shards, f"train[{part}]") for part in (":50%", "50%:")]
    data.check_disjoint(*parts)
    assert [np.bincount(data.labels_of(part)).tolist() for part in parts] == [[5, 5, 5], [5, 5, 5]]
    assert opened(shards, "train[10:12]").ids.tolist() == [10, 11]


def test_splits_are_folders_or_stand_in_the_name(tmp_path):
    for split, numbers in (("train", range(6)), ("test", range(2))):
        write(tmp_path / "folders" / split / "0.tar", samples(numbers, lambda n: [b"emu", b"cat"][n % 2]))
        write(tmp_path / f"{split}-0.tar", samples(numbers, lambda n: json.dumps({"label": n % 3}).encode(), "json"))
    words = opened(tmp_path / "folders", "test")
    assert (words.size, words.class_names, data.labels_of(words).tolist()) == (2, ("cat", "emu"), [1, 0])
    numbers = opened(tmp_path / "{split}-{0..0}.tar", "test")
    assert (numbers.size, numbers.num_classes) == (2, 3)
    write(tmp_path / "train-1.tar", samples(range(2)))
    with pytest.raises(ValueError, match=r"the split test of .* has 1 of 2 shards: copy the others"):
        opened(tmp_path / "{split}-{0..1}.tar")
    write(tmp_path / "plain.tar", [("a.webp", picture(1, "webp")), ("b.png", picture(2))])
    assert (opened(tmp_path / "plain.tar").task, opened(tmp_path / "plain.tar").size) == ("unlabelled", 2)
    multi = write(
        tmp_path / "multi.tar", samples(range(4), lambda n: json.dumps({"label": [n % 2, 1]}).encode(), "json")
    )
    assert opened(multi).task == "multi_label"


def test_what_is_left_out_is_counted(tmp_path, caplog):
    members = [*samples(range(4)), ("s/0009.png", picture(9)), ("s/0010.cls", b"1"), ("s/0001.txt", b"caption")]
    first, second = write(tmp_path / "0.tar", members), write(tmp_path / "1.tar", samples(range(2)))
    assert opened(f"{tmp_path}/{{0..1}}.tar").size == 6
    assert "leaves out members that are no pictures or labels: 1 .txt and 1 labels without a picture" in caplog.text
    assert "leaves out 1 pictures that have no label, such as s/0009" in caplog.text
    assert "has 2 keys in several shards: they are taken for different pictures" in caplog.text
    assert first != second


def test_damage_gets_a_sentence(tmp_path):
    whole = write(tmp_path / "whole.tar", samples(range(3)))
    raw = whole.read_bytes()
    place = raw.index(picture(1))
    broken = tmp_path / "broken.tar"
    broken.write_bytes(raw[:place] + b"\0" * 40 + raw[place + 40 :])
    source = opened(broken)
    assert source.read(np.array([0, 2]))["label"].tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"the member s/0001.png of .*broken.tar cannot be decoded .* without it"):
        source.read(np.array([1]))
    for name, content, message in (
        ("short", raw[: place + 10], r"ends within its member s/0001.png: it is cut short|cannot be read"),
        ("text", b"no tar at all" * 100, r"text.tar cannot be read \(.*\): copy it anew"),
        ("gzip", b"\x1f\x8b" + raw, "is compressed by gzip, so that no member can be read alone: unpack it"),
    ):
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            opened(tmp_path / f"{name}.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (samples([1]) * 2, r"has two members s/0001.png or of the same key: give each picture its own key"),
        ([("a.png", b""), ("a.jpg", b"")], r"has two members a.jpg"),
        ([("a.txt", b"")], r"holds no picture in 1 shard"),
        (samples([1], lambda n: b""), r"the member s/0001.cls of .* is empty"),
        (samples([1], lambda n: b"{", "json"), r"the member s/0001.json of .* is damaged"),
        (samples(range(2), lambda n: [b"cat", b"3"][n]), r"some labels are words, such as 'cat', and others int"),
        (samples(range(2), lambda n: json.dumps({"label": [1] * (n + 1)}).encode(), "json"), r"of different lengths"),
        (samples([1], lambda n: b"-1"), r"label -1 in row 0"),
    ],
)
def test_other_members_get_a_sentence(members, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        opened(write(tmp_path / "x.tar", members))
    assert "\n" not in str(caught.value)


def test_other_places_get_a_sentence(shards):
    for place, message in (
        ("pets-{000..004}.tar", r"there is no file .*pets-003.tar, one of the 5 shards"),
        ("pets-{2..0}.tar", r"the range \{2..0\} of .* is empty"),
        ("cats-{split}.tar", "for any {split}"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(shards / place)
    with pytest.raises(ValueError, match=r"give image_size=\(height, width\)"):
        data.open_source(f"tar:{shards}")
    with pytest.raises(ValueError, match=r"write tar:.*pets-000.tar"):
        data.open_source(str(shards / "pets-000.tar"))
    (shards / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no [.]tar file"):
        opened(shards / "empty")
