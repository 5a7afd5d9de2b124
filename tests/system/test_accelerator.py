"""The one command for all figures of an accelerator: stages in order, each cut off, resumed and reported by itself."""

import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks"
PROGRAMS = {
    "good": "open(out.replace('.json', '.md'), 'w').write('a table')\nprint('counted')",
    "bad": "raise SystemExit('error: no such thing')",
    "slow": "import time\ntime.sleep(60)",
}


@pytest.fixture
def accelerator(tmp_path, monkeypatch):
    """The program with three stages of no size."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import accelerator

    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(f"import sys\nout = sys.argv[sys.argv.index('--out') + 1]\n{text}\n")
    stages = {n: accelerator.Stage(n, 0.7 if n == "slow" else 30, {"rounds": 10}, ("rounds",)) for n in PROGRAMS}
    monkeypatch.setattr(accelerator, "STAGES", stages)
    monkeypatch.setattr(accelerator, "FOLDER", tmp_path)
    return accelerator


def started(accelerator, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["accelerator.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        accelerator.benchmark()
    return str(left.value)


def test_stages_that_fail_or_run_out_of_time_are_reported_and_the_next_ones_run(
    accelerator, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    said = started(accelerator, monkeypatch, "--out", out, "--only", "bad", "slow", "good")
    assert said == f"not done: bad, slow; what they said stands in {out}/STAGE.log"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bad: failed with code 1: error: no such thing, ")
    assert lines[1].startswith("slow: out of time after 1 s, ")
    assert lines[2].startswith("good: done, ")
    report = (out / "README.md").read_text()
    assert "## good\n\ndone, " in report
    assert "a table" in report
    assert "failed with code 1" in report

    (tmp_path / "bad.py").write_text("")
    (tmp_path / "good.py").write_text("raise SystemExit('again')")
    started(accelerator, monkeypatch, "--out", out, "--only", "bad", "good", "slow")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bad: done, "), "what failed is tried again"
    assert lines[1] == "good: done before", "what is done is not"


def test_no_stage_begins_without_time(accelerator, tmp_path, monkeypatch, capsys):
    started(accelerator, monkeypatch, "--out", tmp_path / "out", "--minutes", "0.01", "--only", "good")
    assert capsys.readouterr().out == "good: no time left\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "nothing"), "argument --only: invalid choice: 'nothing' (choose from "),
        (("--minutes", "0"), "argument --minutes: 0: give a number above 0"),
        (("--scale", "2"), "argument --scale: 2: give a number from 1e-06 to 1"),
    ],
)
def test_wrong_flags_are_a_sentence(accelerator, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--out", str(tmp_path / "out"), *words])
    with pytest.raises(SystemExit, match="2"):
        accelerator.benchmark()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_stage_gives_flags_that_its_program_has(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import accelerator
    from _timing import flags  # noqa: F401, the reader of all of them

    for name, stage in accelerator.STAGES.items():
        text = (FOLDER / f"{stage.program}.py").read_text() + (FOLDER / "_pairs.py").read_text()
        for flag in (*stage.words, "out"):
            assert f"{flag}=(" in text, f"{name}: {stage.program} has no --{flag}"


BARE = """
import sys
for name in ("grain", "tyro", "tensorflow_datasets", "tensorflow", "array_record", "tensorboardX"):
    sys.modules[name] = None
"""


def test_a_machine_without_the_other_packages_can_start_every_stage(tmp_path):
    """In an interpreter that finds none of them; CI runs all stages in an environment that has none."""
    (tmp_path / "sitecustomize.py").write_text(BARE)
    program = f"""
import sys, numpy as np
sys.path[:0] = [{str(FOLDER)!r}, {str(FOLDER.parents[1])!r}]
import accelerator
for stage in accelerator.STAGES.values():
    __import__(stage.program)
from jaxkd import data
source = data.in_memory(data.open_source({{"image": np.zeros((8, 2, 2, 1), np.uint8), "label": np.arange(8) % 2}}))
print(len(list(data.prefetch(data.train_batches(source, 4, seed=0), dict, stop=3))))
"""
    environment = {"PATH": "", "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
