"""Batches: pure functions of (seed, k), every row once an epoch, the same for any number of processes."""

import contextlib
import dataclasses
import sys
import threading
import time

import grain
import jax
import numpy as np
import pytest

from jaxkd.data import bundles, eval_batches, open_source, prefetch, steps_per_epoch, train_batches

SIZE = 23
SOURCE = open_source(
    {"image": np.arange(SIZE * 4, dtype=np.float32).reshape(SIZE, 2, 2, 1), "label": np.arange(SIZE) % 3}
)
ALONE = {"process_index": 0, "process_count": 1}


def same(a, b):
    assert set(a) == set(b)
    for field in a:
        np.testing.assert_array_equal(a[field], b[field])
        assert a[field].dtype == b[field].dtype


def test_batch_k_depends_on_seed_and_k_alone():
    one, two = (train_batches(SOURCE, 5, seed=3, **ALONE) for _ in range(2))
    forwards = [one[k] for k in range(12)]
    for k in reversed(range(12)):
        same(forwards[k], two[k])
    assert any((train_batches(SOURCE, 5, seed=4, **ALONE)[k]["id"] != forwards[k]["id"]).any() for k in range(4))


def test_the_order_never_changes_between_versions():
    # Resuming a run must find the same batches; these numbers may only change with the format of a run.
    assert train_batches(SOURCE, 5, seed=3, **ALONE)[9]["id"].tolist() == [13, 7, 4, 6, 21]


def test_an_epoch_holds_no_row_twice_and_drops_the_rest():
    batches = train_batches(SOURCE, 5, seed=0, **ALONE)
    steps = steps_per_epoch(SOURCE, 5)
    assert steps == 4
    orders = []
    for epoch in range(3):
        part = [batches[epoch * steps + i] for i in range(steps)]
        ids = np.concatenate([b["id"] for b in part])
        assert len(set(ids.tolist())) == 20
        assert {v for b in part for v in b["view"].tolist()} == {epoch}
        orders.append(tuple(ids))
    assert len(set(orders)) == 3, "shuffled anew each epoch"
    # An epoch of one seed is no epoch of another.
    shifted = train_batches(SOURCE, 5, seed=1, **ALONE)
    assert tuple(np.concatenate([shifted[i]["id"] for i in range(steps)])) not in orders


def test_rows_go_with_their_ids_and_dtypes_suit_a_device():
    batch = train_batches(SOURCE, 8, seed=0, **ALONE)[7]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], 4.0 * batch["id"])
    assert {field: values.dtype for field, values in batch.items()} == {
        "image": np.float32,
        "label": np.int32,
        "id": np.int32,
        "view": np.int32,
    }


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    "make", [lambda **kw: train_batches(SOURCE, 8, seed=5, **kw), lambda **kw: eval_batches(SOURCE, 8, **kw)]
)
def test_processes_side_by_side_are_one_process(count, make):
    whole = make(**ALONE)
    parts = [make(process_index=i, process_count=count) for i in range(count)]
    for k in range(3):
        pieces = [part[k] for part in parts]
        same(whole[k], {field: np.concatenate([p[field] for p in pieces]) for field in whole[k]})


def test_a_process_reads_only_its_own_rows():
    seen = []
    counted = dataclasses.replace(SOURCE, read=lambda rows: seen.extend(rows) or SOURCE.read(rows))
    train_batches(counted, 8, seed=0, process_index=1, process_count=4)[0]
    assert len(seen) == 2


