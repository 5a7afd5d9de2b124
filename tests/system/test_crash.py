"""A run that is killed and started again ends with the same bits; a run that forgets something does not."""

import contextlib
import importlib.util
import io
import json
import pathlib
import shutil
import sys
import tempfile
import types

import jax
import numpy as np
import pytest

from jaxkd import parallel
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.runs.directory import open_run
from jaxkd.runs.logger import Logger

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks" / "crash.py"
STEPS = 12  # of the student in the benchmark's smallest run


@pytest.fixture(scope="module")
def crash():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("crash", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["crash"]


def train(crash, root, name, fault="none"):
    """The run in this process, from the start or where it stopped."""
    config = crash.RunConfig(name=name, root=str(root), data_dir=str(root / "data"), steps=STEPS, every=4, fault=fault)
    with open_run(config, root=root, ignore=("root", "data_dir", "name", "fault")) as run, Logger(run.path) as logger:
        crash.procedure(config, run, logger, parallel.with_jit())
    return run.path


@pytest.fixture(scope="module")
def killed(crash, forks, tmp_path_factory):
    """The benchmark: what it found, what it printed, and the undisturbed run, which is made in this process."""
    root = tmp_path_factory.mktemp("runs")

    class Here(crash.Killer):
        def start(self, name):
            if name != "undisturbed":
                return super().start(name)
            shutil.copytree(train(crash, self.root, name), root / "whole")
            shutil.copytree(self.root / "data", root / "data")
            return types.SimpleNamespace(poll=lambda: 0, returncode=0)

    def forked(command, stdout, **_):
        options = {"devices": jax.device_count(), "modules": ("sklearn.datasets", "tensorflow_datasets.public_api")}
        return forks.start(*command[1:], **options, out=stdout.name, err=stdout.name)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", [str(PATH), "--smoke", "--out", str(root / "out.json")])
        patch.setattr(crash, "Killer", Here)
        patch.setattr(tempfile, "tempdir", str(root))
        patch.setattr(crash, "subprocess", types.SimpleNamespace(Popen=forked))
        crash.benchmark()
    return json.loads((root / "out.json").read_text()), said.getvalue(), root / "whole"


def resumed(crash, whole, name, fault="none"):
    """What the undisturbed run comes to if it goes on from its last checkpoint but one."""
    path = shutil.copytree(whole, whole.parent / name)
    (path / "summary.json").unlink()
    (path / "final.npz").unlink()
    shutil.rmtree(path / "checkpoints" / "student" / str(STEPS))
    return train(crash, path.parent, name, fault)


def test_killed_for_real_while_saving_and_between_lines_it_ends_with_the_same_bits(killed):
    found, said, _ = killed
    assert "every bit is the same" in said
    assert [kill["moment"] for kill in found["kills"]] == ["during a save", "between lines"]
    assert found["half_written"] >= 1
    assert found["differences"] == []


def test_run_that_goes_on_in_this_process_ends_with_the_same_bits(crash, killed):
    path = resumed(crash, killed[2], "resumed")
    assert crash.differences(killed[2], path) == []
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["phase"], line["split"], line["step"]) for line in lines]
    assert len(steps) == len(set(steps))
    assert steps[-1] == ("student", "validation", STEPS)


@pytest.mark.parametrize(("fault", "named"), [("order", "student.params"), ("bank", "student.state.term.crd.bank")])
def test_run_that_forgets_something_is_noticed(crash, killed, monkeypatch, fault, named):
    """Negative controls: another order of the examples, or a memory bank that starts anew."""
    monkeypatch.setattr(Checkpoints, "restore", Checkpoints.restore)  # which the fault replaces
    found = crash.differences(killed[2], resumed(crash, killed[2], fault, fault))
    assert any(what.startswith(named) for what in found), found
    assert "test logits differs" in found


@pytest.mark.parametrize("what", ["array", "line twice", "summary", "checkpoint"])
def test_single_difference_is_noticed(crash, killed, tmp_path, what):
    whole, other = killed[2], tmp_path / "other"
    shutil.copytree(whole, other)
    if what == "array":
        arrays = dict(np.load(other / "final.npz"))
        arrays["student.ema.params.head.bias"] = np.nextafter(arrays["student.ema.params.head.bias"], 1)
        np.savez(other / "final.npz", **arrays)
    elif what == "line twice":
        log = other / "metrics.jsonl"
        log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")
    elif what == "summary":
        summary = json.loads((other / "summary.json").read_text())
        (other / "summary.json").write_text(json.dumps({**summary, "test": {}}))
    else:
        shutil.rmtree(other / "checkpoints" / "student" / "8")
    assert len(crash.differences(whole, other)) == 1
