"""Checkpoints: what is saved is what comes back, and a bad disk costs nothing that was already safe."""

import gc
import itertools
import json
import pathlib
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_equal
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import parallel
from jaxkd.runs.checkpoint import Checkpoints, _digest
from jaxkd.runs.retention import Best
from jaxkd.types import TrainState


def make_state(seed=0, size=64):
    params = {"student": {"w": jax.random.normal(jax.random.key(seed), (size, size))}, "term": {}}
    return TrainState(
        step=jnp.asarray(seed, jnp.int32),
        params=params,
        state={"student": {}, "term": {"weights": {"kd": jnp.float32(0.9)}}},
        opt_state=optax.adam(1e-3).init(params),
        key=jax.random.key(seed),
    )


def test_state_comes_back_with_types_keys_and_shardings(tmp_path):
    mesh = parallel.make_mesh()
    state = parallel.put_replicated(make_state(3), mesh)
    checkpoints = Checkpoints(tmp_path / "a [1]*? %20")  # patterns elsewhere
    checkpoints.save(3, state)
    checkpoints.wait()
    back = checkpoints.restore(parallel.put_replicated(make_state(9), mesh))
    assert_trees_equal(back, state)
    assert isinstance(back, TrainState)
    assert isinstance(back.opt_state[0], optax.ScaleByAdamState)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(back))


def test_what_is_donated_after_a_save_does_not_reach_the_checkpoint(tmp_path):
    """Saving is asynchronous: the next steps overwrite the buffers while it writes."""
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 if x.dtype == jnp.float32 else x, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path)
    for n in range(3):
        state = make_state(n, size=700)
        kept = np.array(state.params["student"]["w"])
        checkpoints.save(n, state)
        for _ in range(5):
            state = overwrite(state)
        checkpoints.wait()
        np.testing.assert_array_equal(checkpoints.restore(make_state(n, size=700)).params["student"]["w"], kept)


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for n in range(4):
        checkpoints.save(n, make_state(n))
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path).restore(make_state()) is None


# Orbax reads a state's arrays at once; when the first fails, the others report to an event loop that is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_unreadable_newest_falls_back_to_the_one_before_and_says_so(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for n in (1, 2):
        checkpoints.save(n, make_state(n))
    checkpoints.close()
    for file in (tmp_path / "2").rglob("*"):
        if file.is_file() and "ocdbt" in str(file):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    reopened = Checkpoints(tmp_path)
    back = reopened.restore(make_state())
    assert_trees_equal(back, make_state(1))
    assert "2 cannot be read, trying the one before" in caplog.text
    reopened.save(2, make_state(2))
    reopened.wait()
    assert_trees_equal(reopened.restore(make_state()), make_state(2))


def test_state_of_another_layout_is_a_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    other = make_state().replace(params={"student": {"kernel": jnp.zeros(3)}})
    with pytest.raises(ValueError, match=r"checkpoint 1 in .* lacks params/student/kernel, also holds params/stud"):
        checkpoints.restore(other)
    assert checkpoints.latest() == 1


def test_layouts_that_differ_in_shape_or_dtype_are_not_cast(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    other = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, make_state())
    with pytest.raises(ValueError, match="another layout") as said:
        checkpoints.restore(other)
    assert "params/student/w (float32[64,64], not bfloat16[64,64])" in str(said.value)
    assert "and 1 more; use the code and config that wrote it, or start under another name." in str(said.value)


def test_unreadable_checkpoints_alone_are_a_sentence_and_stay(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
    (tmp_path / "1" / "about" / "metadata").write_text("{")
    reopened = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* \(steps \[1\]\) can be read.*another name"):
        reopened.restore(make_state())
    assert reopened.latest() == 1


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "two") as checkpoints:
        for n in (1, 2):
            checkpoints.save(n, make_state(n))
    return tmp_path / "two"