def test_processes_default_to_those_of_jax(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    same(eval_batches(SOURCE, 8)[0], eval_batches(SOURCE, 8, process_index=1, process_count=2)[0])


@pytest.mark.parametrize("batch_size", [1, 5, 23, 24])
def test_evaluation_sees_every_row_once_and_in_order(batch_size):
    batches = eval_batches(SOURCE, batch_size, **ALONE)
    seen = [batches[k] for k in range(len(batches))]
    assert len(seen) == -(-SIZE // batch_size)
    assert {len(b["image"]) for b in seen} == {batch_size}
    ids = np.concatenate([b["id"][b["mask"]] for b in seen])
    np.testing.assert_array_equal(ids, np.arange(SIZE))
    assert not any(b["view"].any() for b in seen)
    assert all(b["mask"].dtype == bool for b in seen)


def test_the_transform_sees_the_whole_batch():
    double = {"transform": lambda batch: {**batch, "twice": 2 * batch["view"]}, **ALONE}
    assert (train_batches(SOURCE, 5, seed=0, **double)[9]["twice"] == 4).all()
    assert (eval_batches(SOURCE, 5, **double)[0]["twice"] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_batches(SOURCE, 24, seed=0, **ALONE), "batch_size is 24 but arrays\\[train\\] has 23 rows"),
        (lambda: train_batches(SOURCE, 9, seed=0, process_index=0, process_count=2), "give a positive multiple of 2"),
        (lambda: eval_batches(SOURCE, 0, **ALONE), "give a positive multiple of 1"),
        (lambda: eval_batches(SOURCE, 2, process_index=2, process_count=2), "process_index is 2 but there are 2"),
        (lambda: train_batches(SOURCE, 2, seed=-1, **ALONE), "seed is -1: give an integer in 0"),
        (lambda: train_batches(SOURCE, 2, seed=0.5, **ALONE), "seed is 0.5: give an integer in 0"),
        (lambda: train_batches(SOURCE, 2.0, seed=0, **ALONE), "batch_size is 2.0 but .* give a positive multiple of 1"),
        (lambda: eval_batches(SOURCE, 2, transform=len, **ALONE)[0], "gave int, but batches are mappings of arrays"),
        (lambda: steps_per_epoch(SOURCE, 0), "batch_size is 0: give an integer of at least 1"),
        (lambda: next(prefetch(eval_batches(SOURCE, 8, **ALONE), dict, num_threads=-1)), "num_threads is -1 and"),
        (lambda: prefetch(eval_batches(SOURCE, 8, **ALONE), dict, stop=4), "batches 0..4 were asked for"),
    ],
)
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("num_threads", [0, 3])
def test_prefetch_gives_the_range_in_order(num_threads):
    batches = train_batches(SOURCE, 5, seed=2, **ALONE)
    got = list(prefetch(batches, lambda b: jax.device_put(dict(b)), start=3, stop=11, num_threads=num_threads))
    assert len(got) == 8
    for k, batch in zip(range(3, 11), got, strict=True):
        assert isinstance(batch["image"], jax.Array)
        np.testing.assert_array_equal(batch["id"], batches[k]["id"])
    finite = eval_batches(SOURCE, 5, **ALONE)
    assert len(list(prefetch(finite, dict))) == 5
    assert list(prefetch(finite, dict, start=5)) == []


def doubled(batch):
    return {**batch, "image": batch["image"] * 2 + batch["image"].mean()}


def targets(rows, view):
    return {"teacher_logits": np.float32(100 * view + rows)[:, None]}


@pytest.mark.parametrize(
    "made",
    [
        lambda **k: train_batches(SOURCE, 6, seed=3, **k),
        lambda **k: train_batches(SOURCE, 6, seed=3, transform=doubled, **k),
        lambda **k: train_batches(dataclasses.replace(SOURCE, views=2, targets=targets), 6, seed=3, **k),
        lambda **k: train_batches(dataclasses.replace(SOURCE, views=2), 6, seed=3, **k),
        lambda **k: eval_batches(SOURCE, 4, **k),
        lambda **k: grain.MapDataset.source(train_batches(SOURCE, 6, seed=3, **k))[2:].map(doubled),
    ],
    ids=["plain", "transform", "targets", "views", "evaluation", "the user's own"],
)
def test_bundles_hold_the_batches_side_by_side(made):
    """Also where an epoch ends within one, and of each process's own rows."""
    for process in range(2):
        batches = made(process_index=process, process_count=2)
        spans = [range(2), range(2, 6), range(5, 6)]
        for span, bundle in zip(spans, bundles(batches, spans), strict=True):
            for i, k in enumerate(span):
                same({field: values[:, i] for field, values in bundle.items()}, batches[k])


def test_a_bundle_is_read_at_once():
    asked = []
    source = dataclasses.replace(SOURCE, read=lambda rows: asked.append(len(rows)) or SOURCE.read(rows))
    bundle = bundles(train_batches(source, 5, seed=0, **ALONE), [range(6)])[0]
    assert bundle["image"].shape == (5, 6, 2, 2, 1)
    assert asked == [30]


