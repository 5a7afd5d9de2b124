"""The digits as a TFDS set."""

import errno
import io
import sys

import numpy as np
import pytest

from jaxkd.data import open_source, prepare_digits, statistics
from jaxkd.data.readers import digits


@pytest.fixture(scope="module")
def original():
    """As scikit-learn has them, whose import takes a second or two."""
    from sklearn.datasets import load_digits

    return load_digits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The digits, prepared once."""
    return prepare_digits(tmp_path_factory.mktemp("digits"))


def test_splits_hold_every_digit_once(folder, original):
    rows = digits.split_rows()
    assert sorted(np.concatenate(list(rows.values()))) == list(range(1797))
    for split, size in digits.SIZES.items():
        source = open_source(folder, split)
        assert (source.size, source.num_classes, source.image_shape) == (size, 10, (8, 8, 1))
        batch = source.read(np.arange(size))
        np.testing.assert_array_equal(batch["label"], original.target[rows[split]])
        np.testing.assert_array_equal(np.round(batch["image"][..., 0] * (16 / 255)), original.images[rows[split]])
        assert batch["image"].max() == 255


def test_splits_are_stratified(original):
    labels = original.target
    for split, rows in digits.split_rows().items():
        share = np.bincount(labels[rows]) - np.bincount(labels) * digits.SIZES[split] / 1797
        assert np.abs(share).max() < 2, "each class has its share"


@pytest.mark.parametrize("size", [10, 57, 100, 500])
def test_every_first_part_of_train_is_balanced(folder, size):
    labels = open_source(folder, f"train[:{size}]").read(np.arange(size))["label"]
    counts = np.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_splits_are_fixed_for_good():
    rows = digits.split_rows()
    assert {split: values[:3].tolist() for split, values in rows.items()} == {
        "train": [1703, 1508, 1014],
        "validation": [617, 883, 1466],
        "test": [1697, 1030, 181],
    }
    assert int(sum(i * r for i, r in enumerate(rows["test"]))) == 108316803


def test_statistics_of_train_are_those_of_the_pixels(folder, original):
    mean, std = statistics(open_source(folder))
    pixels = np.round(original.images[digits.split_rows()["train"]] * 255 / 16) / 255
    np.testing.assert_allclose([mean[0], std[0]], [pixels.mean(), pixels.std()], rtol=1e-3)


def test_digits_are_prepared_once(folder, monkeypatch, capfd):
    monkeypatch.setattr(digits, "_builder_class", lambda: pytest.fail("prepared again"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert prepare_digits(folder.parents[1]) == folder
    assert "".join(capfd.readouterr()) == ""


FULL = (errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("failure", [OSError(*FULL), RuntimeError(FULL[1]), KeyboardInterrupt()])
def test_a_failed_preparation_leaves_nothing_to_trip_over(tmp_path, monkeypatch, failure):
    calls = []

    def fail(pixels):
        calls.append(1)
        if len(calls) > 1200:
            raise failure
        return io.BytesIO(b"png")

    with monkeypatch.context() as patch:
        patch.setattr(digits, "_png", fail)
        with pytest.raises((ValueError, KeyboardInterrupt), match=r"No space left on device|^$"):
            prepare_digits(tmp_path)
    assert not (tmp_path / "digits" / "1.0.0").exists()
    assert open_source(prepare_digits(tmp_path), "test").size == 500


def test_leftovers_of_a_killed_process_are_passed_by(folder, tmp_path):
    left = tmp_path / "digits" / "incomplete.AB12CD_1.0.0"
    left.mkdir(parents=True)
    (left / "digits-train.array_record-00000-of-00001").write_bytes(b"half")
    assert open_source(prepare_digits(tmp_path), "test").size == 500
    assert open_source("digits", "test", data_dir=tmp_path).size == 500


def test_a_folder_that_is_no_data_set_gets_a_sentence(tmp_path):
    folder = tmp_path / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="exists but holds no whole data set: delete it"):
        prepare_digits(tmp_path)


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the digits cannot be prepared in .*see that the folder can be written"):
        prepare_digits(tmp_path / "file")


def test_a_second_process_that_comes_first_is_no_error(folder, tmp_path, monkeypatch):
    import shutil

    class Late:
        def __init__(self, data_dir):
            self.target = tmp_path / "digits" / "1.0.0"

        def download_and_prepare(self, file_format):
            shutil.copytree(folder, self.target)
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(digits, "_builder_class", lambda: Late)
    assert prepare_digits(tmp_path) == tmp_path / "digits" / "1.0.0"