def flipped(data):
    """The same bytes but for one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


# Orbax reads a state's arrays at once; when the first fails, the others report to an event loop that is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "zeros", "bit"])
def test_whatever_file_is_damaged_the_state_is_right_or_the_one_before(two, tmp_path, damage):
    files = sorted(file.relative_to(two) for file in (two / "2").rglob("*") if file.is_file())
    assert len(files) > 10
    steps = []
    for file in files:
        copy = tmp_path / "copy"
        shutil.copytree(two, copy)
        data = (copy / file).read_bytes()
        damaged = {"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data)), "bit": flipped(data)}
        (copy / file).unlink()
        if damage in damaged:
            (copy / file).write_bytes(damaged[damage])
        with Checkpoints(copy) as checkpoints:
            back = checkpoints.restore(make_state())
            assert_trees_equal(back, make_state(int(back.step)))
            assert checkpoints.latest() == int(back.step)
        steps.append(int(back.step))
        shutil.rmtree(copy)
    gc.collect()  # here, where what Orbax left behind may complain
    assert set(steps) == {1, 2}


def test_whatever_stands_in_the_description_is_compared(two, caplog):
    """Its digest with what it says, the checksums in it with the arrays, the newest checkpoint first."""

    def rewrite(step, change, seal):
        file = two / step / "about" / "metadata"
        about = json.loads(file.read_text())
        del about["digest"]
        digest = _digest(about)
        change(about)
        file.write_text(json.dumps({**about, "digest": _digest(about) if seal else digest}))

    rewrite("2", lambda about: about["metrics"].update(accuracy=1.0), seal=False)
    with Checkpoints(two) as checkpoints:
        assert_trees_equal(checkpoints.restore(make_state()), make_state(1))
        assert checkpoints.latest() == 1
    assert "2 cannot be read, trying the one before: the description of the checkpoint is damaged" in caplog.text
    rewrite("1", lambda about: about["arrays"].update(step=["int32[]", 12345]), seal=True)
    with Checkpoints(two) as checkpoints, pytest.raises(ValueError, match="differs from the saved bits in step"):
        checkpoints.restore(make_state())


# The best one, and what a state depends on.


def accuracies(*values, name="validation/accuracy"):
    """Step 1, 2, ... -> metrics."""
    return enumerate(({} if value is None else {name: value} for value in values), 1)


@pytest.mark.parametrize(
    ("values", "mode", "kept"),
    [
        ([0.1, 0.9, 0.3, 0.4, 0.5], "max", {2, 4, 5}),
        ([0.1, 0.9, 0.3, 0.4, 0.5], "min", {1, 4, 5}),
        ([0.5, 0.5, 0.5, 0.1, 0.1], "max", {1, 4, 5}),
        ([0.1, None, 0.9, 0.4, 0.5], "max", {3, 4, 5}),
        ([0.1, 0.2, float("nan"), 0.1, float("inf")], "max", {2, 4, 5}),
        ([0.1, 0.2, 0.3, 0.4, 0.5], "max", {4, 5}),
        ([None] * 5, "max", {4, 5}),
        # Of several students, the mean counts: 0.5, 0.55, 0.4.
        ([[0.1, 0.9], [0.5, 0.6], [0.0, 0.8], [0.2, 0.2], [0.3, 0.3]], "max", {2, 4, 5}),
    ],
)
@pytest.mark.parametrize("reopening", [False, True])
def test_the_best_is_kept_beside_the_newest(tmp_path, values, mode, kept, reopening):
    best = Best("validation/accuracy", mode)
    checkpoints = Checkpoints(tmp_path, best=best)
    for step, found in accuracies(*values):
        checkpoints.save(step, make_state(step), found)
        if reopening:
            checkpoints.close()
            checkpoints = Checkpoints(tmp_path, best=best)
    checkpoints.close()
    assert {int(p.name) for p in tmp_path.iterdir()} == kept
    back = checkpoints.restore_best(make_state())
    assert checkpoints.best() == (None if back is None else int(back.step))
    if kept != {4, 5}:
        assert {checkpoints.best()} == kept - {4, 5}
    assert int(checkpoints.restore(make_state()).step) == 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_best_that_cannot_be_read_gives_way_to_the_next(tmp_path, caplog):
    best = Best("validation/accuracy")
    with Checkpoints(tmp_path, best=best) as checkpoints:
        for step, found in accuracies(0.9, 0.2, 0.3):
            checkpoints.save(step, make_state(step), found)
    for file in (tmp_path / "1" / "state").rglob("manifest.ocdbt"):
        file.unlink()
    reopened = Checkpoints(tmp_path, best=best)
    assert_trees_equal(reopened.restore_best(make_state()), make_state(3))
    assert "1 cannot be read" in caplog.text
    assert reopened.best() == 3
    gc.collect()


def test_mode_that_there_is_not_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="is 'most': choose"):
        Checkpoints(tmp_path, best=Best("validation/accuracy", "most"))


def test_changed_teacher_is_a_sentence_and_nothing_is_removed(tmp_path):
    with Checkpoints(tmp_path, fingerprint={"teacher": "a" * 64}) as checkpoints:
        checkpoints.save(1, make_state(1))
        assert checkpoints.restore(make_state()) is not None
    for other in ({"teacher": "b" * 64}, {}):
        changed = Checkpoints(tmp_path, fingerprint=other)
        with pytest.raises(
            ValueError, match=r"checkpoint 1 in .* made with another teacher \(fingerprint aaaaaaaaaaaa, "
        ):
            changed.restore(make_state())
        assert changed.latest() == 1
    assert_trees_equal(Checkpoints(tmp_path).restore(make_state()), make_state(1))  # nothing said, nothing compared


# Other devices.


def split(state, mesh, spec):
    """The state on a mesh, its matrices split."""

    def place(x):
        own = spec if jnp.ndim(x) == 2 else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, own))

    return jax.tree.map(place, state)


def mesh_of(count, model=1):
    devices = np.array(jax.devices()[:count]).reshape(-1, model)
    return Mesh(devices, ("data", "model"))


@pytest.mark.parametrize("saved", [(8, 1, PartitionSpec()), (8, 2, PartitionSpec(None, "model"))])
def test_state_comes_back_on_other_devices_and_meshes(tmp_path, saved):
    count, model, spec = saved
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, split(make_state(3), mesh_of(count, model), spec))
    for count, model, spec in [
        (1, 1, PartitionSpec()),
        (4, 1, PartitionSpec()),
        (8, 2, PartitionSpec("model")),
        (8, 2, PartitionSpec(None, "model")),
        (8, 8, PartitionSpec("model")),
    ]:
        target = split(make_state(), mesh_of(count, model), spec)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target)
        for like in (target, shapes):
            back = checkpoints.restore(like)
            assert_trees_equal(back, make_state(3))
            assert jax.tree.map(lambda x: x.sharding, back) == jax.tree.map(lambda x: x.sharding, target)
        parts = back.params["student"]["w"].addressable_shards
        assert parts[0].data.size * (model if spec else 1) == 64 * 64


# Clocks and processes.


def test_clock_that_jumps_by_years_disturbs_nothing(tmp_path, monkeypatch):
    now, year = time.time(), 3.2e7
    jumps = itertools.cycle([0, 3 * year, -20 * year, 5, -1, year])
    monkeypatch.setattr(time, "time", lambda: now + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * time.time()))
    for n in range(1, 6):
        with Checkpoints(tmp_path, keep=2, best=Best("validation/accuracy")) as checkpoints:
            assert checkpoints.latest() == (n - 1 or None)
            if n > 1:
                assert_trees_equal(checkpoints.restore(make_state()), make_state(n - 1))
            checkpoints.save(n, make_state(n), {"validation/accuracy": 1 / n})
    assert {p.name for p in tmp_path.iterdir()} == {"1", "4", "5"}


def test_a_save_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
    """The loop asks once a step; whoever asks with numbers of their own confuses the processes' agreement."""

    def forbidden(step):
        raise AssertionError("asked")

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", forbidden)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1))
    assert checkpoints.latest() == 1


