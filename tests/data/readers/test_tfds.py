"""Sources from TFDS sets that the real library prepared."""

import io
import json
import shutil
import types

import numpy as np
import pytest

from jaxkd.data import encode_bytes, eval_batches, open_source, open_texts, prefetch, train_batches
from jaxkd.data.readers import tfds
from jaxkd.data.text_files import splits_of_texts


def test_prepared_folder_gives_images_labels_and_plain_numbers(picture_folder, pictures, capfd):
    source = open_source(picture_folder, "train[5:]")
    assert source.name == "pictures/1.0.0[train[5:]]"
    assert (len(source), source.num_classes, source.image_shape, source.start) == (10, 4, (6, 5, 3), 5)
    rows = np.array([9, 0, 0])
    batch = source.read(rows)
    assert set(batch) == {"image", "label", "id", "box", "weight"}, "no texts, no ragged, no nested features"
    np.testing.assert_array_equal(batch["image"], pictures[5 + rows])
    np.testing.assert_array_equal(batch["label"], (5 + rows) % 4)
    np.testing.assert_array_equal(batch["id"], 5 + rows)
    np.testing.assert_allclose(batch["weight"], (5 + rows) / 2)
    assert batch["box"].shape == (3, 4)
    assert "".join(capfd.readouterr()) == "", "TFDS is kept quiet"


def test_a_prepared_set_is_found_by_name_without_a_network(picture_folder, monkeypatch):
    monkeypatch.setattr("jaxkd.data.readers.preparing.reachable", lambda urls: pytest.fail("the network was asked"))
    source = open_source("pictures", "test", data_dir=picture_folder.parents[1])
    np.testing.assert_array_equal(source.read(np.arange(5))["id"], np.arange(5))
    again = open_source("pictures:1.0.0", "test", data_dir=picture_folder.parents[1])
    assert again.size == source.size == 5


def test_many_threads_read_what_one_reads(picture_folder):
    batches = train_batches(open_source(picture_folder), 4, seed=0, process_index=0, process_count=1)
    for k, batch in enumerate(prefetch(batches, dict, stop=30, num_threads=6)):
        for field, values in batches[k].items():
            np.testing.assert_array_equal(batch[field], values)


def test_images_are_resized_at_reading(picture_folder):
    source = open_source(picture_folder, image_size=(3, 4))
    assert source.image_shape == (3, 4, 3)
    assert source.read(np.arange(2))["image"].shape == (2, 3, 4, 3)


def test_sentences_become_tokens(sentence_folder):
    source = open_source(sentence_folder)
    assert (source.image_shape, source.num_classes) == (None, 2)
    batch = source.read(np.arange(3))
    assert set(batch) == {"premise", "hypothesis", "label", "idx", "id"}
    (batch,) = eval_batches(source, 10, transform=encode_bytes(30), process_index=0, process_count=1)
    expected = [b + 1 for b in "éé".encode()] + [257] + [ord("h") + 1, ord("2") + 1]
    np.testing.assert_array_equal(batch["tokens"][2, : len(expected)], expected)
    np.testing.assert_array_equal(batch["idx"], 100 + np.arange(10))


def test_sentences_without_a_transform_get_a_sentence(sentence_folder):
    batches = eval_batches(open_source(sentence_folder), 4, process_index=0, process_count=1)
    with pytest.raises(ValueError, match="holds texts, which no device takes: give a transform such as"):
        batches[0]


def test_sentences_are_texts(sentence_folder):
    assert splits_of_texts(f"tfds:{sentence_folder}") == ["train", "test"]
    texts = open_texts(f"tfds:{sentence_folder}", "train[:50%]")
    assert (len(texts), texts.class_names, texts.labels.sum()) == (5, ("no", "yes"), 2)
    assert [(len(one), other) for one, other in zip(texts.texts, texts.pairs, strict=True)] == [
        (i, f"h{i}") for i in texts.ids
    ]


def test_hidden_labels_get_a_sentence(sentence_folder):
    source = open_source(sentence_folder, "test")
    with pytest.raises(ValueError, match=r"label -1 in row 0 of sentences/1.0.0\[test\] lies outside 0..1"):
        source.read(np.arange(1))


