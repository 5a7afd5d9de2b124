"""Metrics survive kills, resumes and full disks line by line."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from jaxkd.runs.logger import Logger, read_metrics
from jaxkd.runs.progress import Progress


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def events(path, phase=""):
    """All events of a phase: the record format is length (8 bytes), its checksum (4), data, its checksum (4)."""
    found = []
    for file in sorted((path / "tensorboard" / phase).glob("events*")):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(path, phase=""):
    return [(e.step, v.tag, round(v.simple_value, 6)) for e in events(path, phase) for v in e.summary.value]


# --- metrics.jsonl ---


def test_a_line_a_step_with_every_kind_of_number(tmp_path):
    with Logger(tmp_path, tensorboard=False) as logger:
        logger.write(jnp.int32(1), "train", {"loss": 0.5, "count": 3, "accuracy": jnp.array([0.25, 0.75])})
        logger.write(2, "test", {"loss": np.float32(0.25), "each": [1, 2.5], "half": jnp.bfloat16(1.5)}, "teacher")
    assert lines(tmp_path) == [
        {"step": 1, "split": "train", "loss": 0.5, "count": 3, "accuracy": [0.25, 0.75]},
        {"phase": "teacher", "step": 2, "split": "test", "loss": 0.25, "each": [1.0, 2.5], "half": 1.5},
    ]
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.jsonl") == lines(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


def test_what_is_not_finite_is_null_in_strict_json_and_nan_when_read(tmp_path):
    with Logger(tmp_path, tensorboard=False) as logger:
        logger.write(1, "train", {"loss": float("nan"), "each": jnp.array([1.0, jnp.inf])})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "split": "train",
        "loss": None,
        "each": [1, None],
    }
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["loss"])
    assert math.isnan(row["each"][1])


@pytest.mark.parametrize(
    ("metrics", "match"),
    [
        ({"loss": "low"}, "'loss' has shape .* must be a number"),
        ({"loss": None}, "'loss'"),
        ({"matrix": np.ones((2, 2))}, r"'matrix' has shape \(2, 2\)"),
        ({"step": 1.0}, "'step', which the log uses itself"),
    ],
)
def test_a_metric_that_cannot_be_logged_is_named_and_nothing_is_written(tmp_path, metrics, match):
    with Logger(tmp_path) as logger:
        with pytest.raises(ValueError, match=match):
            logger.write(1, "train", metrics)
        assert not (tmp_path / "metrics.jsonl").exists()


@pytest.fixture
def killed():
    """Marks loggers that the test does not close, as a kill does not; they are closed after it has looked."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context


def test_a_resumed_run_logs_each_step_of_each_phase_once(tmp_path, killed):
    """Three starts, killed after steps 7 and 9, checkpoints every 5: the log equals that of one uninterrupted run."""

    def train(path, start, stop):
        logger = killed(Logger(path))
        phase = logger.phase("distilled")
        phase.truncate(start)
        for step in range(start + 1, stop + 1):
            phase.write(step, "train", {"loss": 1 / step})
            if step % 5 == 0:
                phase.write(step, "test", {"accuracy": step / 10})

    for path in (tmp_path / "killed", tmp_path / "whole"):
        path.mkdir()
        killed(Logger(path)).phase("teacher").write(9, "train", {"loss": 0.0})
    for start, stop in [(0, 7), (5, 9), (5, 10)]:
        train(tmp_path / "killed", start, stop)
    train(tmp_path / "whole", 0, 10)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_truncate_touches_only_its_phase_and_only_later_steps(tmp_path):
    with Logger(tmp_path, tensorboard=False) as logger:
        for phase in ("", "a", "b"):
            for step in (1, 2, 3):
                logger.write(step, "train", {}, phase)
        logger.truncate("a", 1)
        logger.truncate("", 2)
    left = [(row.get("phase", ""), row["step"]) for row in lines(tmp_path)]
    assert left == [("", 1), ("", 2), ("a", 1), ("b", 1), ("b", 2), ("b", 3)]


