"""Targets: joined by id and view, and refused with the difference when they belong to something else."""

import dataclasses
import json
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import augment, parallel
from jaxkd.cache import read
from jaxkd.cache.read import with_targets as join
from jaxkd.cache.write import write_targets
from jaxkd.data import eval_batches, in_memory, open_source, prefetch, table, train_batches, with_fields
from jaxkd.train import multistep
from jaxkd.types import BY_VIEW, Model, Outputs, Variables

SIZE, VIEWS = 40, 3
ARRAYS = {
    "image": np.random.default_rng(0).integers(0, 256, (SIZE, 3, 3, 1), dtype=np.uint8),
    "label": np.arange(SIZE) % 4,
}
SOURCE = open_source(ARRAYS)
MADE = {"teacher": "abc", "precision": "float32"}
EMPTY = Variables({}, {})


def prepare(batch, seed=0, scale=1.0):
    moves = augment.compose(augment.to_float(), augment.flip(), augment.normalize(0.0, scale))
    return augment.augment_batch(moves, seed=seed)(batch)


def telling(batch):
    """Logits that say of which view of which example they are, and what was seen."""
    return jnp.stack([batch["id"] * 1.0, batch["view"] * 1.0, jnp.sum(batch["image"][:, 0], axis=(1, 2))], axis=-1)


TELLING = Model(lambda key, batch: EMPTY, lambda v, batch, key, train: (Outputs(telling(batch)), v.state))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep") / "targets"
    plan = parallel.with_jit(parallel.make_mesh(jax.devices()[:2]))
    write_targets(
        folder, SOURCE, TELLING, EMPTY, plan=plan, prepare=prepare, views=VIEWS, batch_size=8, made_with=MADE, rows=16
    )
    return folder


@pytest.fixture
def copy(written, tmp_path):
    """A folder of the same files that may be spoilt."""
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def with_targets(path, source=SOURCE, made_with=MADE, prepare=prepare, **options):
    return join(source, path, made_with=made_with, prepare=prepare, **options)


@jax.jit
def told(batch):
    return telling(prepare(batch))


def assert_tells(batch):
    batch = {name: batch[name] for name in ("image", "label", "id", "view", "teacher_logits")}
    np.testing.assert_array_equal(batch["teacher_logits"], told(batch))


@pytest.mark.parametrize("whole", [True, False])
def test_each_batch_has_the_targets_of_its_own_views(written, whole, monkeypatch):
    if not whole:
        monkeypatch.setattr(read, "_IN_MEMORY", 0)
    joined = with_targets(written)
    batches = train_batches(joined, 10, seed=1)
    seen = list(prefetch(batches, dict, stop=4 * (VIEWS + 1)))
    for batch in seen:
        assert_tells(batch)
    assert [int(b["view"][0]) for b in seen[::4]] == [0, 1, 2, 0]
    order = np.concatenate([b["id"] for b in seen])
    assert not np.array_equal(order[:SIZE], order[-SIZE:]), "the view comes again, in another order"
    assert_tells(eval_batches(joined, 16)[2])


def test_fewer_views_come_again_sooner(written):
    batches = train_batches(with_targets(written, views=2), SIZE, seed=1)
    assert [int(batches[k]["view"][0]) for k in range(5)] == [0, 1, 0, 1, 0]
    assert {train_batches(SOURCE, SIZE, seed=1)[k]["view"][0] for k in range(3)} == {0, 1, 2}


def test_views_of_a_live_teacher_come_again_as_those_of_a_cache():
    again = train_batches(dataclasses.replace(SOURCE, views=2), SIZE, seed=1)[2]
    np.testing.assert_array_equal(again["view"], np.zeros(SIZE))
    np.testing.assert_array_equal(again["id"], train_batches(SOURCE, SIZE, seed=1)[2]["id"])
    with pytest.raises(ValueError, match="views is 0: give at least 1"):
        dataclasses.replace(SOURCE, views=0)


@pytest.mark.parametrize("rows", ["13:31", "25%:70%"])
def test_a_slice_and_more_fields_do_not_change_what_belongs_together(written, rows):
    part = open_source(ARRAYS, f"train[{rows}]")
    part = with_fields(part, marked=part.ids - 13)
    batch = train_batches(in_memory(with_targets(written, part)), 6, seed=0)[2]
    assert_tells(batch)
    np.testing.assert_array_equal(batch["marked"], batch["id"] - 13)


def test_targets_of_drawn_rows_belong_to_these_rows_alone(tmp_path):
    part, other = (open_source(ARRAYS, f"train[{rows}]") for rows in (":60%", "20%:80%"))
    same = {"prepare": prepare, "made_with": MADE, "views": 1}
    write_targets(tmp_path, part, TELLING, EMPTY, plan=parallel.with_jit(), batch_size=8, rows=16, **same)
    assert_tells(train_batches(with_targets(tmp_path, part), 8, seed=0)[1])
    for source in (other, SOURCE):
        with pytest.raises(ValueError, match="those of 24 examples that were drawn from a split, which are not the"):
            with_targets(tmp_path, source)
    with pytest.raises(ValueError, match=r"write the new ones to another folder|drawn from a split"):
        write_targets(tmp_path, other, TELLING, EMPTY, plan=parallel.with_jit(), batch_size=8, rows=16, **same)