def test_supervised_keys_name_image_and_label(prepare, png):
    import tensorflow_datasets as tfds

    features = {
        "photo": tfds.features.Image(shape=(None, None, 1)),
        "other": tfds.features.ClassLabel(num_classes=3),
        "kind": tfds.features.Scalar(np.int64),
    }
    sizes = [(4, 4), (4, 6), (2, 2)]
    rows = [{"photo": png(np.full((*hw, 1), 10 * i, np.uint8)), "other": 0, "kind": i} for i, hw in enumerate(sizes)]
    folder = prepare("odd", features, {"train": rows}, supervised=("photo", "kind"))
    with pytest.raises(ValueError, match=r"vary in shape, \(None, None, 1\): give image_size"):
        open_source(folder, num_classes=3)
    with pytest.raises(ValueError, match="does not say how many classes `kind` has: give num_classes"):
        open_source(folder, image_size=4)
    batch = open_source(folder, num_classes=3, image_size=4).read(np.arange(3))
    assert batch["image"].shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [0, 10, 20])
    np.testing.assert_array_equal(batch["label"], [0, 1, 2])
    np.testing.assert_array_equal(batch["other"], 0)


def test_nan_and_odd_shapes_are_named_at_reading(prepare, png):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
        "weight": tfds.features.Scalar(np.float32),
    }
    shapes, weights = [(4, 4, 1), (5, 4, 1), (4, 4, 1)], [0.0, 0.0, np.nan]
    rows = [
        {"image": png(np.zeros(s, np.uint8)), "label": 0, "weight": w} for s, w in zip(shapes, weights, strict=True)
    ]
    source = open_source(prepare("bad", features, {"train": rows}))
    with pytest.raises(ValueError, match=r"image in row 1 of bad/1.0.0\[train\] has shape \(5, 4, 1\) but \(4, 4, 1\)"):
        source.read(np.array([0, 1]))
    with pytest.raises(ValueError, match=r"`weight` in row 2 of bad/1.0.0\[train\] holds NaN or Inf"):
        source.read(np.array([0, 2]))
    source.read(np.array([0]))


def test_a_set_with_no_label_gets_a_sentence(prepare):
    import tensorflow_datasets as tfds

    folder = prepare("plain", {"text": tfds.features.Text()}, {"train": [{"text": "a"}]})
    with pytest.raises(ValueError, match=r"plain/1.0.0\[train\] has no class label: its features are text, and"):
        open_source(folder)


def test_tfrecord_files_get_a_sentence(picture_folder, tmp_path):
    folder = shutil.copytree(picture_folder, tmp_path / "pictures" / "1.0.0")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="as tfrecord, without random access: prepare it again elsewhere"):
        open_source(folder)


def test_folders_that_cannot_be_read_get_a_sentence(picture_folder, tmp_path):
    with pytest.raises(ValueError, match=rf"it has no dataset_info.json: did you mean {picture_folder}\?"):
        open_source(picture_folder.parents[1])
    with pytest.raises(ValueError, match=r"it has no dataset_info.json: give npz:PATH for an .npz file, or a folder"):
        open_source(tmp_path)
    folder = shutil.copytree(picture_folder, tmp_path / "pictures" / "1.0.0")
    (record,) = folder.glob("*train*")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"files of pictures/1.0.0\[train\] in .* cannot be read .*prepare it anew"):
        open_source(folder)
    record.unlink()
    with pytest.raises(ValueError, match=r"files of pictures/1.0.0\[train\] in .* cannot be read .*prepare it anew"):
        open_source(folder)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot be read by TFDS .*prepare it anew"):
        open_source(folder)