def test_figures_of_the_system_have_a_file_of_their_own_and_stand_once(tmp_path):
    """What differs between two equal runs leaves `metrics.jsonl` as it is, byte for byte."""

    def write(folder, milliseconds, kill_at=None):
        folder.mkdir(exist_ok=True)
        with Logger(folder) as logger:
            phase = logger.phase("a")
            start = 0 if kill_at is None else kill_at
            phase.truncate(start)
            for step in range(start + 1, 5):
                phase.write(step, "train", {"loss": 1 / step})
                phase.write(step, "system", {"step_ms_median": milliseconds * step})

    write(tmp_path / "whole", 1.0)
    write(tmp_path / "killed", 2.0)
    write(tmp_path / "killed", 3.0, kill_at=2)
    whole, killed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    assert b"system" not in whole
    system = read_metrics(tmp_path / "killed" / "system.jsonl")
    assert [(line["step"], line["step_ms_median"]) for line in system] == [(1, 2.0), (2, 4.0), (3, 9.0), (4, 12.0)]
    assert {line["split"] for line in system} == {"system"}
    assert (1, "system/step_ms_median", 1.0) in scalars(tmp_path / "whole", "a")
    with (tmp_path / "whole" / "system.jsonl").open("a") as file:
        file.write('{"step": 5, "sp')
    Logger(tmp_path / "whole").close()
    assert len(read_metrics(tmp_path / "whole" / "system.jsonl")) == 4, "a torn last line is cut off"


def test_truncate_before_anything_was_logged(tmp_path):
    with Logger(tmp_path) as logger:
        logger.truncate("a", 0)
        assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("torn", ['{"step": 2, "spl', "{", "\0\0\0", '{"step": 2, "split": "train"}', "ö"])
def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path, torn):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "split": "train"}\n' + torn.encode()[: -1 if torn == "ö" else None])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    with Logger(tmp_path, tensorboard=False) as logger:
        logger.write(2, "train", {"loss": 1.0})
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]


def test_a_log_torn_in_its_first_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"st')
    assert read_metrics(tmp_path) == []
    Logger(tmp_path, tensorboard=False).write(1, "train", {})
    assert [row["step"] for row in lines(tmp_path)] == [1]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\nhello\n{"step": 2, "split": "train"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl is not JSON"):
        read_metrics(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("3", "it holds 3 where an object is expected"),
        ("null", "it holds null"),
        ("[1]", r"it holds \[1\]"),
        ('{"phase": "a"}', "its step is null"),
        ('{"phase": "a", "step": "x", "split": "t"}', 'its step is "x"'),
        ('{"step": true, "split": "t"}', "its step is true"),
        ('{"step": 1.5, "split": "t"}', "its step is 1.5"),
        ('{"step": -1, "split": "t"}', "its step is -1"),
        ('{"step": 1}', "its split is null"),
        ('{"step": 1, "split": "t", "phase": 2}', "its phase is 2"),
        ('{"step": 1, "split": "t", "loss": "x"}', "its metric 'loss' is \"x\" where a number"),
        ('{"step": 1, "split": "t", "loss": [1, [2]]}', "its metric 'loss' is"),
        ("[" * 100_000, "is not JSON"),
        ("\0\0\0", "is not JSON"),
    ],
)
def test_lines_that_are_no_records_are_a_sentence_with_their_number(tmp_path, line, said):
    for name in ("metrics.jsonl", "system.jsonl"):
        file = tmp_path / name
        file.write_text(f'{{"step": 1, "split": "train"}}\n{line}\n')
        with Logger(tmp_path, tensorboard=False) as logger, pytest.raises(ValueError, match=f"line 2 .*{name}.*{said}"):
            logger.truncate("a", 0)
        with pytest.raises(ValueError, match=f"line 2 .*{name}.*{said}"):
            read_metrics(file)
        file.unlink()


def test_metrics_that_cannot_be_read_are_a_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"cannot read .*metrics\.jsonl \(Is a directory\): make it a readable file"):
        read_metrics(tmp_path)


def test_no_metrics_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"no metrics at .*metrics\.jsonl"):
        read_metrics(tmp_path)


