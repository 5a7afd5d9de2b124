"""Checkpoints: what is saved is what comes back, and a bad disk costs nothing that was already safe."""

import resource
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_equal

from jaxkd import parallel
from jaxkd.checkpoint import Checkpoints
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
    checkpoints = Checkpoints(tmp_path)
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
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* \(steps \[1\]\) can be read.*another name"):
        checkpoints.restore(other)
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


def test_full_disk_is_a_sentence_and_keeps_what_was_saved(tmp_path):
    """In a process of its own, whose files may not grow: what the system says of a full disk, for root too."""
    program = textwrap.dedent(
        f"""
        import resource, jax
        import test_checkpoint as t
        from jaxkd.checkpoint import Checkpoints
        checkpoints = Checkpoints({str(tmp_path)!r})
        checkpoints.save(1, t.make_state(1, size=600)); checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))
        try:
            checkpoints.save(2, t.make_state(2, size=600)); checkpoints.wait()
        except OSError as error:
            print("SAID", error)
        """
    )
    folder = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, check=True)
    assert "SAID cannot write a checkpoint to" in done.stdout
    assert "the last complete one is step 1: free space" in done.stdout
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
