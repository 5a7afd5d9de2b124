"""Targets: written whole, joined by id, refused when they belong to something else."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import eval_batches, fingerprint_variables, open_source, with_targets, write_targets

SIZE = 20
SOURCE = open_source({"image": np.zeros((SIZE, 2, 2, 1), np.uint8), "label": np.arange(SIZE) % 4})
LOGITS = np.random.default_rng(0).normal(size=(SIZE, 4)).astype(np.float32)
PRINT = {"teacher": "abc", "source": "arrays"}


@pytest.fixture
def path(tmp_path):
    """A file of targets in shuffled order."""
    ids = np.random.default_rng(1).permutation(SIZE)
    write_targets(tmp_path / "deep" / "t.npz", ids, {"teacher_logits": LOGITS[ids]}, PRINT)
    return tmp_path / "deep" / "t.npz"


def test_targets_are_joined_by_id(path):
    whole = with_targets(SOURCE, path, fingerprint=PRINT)
    rows = np.array([7, 0, 0, 19])
    np.testing.assert_array_equal(whole.read(rows)["teacher_logits"], LOGITS[rows])
    part = open_source({"image": np.zeros((SIZE, 2, 2, 1), np.uint8), "label": np.arange(SIZE) % 4}, "train[13:]")
    batch = eval_batches(with_targets(part, path, fingerprint=PRINT), 4, process_index=0, process_count=1)[1]
    np.testing.assert_array_equal(batch["teacher_logits"], LOGITS[batch["id"]])
    np.testing.assert_array_equal(batch["id"], [17, 18, 19, 19])


def test_source_says_what_its_targets_were_made_with(path, tmp_path):
    assert SOURCE.made_with == {}
    joined = with_targets(SOURCE, path, fingerprint=PRINT)
    assert joined.made_with == PRINT
    write_targets(tmp_path / "more.npz", SOURCE.ids, {"y": np.zeros(SOURCE.size)}, {"depth": "3"})
    assert with_targets(joined, tmp_path / "more.npz", fingerprint={"depth": "3"}).made_with == {**PRINT, "depth": "3"}


def test_another_fingerprint_is_named(path):
    with pytest.raises(ValueError, match="were made with teacher = abc, not xyz: write them again"):
        with_targets(SOURCE, path, fingerprint=PRINT | {"teacher": "xyz"})
    with pytest.raises(ValueError, match="were made with view = None, not 3"):
        with_targets(SOURCE, path, fingerprint=PRINT | {"view": "3"})
    with pytest.raises(ValueError, match="were made with source = arrays, not None"):
        with_targets(SOURCE, path, fingerprint={"teacher": "abc"})


@pytest.mark.parametrize("ids", [[0, 1, 2, 4, *range(5, 20)], list(range(10)), []])
def test_missing_ids_are_named(tmp_path, ids):
    write_targets(tmp_path / "t.npz", np.array(ids, int), {"x": np.zeros((len(ids), 2))}, PRINT)
    first = 3 if 4 in ids and 3 not in ids else len(ids)
    with pytest.raises(
        ValueError, match=rf"lack {SIZE - len(ids)} of the 20 rows of arrays\[train\], first id {first}:"
    ):
        with_targets(SOURCE, tmp_path / "t.npz", fingerprint=PRINT)


@pytest.mark.parametrize(
    ("ids", "arrays", "message"),
    [
        ([0, 1, 1], {"x": np.zeros((3, 2))}, "ids for .* repeat: write each example once"),
        ([0, 1, 2], {"x": np.zeros((2, 2))}, "`x` have shape \\(2, 2\\) but there are 3 ids"),
        ([4, 5, 6], {"x": np.array([[0.0], [np.nan], [0.0]])}, "`x` of id 5 are NaN \\(1 rows are\\)"),
        ([0], {"view": np.zeros(1)}, "cannot be named 'view'"),
    ],
)
def test_bad_targets_get_a_sentence(tmp_path, ids, arrays, message):
    with pytest.raises(ValueError, match=message):
        write_targets(tmp_path / "t.npz", ids, arrays, PRINT)
    assert not list(tmp_path.iterdir())


def test_masked_classes_are_allowed(tmp_path):
    write_targets(tmp_path / "t.npz", np.arange(SIZE), {"x": np.full((SIZE, 2), -np.inf)}, PRINT)
    assert np.isneginf(with_targets(SOURCE, tmp_path / "t.npz", fingerprint=PRINT).read(np.arange(2))["x"]).all()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ValueError, match=r"t\.npz cannot be written \(No space left on device\): see that its folder"):
        write_targets(path, np.arange(2), {"x": np.zeros((2, 1))}, PRINT)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written"):
        write_targets(tmp_path / "file" / "t.npz", np.arange(2), {"x": np.zeros((2, 1))}, PRINT)


def test_files_that_are_no_targets_get_a_sentence(tmp_path, path):
    with pytest.raises(ValueError, match=r"there are no targets in .*none\.npz: write them first"):
        with_targets(SOURCE, tmp_path / "none.npz", fingerprint=PRINT)
    half = tmp_path / "half.npz"
    half.write_bytes(path.read_bytes()[: os.path.getsize(path) // 2])
    with pytest.raises(ValueError, match=r"half\.npz cannot be read .*delete the file and write them again"):
        with_targets(SOURCE, half, fingerprint=PRINT)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="holds no targets, it lacks `id` or a fingerprint"):
        with_targets(SOURCE, tmp_path / "other.npz", fingerprint=PRINT)


def test_fields_of_the_source_are_not_overwritten(tmp_path):
    write_targets(tmp_path / "t.npz", np.arange(SIZE), {"label": np.zeros(SIZE, int)}, PRINT)
    with pytest.raises(ValueError, match="already has the field `label`: write the targets under another name"):
        with_targets(SOURCE, tmp_path / "t.npz", fingerprint=PRINT)


def test_fingerprint_sees_names_shapes_dtypes_and_bytes():
    tree = {"a": jnp.arange(6.0), "b": (jnp.ones((2, 3), jnp.bfloat16), jax.random.key(0)), "c": None}
    digest = fingerprint_variables(tree)
    assert len(digest) == 64
    assert digest == fingerprint_variables(jax.tree.map(lambda x: x, tree))
    assert digest == fingerprint_variables({**tree, "a": np.arange(12.0, dtype=np.float32)[::2] / 2}), (
        "layout is no matter"
    )
    others = [
        {**tree, "a": jnp.arange(6.0).at[5].add(1e-6)},
        {**tree, "a": jnp.arange(6.0).reshape(2, 3)},
        {**tree, "a": jnp.arange(6)},
        {"z": tree["a"], "b": tree["b"]},
        {**tree, "b": (tree["b"][0], jax.random.key(1))},
    ]
    assert fingerprint_variables(np.zeros(3, np.int32)) != fingerprint_variables(np.zeros(3, np.float32))
    assert len({digest, *map(fingerprint_variables, others)}) == 6