def test_a_truncation_that_fails_leaves_the_old_log(tmp_path, monkeypatch):
    logger = Logger(tmp_path, tensorboard=False)
    for step in (1, 2):
        logger.write(step, "train", {})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=r"metrics\.jsonl \(Read-only file system\)"):
        logger.truncate("", 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl \(Not a directory\)"):
        Logger(tmp_path / "file", tensorboard=False).write(1, "train", {})


@pytest.mark.parametrize(("tensorboard", "place"), [(False, "metrics.jsonl"), (True, "tensorboard")])
def test_a_full_disk_stops_with_one_line_and_whole_lines(forks, tmp_path, tensorboard, place):
    """RLIMIT_FSIZE stands for the full disk; with TensorBoard, whose files are longer, that one fills first."""
    code = f"""
        import resource, sys
        from jaxkd.experiment import cli
        from jaxkd.runs.logger import Logger

        def main():
            with Logger(sys.argv[1], tensorboard={tensorboard}) as logger:
                resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
                for step in range(1000):
                    logger.write(step, "train", {{"loss": 0.5}})

        cli.main(main)
    """
    started = forks.start_code(code, tmp_path)
    _, said = started.communicate(timeout=120)
    assert started.returncode == 2, said
    assert re.fullmatch(rf"error: cannot write \S+{place} \(File too large\): [^\n]+\n", said)
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"}\n")
    steps = [row["step"] for row in lines(tmp_path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 3


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    out = io.StringIO()
    with (
        Logger(tmp_path, wandb=True) as logger,
        Progress("distilled", 1000, console=rich.console.Console(file=out)) as bar,
    ):
        logger.phase("a", bar).truncate(0)
        logger.phase("a", bar).write(10, "train", {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    assert out.getvalue() == ""


# --- TensorBoard and W&B ---


def test_tensorboard_gets_scalars_means_and_students(tmp_path):
    with Logger(tmp_path) as logger:
        logger.write(5, "train", {"loss": 0.5}, "teacher")
        logger.write(6, "test", {"accuracy": jnp.array([0.25, 0.75])}, "distilled")
        logger.write(7, "train", {"loss": 2})
    assert scalars(tmp_path, "teacher") == [(5, "train/loss", 0.5)]
    assert scalars(tmp_path, "distilled") == [
        (6, "test/accuracy", 0.5),
        (6, "test/accuracy/0", 0.25),
        (6, "test/accuracy/1", 0.75),
    ]
    assert scalars(tmp_path) == [(7, "train/loss", 2.0)]


def test_tensorboard_is_readable_before_the_end_and_two_starts_in_one_second_do_not_collide(tmp_path, killed):
    for step in (1, 2):
        killed(Logger(tmp_path)).write(step, "train", {"loss": float(step)})
        assert (step, "train/loss", float(step)) in scalars(tmp_path)
    assert len(scalars(tmp_path)) == 2


def test_tensorboard_is_told_to_hide_the_steps_after_a_resume(tmp_path, killed):
    killed(Logger(tmp_path)).write(7, "train", {"loss": 1.0}, "a")
    with Logger(tmp_path) as logger:
        logger.truncate("a", 5)
        logger.write(6, "train", {"loss": 2.0}, "a")
    starts = [e.step for e in events(tmp_path, "a") if e.session_log.status == SessionLog.START]
    assert starts == [6]  # hides everything from step 6 on


def test_tensorboard_files_stay_in_order_where_the_clock_goes_back(tmp_path, monkeypatch, killed):
    for step, clock in enumerate((2e9, 1e9, 3e9, 1e9)):
        monkeypatch.setattr(time, "time", lambda now=clock: now)
        killed(Logger(tmp_path)).write(step, "train", {"loss": 1.0})
    assert [step for step, _, _ in scalars(tmp_path)] == [0, 1, 2, 3]


def test_the_tests_own_reader_agrees_with_the_writer(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    writer = RecordWriter(str(tmp_path / "tensorboard" / "events"))
    writer.write(Event(step=3).SerializeToString())
    writer.close()
    assert [e.step for e in events(tmp_path)] == [3]


def test_wandb_offline_keeps_every_phase_over_its_own_step(tmp_path):
    """In a process of its own, for W&B leaves threads and hooks behind."""
    code = """
        import sys
        import jax.numpy as jnp
        from jaxkd.runs.logger import Logger

        with Logger(sys.argv[1], wandb=True, config={"steps": 3}) as logger:
            for phase in ("alone", "distilled"):
                for step in (7, 8):
                    logger.phase(phase).write(step, "train", {"loss": jnp.array([1.0, 4.0])})
    """
    command = [sys.executable, "-W", "error:::jaxkd", "-c", textwrap.dedent(code), str(tmp_path)]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    run_id = (tmp_path / "wandb_id.txt").read_text().strip()
    (file,) = tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb")

    data = file.read_bytes()

    def logged(name):
        """Values in W&B's record file: a name is followed by protobuf field 16, the value as JSON, after its length."""
        ends = [found.end() for found in re.finditer(re.escape(name).encode() + rb"\x82\x01", data)]
        return {json.loads(data[end + 1 : end + 1 + data[end]]) for end in ends}

    for phase in ("alone", "distilled"):
        assert logged(f"{phase}/step") == {7, 8}
        assert logged(f"{phase}/train/loss") == {2.5}
        assert logged(f"{phase}/train/loss/1") == {4}
        step = f"{phase}/step"
        assert f'{phase}/*"{chr(len(step))}{step}'.encode() in data  # the definition of the phase's own axis
    assert len(lines(tmp_path)) == 4


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'pip install "jaxkd\[wandb\]"'):
        Logger(tmp_path, wandb=True)
