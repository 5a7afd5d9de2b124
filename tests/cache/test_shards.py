"""Shards: whole or absent, and read only if every byte is the one that was written."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxkd.cache import shards

RECORD = np.dtype([("id", "<i4"), ("x", "<f4", (3,))])
RECORDS = np.array([(i, (i / 7, -i, i * i)) for i in range(50)], RECORD)


@pytest.fixture
def path(tmp_path):
    with shards.writing(tmp_path, "a") as append:
        append(RECORDS[:20])
        append(RECORDS[20:])
    return shards.find(tmp_path)["a"]


def test_records_come_back_in_any_order(path):
    assert list(path.parent.iterdir()) == [path]
    shard = shards.Shard(path, RECORD, 50)
    np.testing.assert_array_equal(shard.read_all(), RECORDS)
    places = np.array([7, 0, 49, 7])
    np.testing.assert_array_equal(shard.read(places), RECORDS[places])


def test_threads_share_a_shard(path):
    shard = shards.Shard(path, RECORD, 50)
    orders = [np.random.default_rng(k).integers(0, 50, 30) for k in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(shard.read, orders), strict=True):
            np.testing.assert_array_equal(found, RECORDS[order])


@pytest.mark.parametrize("place", [0, 40, 900, 70_000, -1])
def test_a_flipped_byte_is_found_wherever_it_is(path, place):
    """Also where ArrayRecord itself reads nothing, in padding."""
    broken = bytearray(path.read_bytes())
    broken[place] ^= 1
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=rf"{path} cannot be read \(its bytes do not have the checksum in its name\)"):
        shards.Shard(path, RECORD, 50)


def test_a_torn_a_missing_and_another_file_get_a_sentence(path):
    with pytest.raises(ValueError, match=r"it holds 50 records, not 49\): run the command that wrote it again"):
        shards.Shard(path, RECORD, 49)
    os.truncate(path, path.stat().st_size // 2)
    assert not shards.is_whole(path)
    with pytest.raises(ValueError, match="checksum"):
        shards.Shard(path, RECORD, 50)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path} cannot be read \(No such file or directory\)"):
        shards.Shard(path, RECORD, 50)


def test_a_shard_is_named_once_its_bytes_are_on_the_disk(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(shards.os, name, lambda *given, name=name, real=real: done.append(name) or real(*given))
    with shards.writing(tmp_path, "a") as append:
        append(RECORDS)
    assert done == ["fsync", "replace"]


def fail(folder, error):
    with shards.writing(folder, "b") as append:
        append(RECORDS)
        raise error


def test_a_failed_shard_leaves_nothing(path):
    with pytest.raises(KeyboardInterrupt):
        fail(path.parent, KeyboardInterrupt())
    with pytest.raises(ValueError, match=r"b\.array_record cannot be written \(No space left on device\): see that"):
        fail(path.parent, OSError(28, "No space left on device"))
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"b\.array_record cannot be written \(.*No such file or directory"):
        fail(tmp_path / "nowhere", AssertionError("nothing can be written"))


def test_unfinished_files_of_a_killed_writer_are_deleted(path):
    for name in ("b.part", ".manifest.json.17.tmp"):
        (path.parent / name).write_text("unfinished")
    shards.clear_parts(path.parent)
    assert list(path.parent.iterdir()) == [path]