def test_a_table_on_the_device_holds_every_view(written):
    joined = with_targets(written)
    fields, rows = table(joined)
    assert fields[BY_VIEW]["teacher_logits"].shape == (SIZE, VIEWS, 3)
    step = multistep.from_table(lambda state, variables, batch: batch)
    for k in (0, 4, 11):
        read, batch = train_batches(joined, 10, seed=1)[k], train_batches(rows, 10, seed=1)[k]
        assert set(batch) == {"row", "view"}
        found = step(None, (EMPTY, jax.tree.map(jnp.asarray, fields)), batch)
        assert set(found) == set(read)
        for name, values in found.items():
            np.testing.assert_array_equal(values, read[name])


def test_targets_are_read_in_the_pipelines_threads(written):
    joined, readers = with_targets(written), set()

    def read(rows, view):
        readers.add(threading.current_thread())
        return joined.targets(rows, view)

    for _ in prefetch(train_batches(dataclasses.replace(joined, targets=read), 10, seed=0), dict, stop=4):
        pass
    assert readers
    assert threading.current_thread() not in readers


def test_source_says_what_its_targets_were_made_with(written):
    assert SOURCE.made_with == {}
    assert with_targets(written, views=2).made_with == {**MADE, "views": "2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"made_with": MADE | {"teacher": "xyz"}}, "were made with teacher = abc, not xyz: write them elsewhere"),
        ({"made_with": MADE | {"mood": "good"}}, "were made with mood = None, not good"),
        ({"made_with": {"teacher": "abc"}}, "were made with precision = float32, not None"),
        ({"prepare": lambda b: prepare(b, seed=1)}, "another preparation: `image` of example .* in view [01] differs"),
        ({"prepare": lambda b: prepare(b, scale=1.01)}, "`image` of example 0 in view 0 differs"),
        ({"source": open_source({**ARRAYS, "image": ARRAYS["image"] + 1})}, "`image` of example 0 in view 0 differs"),
        ({"views": 5}, r"have no view 4, they hold views 0\.\.2: write more of them, or train with 3 views"),
        ({"source": with_fields(SOURCE, teacher_logits=ARRAYS["label"])}, "already has the field `teacher_logits`"),
        ({"source": open_source({k: np.tile(v.T, 2).T for k, v in ARRAYS.items()})}, r"0\.\.39, but .* has 0\.\.79"),
        ({"path": "nowhere"}, "there are no targets in nowhere: write them first with jaxkd.cache.write_targets"),
    ],
)
def test_targets_of_something_else_are_refused_with_the_difference(written, options, message):
    with pytest.raises(ValueError, match=message):
        with_targets(**{"path": written, **options})


def test_a_view_that_is_not_there_is_named_when_it_is_read(written):
    with pytest.raises(ValueError, match=r"have no view 3, they hold views 0\.\.2"):
        with_targets(written).targets(np.arange(4), 3)


def test_a_flipped_byte_is_named_after_the_batches_before_it(copy):
    path = sorted(copy.glob("view00001-row000000016*"))[0]
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2] ^= 4
    path.write_bytes(broken)
    batches, seen = prefetch(train_batches(with_targets(copy), SIZE, seed=0), dict), []
    with pytest.raises(ValueError, match=rf"{path} cannot be read \(its bytes do not have the checksum"):
        seen.extend(batches)
    assert len(seen) == 1


def test_a_missing_and_a_swapped_shard_get_a_sentence(copy):
    for own in copy.glob("view00000-row000000016*"):
        own.unlink()
    (other,) = copy.glob("view00001-row000000000*")
    os.replace(other, copy / other.name.replace("view00001-row000000000", "view00000-row000000016"))
    joined = with_targets(copy)
    with pytest.raises(ValueError, match=r"view00001-row000000000\.array_record is missing"):
        joined.targets(np.arange(3), 1)
    with pytest.raises(ValueError, match=r"targets of view 0 in .* belong to other examples"):
        joined.targets(np.arange(20, 23), 0)


@pytest.mark.parametrize(
    ("place", "taken"),
    [("view00000-row000000016", "view00001-row000000016"), ("view00000-row000000016", "view00000-row000000000")],
    ids=["of another view", "of other examples"],
)
def test_a_shard_under_another_ones_name_gets_a_sentence(copy, place, taken):
    (own,), (other,) = copy.glob(f"{place}*"), copy.glob(f"{taken}*")
    own.unlink()
    os.replace(other, copy / other.name.replace(taken, place))
    with pytest.raises(ValueError, match=r"targets of view 0 in .* belong to other examples"):
        with_targets(copy).targets(np.arange(20, 23), 0)


def test_a_manifest_of_another_kind_gets_a_sentence(copy):
    path = copy / "manifest.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "format": 2}))
    with pytest.raises(ValueError, match="has format 2, but this version reads 1"):
        with_targets(copy)
    path.write_text(json.dumps({**whole, "views": 0}))
    with pytest.raises(ValueError, match="have no view 0, they hold no whole view: write more"):
        with_targets(copy)
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match="is no manifest of targets: delete its folder and write them again"):
        with_targets(copy)


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name, value in (("start", "a"), ("rows", 0), ("views", None), ("made_with", []))),
        {"fields": []},
        {"fields": {"teacher_logits": ["foo", [3]]}},
        {"probe": {}},
        {"probe": {"id": [0, 1], "seen": {"image": []}}},
        b"\xff\xfe",
        b"[1]",
    ],
    ids=str,
)
def test_a_damaged_manifest_is_a_sentence_that_names_it(copy, change):
    path = copy / "manifest.json"
    content = change if isinstance(change, bytes) else json.dumps({**json.loads(path.read_text()), **change}).encode()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest.json is no manifest of targets: delete its folder"):
        with_targets(copy)
    with pytest.raises(ValueError, match=r"cannot be read \(Not a directory\)"):
        with_targets(path)