@pytest.mark.parametrize("buffer_size", [0, 1, 4])
def test_prefetch_stays_ahead_by_its_buffer(buffer_size):
    placed = []
    stream = prefetch(train_batches(SOURCE, 5, seed=2, **ALONE), placed.append, stop=20, buffer_size=buffer_size)
    next(stream)
    assert len(placed) == buffer_size + 1
    next(stream)
    assert len(placed) == buffer_size + 2
    stream.close()


def grain_threads():
    return [t for t in threading.enumerate() if t.name.startswith("grain")]


def await_no_threads():
    deadline = time.monotonic() + 20
    while grain_threads() and time.monotonic() < deadline:
        for thread in grain_threads():
            thread.join(1)
    assert not grain_threads()


def test_closing_early_ends_the_threads():
    stream = prefetch(train_batches(SOURCE, 5, seed=2, **ALONE), dict)
    next(stream)
    assert grain_threads()
    stream.close()
    await_no_threads()


@pytest.mark.parametrize("num_threads", [0, 3])
def test_errors_of_the_threads_surface_after_the_batches_before(num_threads):
    images = np.zeros((20, 2, 2, 1), np.float32)

    def read(rows):
        if 11 in rows:
            raise ValueError("row 11 is bad: mend it.")
        return SOURCE.read(rows)

    broken = dataclasses.replace(open_source({"image": images, "label": np.zeros(20, int)}), read=read)
    with pytest.raises(ValueError, match=r"^row 11 is bad: mend it\.$") as caught:
        list(prefetch(eval_batches(broken, 4, **ALONE), dict, num_threads=num_threads))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert not getattr(caught.value, "__notes__", [])
    await_no_threads()


def test_without_grain_batches_are_read_in_the_callers_thread(monkeypatch):
    with_grain = list(prefetch(train_batches(SOURCE, 5, seed=2, **ALONE), dict, stop=7))
    await_no_threads()
    monkeypatch.setitem(sys.modules, "grain", None)
    for one, other in zip(prefetch(train_batches(SOURCE, 5, seed=2, **ALONE), dict, stop=7), with_grain, strict=True):
        same(one, other)
        assert not grain_threads()


def test_a_batch_that_is_not_there_is_refused():
    batches = eval_batches(SOURCE, 5, **ALONE)
    assert [batch["id"][0] for batch in batches] == [0, 5, 10, 15, 20][: len(batches)]
    with pytest.raises(IndexError, match=rf"^batch {len(batches)} was asked for, but there are {len(batches)}: "):
        batches[len(batches)]


def test_batches_before_a_bad_one_are_given():
    def read(rows):
        if 11 in rows:
            raise ValueError("bad")
        return SOURCE.read(rows)

    stream = prefetch(eval_batches(dataclasses.replace(SOURCE, read=read), 4, **ALONE), dict, buffer_size=3)
    assert [next(stream)["id"][0] for _ in range(2)] == [0, 4]
    with pytest.raises(ValueError, match="bad"):
        next(stream)


def test_a_failing_transform_keeps_its_traceback_and_says_which_rows_it_had():
    def transform(batch):
        return {**batch, "ratio": 1 / (batch["id"] - 9).min().item()} if 9 in batch["id"] else batch

    with pytest.raises(ZeroDivisionError) as caught:
        list(prefetch(eval_batches(open_first(12), 3, transform=transform, **ALONE), dict))
    assert caught.value.__notes__ == ["This was the transform of the rows with ids [9, 10, 11] of arrays[train]."]


def open_first(size):
    return open_source({"image": np.zeros((size, 2, 2, 1), np.float32), "label": np.zeros(size, int)})


def test_operations_are_measured_around_what_they_name():
    seen = []

    @contextlib.contextmanager
    def measure(operation):
        seen.append(operation)
        yield
        seen.append(f"/{operation}")

    source = dataclasses.replace(SOURCE, read=lambda rows: seen.append("reads") or SOURCE.read(rows))
    batches = eval_batches(source, 23, transform=lambda b: seen.append("transforms") or b, **ALONE)
    list(prefetch(batches, lambda b: seen.append("places"), num_threads=0, measure=measure))
    expected = "read reads /read transform transforms /transform place places /place"
    assert seen == expected.split()
    seen.clear()
    batches[0]
    assert seen == ["reads", "transforms"], "only prefetch measures"