def test_leftovers_of_a_killed_save_are_not_tripped_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for n in (1, 2):
        checkpoints.save(n, make_state(n))
    checkpoints.close()
    shutil.move(tmp_path / "2", tmp_path / "2.orbax-checkpoint-tmp")
    reopened = Checkpoints(tmp_path)
    assert reopened.latest() == 1
    reopened.save(2, make_state(2))
    reopened.close()
    assert Checkpoints(tmp_path).latest() == 2


def test_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot keep checkpoints in .*file/inside.*choose a folder"):
        Checkpoints(tmp_path / "file" / "inside")


def test_full_disk_is_a_sentence_and_keeps_what_was_saved(forks, tmp_path):
    """In a process of its own, whose files may not grow: what the system says of a full disk, for root too."""
    started = forks.start_code(
        f"""
        import resource, jax
        import runs.test_checkpoint as t
        from jaxkd.runs.checkpoint import Checkpoints
        checkpoints = Checkpoints({str(tmp_path)!r})
        checkpoints.save(1, t.make_state(1, size=600)); checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
        try:
            checkpoints.save(2, t.make_state(2, size=600)); checkpoints.wait()
        except OSError as error:
            print("SAID", error)
        """,
        path=[pathlib.Path(__file__).parents[1]],
    )
    out, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    assert "SAID cannot write a checkpoint to" in out
    assert "the last complete one is step 1: free space" in out
    reopened = Checkpoints(tmp_path)
    assert reopened.latest() == 1
    assert_trees_equal(reopened.restore(make_state(size=600)), make_state(1, size=600))
    reopened.save(2, make_state(2, size=600))
    reopened.wait()
    assert reopened.latest() == 2


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match=r"bytes are needed and 10 are free.*no complete checkpoint yet"):
        checkpoints.save(1, make_state())
    assert list(tmp_path.iterdir()) == []