def test_a_torn_record_is_named_with_its_row_and_file(picture_folder, pictures, tmp_path):
    """Through the reading threads, after the batches before it, and not when the set is opened."""
    folder = shutil.copytree(picture_folder, tmp_path / "pictures" / "1.0.0")
    (file,) = folder.glob("*train*")
    data = bytearray(file.read_bytes())
    written = np.flatnonzero(np.frombuffer(data, np.uint8))
    data[written[len(written) // 2]] ^= 255
    file.write_bytes(data)
    source = open_source(folder)
    rows = [row for row in range(15) if not readable(source, row)]
    assert rows
    assert min(rows) > 0
    stream = prefetch(eval_batches(source, 2, process_index=0, process_count=1), dict)
    for k in range(min(rows) // 2):
        np.testing.assert_array_equal(next(stream)["image"], pictures[2 * k : 2 * k + 2])
    sentence = (
        rf"^row {min(rows)} of pictures/1\.0\.0\[train\] cannot be read from {file} \(RuntimeError: .*\): copy that"
    )
    with pytest.raises(ValueError, match=sentence) as caught:
        next(stream)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(open_source(folder, f"train[:{min(rows)}]").read(np.arange(2))["image"], pictures[:2])


def readable(source, row):
    try:
        source.read(np.array([row]))
    except ValueError:
        return False
    return True


def test_the_file_of_a_row_is_found_among_several():
    info = types.SimpleNamespace(filepaths=["a", "b", "c"], shard_lengths=[3, 0, 4])

    def parsed(bad):
        def run(numbers):
            if bad in numbers:
                raise OSError("torn")

        return run

    for bad, file in ((0, "a"), (2, "a"), (3, "c"), (6, "c")):
        said = tfds._unreadable("set[train]", np.array([5, bad]), parsed(bad), info, OSError("torn"))
        assert said.startswith(f"row {bad} of set[train] cannot be read from {file} (OSError: torn)")
    said = tfds._unreadable("set[train]", np.array([5, 6]), parsed(0), info, OSError("no answer"))
    assert said.startswith(
        "rows [5, 6] of set[train] could not be read (OSError: no answer) but can be now: run the same"
    )


def test_an_image_that_is_cut_off_is_named_with_its_row(prepare, png):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(30, 30, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
    noise = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    rows = [{"image": png(noise), "label": 0} for _ in range(4)]
    rows[2]["image"] = io.BytesIO(png(noise).getvalue()[:600])
    source = open_source(prepare("cut", features, {"train": rows}))
    with pytest.raises(
        ValueError, match=r"image in row 2 of cut/1.0.0\[train\] cannot be decoded .*prepare it anew, or"
    ):
        source.read(np.arange(4))
    source.read(np.array([0, 1, 3]))


def test_splits_of_a_set_are_listed(picture_folder):
    with pytest.raises(ValueError, match=r"pictures/1.0.0 has no split 'valid': it has train and test"):
        open_source(picture_folder, "valid")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion_mnits", "TFDS knows no data set 'fashion_mnits' and .* holds none: did you mean fashion_mnist"),
        ("zzzzzz", "holds none: tfds.list_builders"),
        ("mnist:9.9.9", r"TFDS cannot make the data set 'mnist:9.9.9' \(.*only: 3.0.1.*\): give a version"),
    ],
)
def test_unknown_names_get_a_sentence(tmp_path, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_source(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_set_that_is_sorted_by_class_or_begins_with_a_damaged_image_gets_a_sentence(prepare, png):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(4, 4, 1)), "label": tfds.features.ClassLabel(names=["a", "b"])}
    rows = [{"image": png(np.zeros((4, 4, 1), np.uint8)), "label": i // 10} for i in range(20)]
    torn = [{"image": io.BytesIO(png(np.zeros((4, 4, 1), np.uint8)).getvalue()[:30]), "label": 0}, *rows[:1]]
    folder = prepare("by_class", features, {"train": rows, "torn": torn})
    with pytest.raises(
        ValueError, match=r"by_class/1.0.0\[train\[:50%\]\] is a slice of a split whose rows are sorted"
    ):
        open_source(folder, "train[:50%]")
    assert open_source(folder).class_names == ("a", "b")
    with pytest.raises(
        ValueError, match=r"image in row 0 of by_class/1.0.0\[torn\] cannot be decoded .*prepare it anew"
    ):
        open_source(folder, "torn")
