"""A run that is killed and started again ends with the same bits; a run that forgets something does not."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxkd import parallel
from jaxkd.checkpoint import Checkpoints
from jaxkd.log import Logger
from jaxkd.run import open_run

PATH = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks" / "crash.py"


@pytest.fixture(scope="module")
def crash():
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("crash", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["crash"]


class Breaking(Logger):
    """Fails at a line of the log, which ends the training there as a crash does."""

    def write(self, step, split, metrics, stage=""):
        if (stage, step) == ("student", 10):
            raise KeyboardInterrupt
        super().write(step, split, metrics, stage)


@pytest.fixture(scope="module")
def runs(crash, tmp_path_factory):
    """Starts the run in this process, under some name."""
    root = tmp_path_factory.mktemp("runs")

    def start(name, fault="none", logger=Logger):
        config = crash.Training(name=name, root=str(root), data_dir=str(root / "data"), steps=12, every=4, fault=fault)
        with (
            open_run(config, root=root, ignore=("root", "data_dir", "name", "fault")) as run,
            logger(run.path) as written,
        ):
            crash.procedure(config, run, written, parallel.with_jit())
        return run.path

    whole = start("whole")
    with pytest.raises(KeyboardInterrupt):
        start("cut", logger=Breaking)
    return start, root, whole


def resumed(runs, name, **options):
    """What the run that broke off ends with."""
    start, root, _ = runs
    shutil.copytree(root / "cut", root / name)
    return start(name, **options)


def test_killed_for_real_while_saving_and_between_lines_it_ends_with_the_same_bits(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, PATH, "--smoke", "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every bit is the same" in done.stdout
    found = json.loads(out.read_text())
    assert [kill["moment"] for kill in found["kills"]] == ["during a save", "between lines"]
    assert found["half_written"] >= 1
    assert found["differences"] == []


def test_broken_off_run_ends_with_the_same_bits(crash, runs):
    path = resumed(runs, "resumed")
    assert crash.differences(runs[2], path) == []
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["stage"], line["split"], line["step"]) for line in lines]
    assert len(steps) == len(set(steps))
    assert steps[-1] == ("student", "validation", 12)


@pytest.mark.parametrize(("fault", "named"), [("order", "student.params"), ("bank", "student.state.term.crd.bank")])
def test_run_that_forgets_something_is_noticed(crash, runs, monkeypatch, fault, named):
    """Negative controls: another order of the examples, or a memory bank that starts anew."""
    monkeypatch.setattr(Checkpoints, "restore", Checkpoints.restore)  # which the fault replaces
    found = crash.differences(runs[2], resumed(runs, fault, fault=fault))
    assert any(what.startswith(named) for what in found), found
    assert "test logits differs" in found


@pytest.mark.parametrize("what", ["array", "line twice", "summary", "checkpoint"])
def test_single_difference_is_noticed(crash, runs, tmp_path, what):
    other = tmp_path / "other"
    shutil.copytree(runs[2], other)
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
    assert len(crash.differences(runs[2], other)) == 1
