"""The run directory after every kind of end, and what two processes make of it."""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import pathlib
import shutil
import socket
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configured import Config, Inner, leaves, refusal

from jaxkd.experiment.kept import kept
from jaxkd.files import to_json
from jaxkd.runs import directory

SMALL = """
import dataclasses, sys
import jax

@dataclasses.dataclass(frozen=True)
class Small:
    name: str = "small"
    steps: int = 1
"""


@pytest.fixture
def start(forks):
    """Makes another Python that has `Small`."""

    def run(code, *words):
        return forks.start_code(SMALL + textwrap.dedent(code), *words)

    return run


# --- the run directory ---


def test_a_new_run_has_its_configuration_and_environment(tmp_path):
    made = directory.open_run(Config(hidden=(3,)), root=tmp_path / "runs")
    assert made.path == tmp_path / "runs" / "digits"
    assert not made.resumed
    assert not made.finished
    config = json.loads((made.path / "config.json").read_text())
    assert config == {"name": "digits", "steps": 1000, "temperature": 4.0, "hidden": [3], "model": {"width": 8}}
    environment = json.loads((made.path / "environment.json").read_text())
    assert environment["jax"] == jax.__version__
    assert environment["orbax-checkpoint"]
    assert environment["devices"] == {"cpu": 8}
    assert environment["process_count"] == 1
    assert environment["git_commit"] is None or len(environment["git_commit"].removesuffix("-dirty")) == 40
    assert len(environment["starts"]) == 1


def test_same_configuration_resumes(tmp_path):
    directory.open_run(Config(temperature=4), root=tmp_path)
    again = directory.open_run(Config(temperature=4.0), root=tmp_path)
    assert again.resumed
    assert not again.finished
    assert len(json.loads((again.path / "environment.json").read_text())["starts"]) == 2


def test_another_configuration_is_an_error_that_lists_the_fields(tmp_path):
    made = directory.open_run(Config(), root=tmp_path)
    (made.path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    other = Config(steps=5, model=Inner(9))
    with pytest.raises(ValueError, match=r"steps was 1000 and is 5; model\.width was 8 and is 9.*--name"):
        directory.open_run(other, root=tmp_path)
    assert directory.open_run(other, root=tmp_path, ignore=("steps", "model.width")).resumed
    with pytest.raises(ValueError, match=r"model\.width was 8") as caught:
        directory.open_run(other, root=tmp_path, ignore=("steps",))
    assert "steps" not in str(caught.value)


def test_a_field_that_came_or_went_is_a_difference(tmp_path):
    made = directory.open_run(Config(), root=tmp_path)
    config = json.loads((made.path / "config.json").read_text())
    del config["steps"]
    (made.path / "config.json").write_text(json.dumps({**config, "old": None}))
    (made.path / "checkpoints" / "student" / "7").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r'temperature was 4.0 and is "inf"; old was null and is absent; steps was absent'
    ):
        directory.open_run(Config(temperature=float("inf")), root=tmp_path)


def test_a_finished_run_says_so_and_is_left_alone(tmp_path):
    with directory.open_run(Config(), root=tmp_path) as made:
        made.finish({"accuracy": np.float32(0.5), "seeds": jnp.arange(2), "worst": float("nan")})
    before = {f.name: f.read_bytes() for f in made.path.iterdir()}
    again = directory.open_run(Config(), root=tmp_path)
    assert again.finished
    seconds = made.summary["wall_seconds"]
    assert again.summary == {
        "accuracy": 0.5,
        "seeds": [0, 1],
        "worst": None,
        "wall_seconds": seconds,
        "examples_per_second": {},
    }
    assert str(again.path) in again.notice
    assert {f.name: f.read_bytes() for f in made.path.iterdir()} == before
    with pytest.raises(ValueError, match="steps"):
        directory.open_run(Config(steps=1), root=tmp_path)


def test_wall_seconds_add_up_over_starts(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(directory.time, "monotonic", lambda: clock[0])

    def interrupted():
        with directory.open_run(Config(), root=tmp_path):
            clock[0] += 30
            raise KeyboardInterrupt

    assert leaves(interrupted) == 130
    killed = directory.open_run(Config(), root=tmp_path)  # after a phase nothing is heard of it any more
    clock[0] += 5
    killed.phase("teacher")
    clock[0] += 1000
    with directory.open_run(Config(), root=tmp_path) as last:
        clock[0] += 7
        last.finish({})
    assert last.summary == {"wall_seconds": 42.0, "examples_per_second": {}}


def test_of_two_failures_the_first_is_reported(tmp_path, monkeypatch):
    def fails(error):
        with directory.open_run(Config(), root=tmp_path):
            monkeypatch.setattr(directory.os, "replace", refusal(errno.ENOSPC))
            if error:
                raise error

    with pytest.raises(ValueError, match="the loss became nan"):
        fails(ValueError("the loss became nan."))
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"environment\.json \(No space left"):
        fails(None)


def test_phases_have_their_own_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = directory.open_run(Config())
    teacher, student = made.phase("teacher"), made.phase("distilled")
    assert teacher.checkpoints == tmp_path / "runs/digits/checkpoints/teacher"
    assert student.checkpoints != teacher.checkpoints
    with pytest.raises(ValueError, match=r"phase's name is '\.\./x'"):
        made.phase("../x")


def test_a_folder_without_a_step_is_no_run(tmp_path, capsys):
    made = directory.open_run(Config(), root=tmp_path)
    (made.path / "checkpoints" / "student" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    (made.path / "metrics.jsonl").touch()
    for name in ("arrays", "tokens/0", "tiny-teacher"):
        (made.path / name).mkdir(parents=True)
        (made.path / name / ".x.npz.7.tmp").touch()
    again = directory.open_run(Config(steps=5), root=tmp_path)
    assert not again.resumed
    assert json.loads((again.path / "config.json").read_text())["steps"] == 5
    assert "holds no step yet" in capsys.readouterr().out
    assert "steps was 1000 and is 5" not in capsys.readouterr().out
    assert sorted(f.name for f in again.path.iterdir()) == ["config.json", "environment.json", "owner.json"]


def test_arrays_of_another_configuration_are_not_read(tmp_path):
    def fails():
        with directory.open_run(Config(), root=tmp_path) as made:
            kept(made, "answers", lambda: {"logits": np.zeros(3)})
            raise ValueError("a mistake.")

    with pytest.raises(ValueError, match="a mistake"):
        fails()
    with pytest.raises(ValueError, match=r"another configuration \(steps was 1000 and is 5\): choose another --name"):
        directory.open_run(Config(steps=5), root=tmp_path)
    with directory.open_run(Config(), root=tmp_path) as again:
        assert again.resumed
        assert not kept(again, "answers", lambda: {"logits": np.ones(3)})["logits"].any()


@pytest.mark.parametrize("early", [True, False])
def test_a_start_that_fails_before_its_first_step_leaves_nothing(tmp_path, early):
    root = tmp_path / "new" / "runs"
    (tmp_path / "kept").mkdir()

    def fails(place, log):
        with contextlib.ExitStack() as stack:
            if early:
                stack.enter_context(directory.reserved(place, "digits"))
            made = stack.enter_context(directory.open_run(Config(), root=place, settled=not early))
            (made.path / "tensorboard").mkdir()
            (made.path / "tokens" / "0").mkdir(parents=True)
            (made.path / "metrics.jsonl").write_text(log)
            raise ValueError("a mistake.")

    for place in (root, tmp_path / "kept"):
        with pytest.raises(ValueError, match="a mistake"):
            fails(place, log="")
    assert [f.name for f in tmp_path.iterdir()] == ["kept"], "a folder that was there before stays"
    with pytest.raises(ValueError, match="a mistake"):
        fails(root, log='{"step": 1, "split": "train"}\n')
    assert directory.open_run(Config(), root=root).resumed


@pytest.mark.parametrize("name", ["a [1] *?{x}", "ünïcödé 模型", "a" * 200, "-x", "%20#?&", "con:a|b<c>", "$HOME"])
def test_any_plain_name_will_do(tmp_path, name):
    assert directory.open_run(Config(), name=name, root=tmp_path).path == tmp_path / name
    assert directory.open_run(Config(), name=name, root=tmp_path).resumed


def test_a_name_that_is_too_long_is_a_sentence_that_names_the_flag(tmp_path):
    for name in ("a" * 300, "模" * 80):
        with pytest.raises(ValueError, match=rf"has {len(name.encode())} bytes.*--name one of at most 200"):
            directory.open_run(Config(), name=name, root=tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\0", "a\nb", "\udcff", "a\\b", "/"])
def test_a_name_that_is_no_folder_name(tmp_path, name):
    with pytest.raises(ValueError, match=r"plain folder name: give --name"):
        directory.open_run(Config(), name=name, root=tmp_path)
    with pytest.raises(ValueError, match="plain folder name"):
        directory.open_run(Inner(), root=tmp_path)  # has no name of its own
    assert directory.open_run(Inner(), name="inner", root=tmp_path).path == tmp_path / "inner"


def test_leftovers_of_a_killed_start_are_ignored_and_removed(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / ".config.json.123.tmp").write_text('{"name": "di')
    assert not directory.open_run(Config(), root=tmp_path).resumed
    (folder / ".summary.json.123.tmp").write_text("{")
    again = directory.open_run(Config(), root=tmp_path)
    assert again.resumed
    assert not again.finished
    assert not list(folder.glob(".*"))


def test_killed_at_any_replacement_the_next_start_goes_on(tmp_path, monkeypatch):
    """A kill is an exception that nothing cleans up after; there are three files to replace in a whole run."""

    class Killed(BaseException):
        pass

    real, written = os.replace, []

    def replace(source, target):
        if len(written) == allowed:
            raise Killed
        written.append(pathlib.Path(target).name)
        real(source, target)

    for allowed in range(5):
        written.clear()
        monkeypatch.setattr(directory.os, "replace", replace)
        try:
            made = directory.open_run(Config(), root=tmp_path)
            made.finish({"a": 1})
        except Killed:
            assert allowed < 4
        monkeypatch.setattr(directory.os, "replace", real)
        again = directory.open_run(Config(), root=tmp_path)
        assert again.finished == (allowed == 4)
        shutil.rmtree(tmp_path / "digits")
    assert written == ["config.json", "environment.json", "environment.json", "summary.json"]


@pytest.mark.parametrize("file", ["config.json", "summary.json", "environment.json"])
@pytest.mark.parametrize("text", ["", '{"name": "di', "[1]"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, file, text):
    made = directory.open_run(Config(), root=tmp_path)
    (made.path / file).write_text(text)
    with pytest.raises(ValueError, match=rf"{file} (is not JSON|holds no JSON object).*delete"):
        directory.open_run(Config(), root=tmp_path)


@pytest.mark.parametrize("starts", [3, [3], [{}], [{"wall_seconds": "x"}], {"a": 1}])
def test_starts_that_are_none_are_a_sentence(tmp_path, starts):
    made = directory.open_run(Config(), root=tmp_path)
    (made.path / "environment.json").write_text(json.dumps({"starts": starts}))
    with pytest.raises(ValueError, match=r'environment\.json has no list of "starts"'):
        directory.open_run(Config(), root=tmp_path)


def test_a_foreign_folder_is_not_taken_over(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "thesis.tex").write_text("important")
    with pytest.raises(ValueError, match=r"no config\.json.*--name"):
        directory.open_run(Config(), root=tmp_path)
    assert [f.name for f in (tmp_path / "digits").iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "digits").write_text("")
    with pytest.raises(ValueError, match="is a file where the run's folder should be"):
        directory.open_run(Config(), root=tmp_path)
    with pytest.raises(OSError, match=r"cannot write .*digits.x \(Not a directory\)"):
        directory.open_run(Config(), name="x", root=tmp_path / "digits")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_unwritable_places_give_the_path_and_the_systems_reason(tmp_path, monkeypatch, code):
    monkeypatch.setattr(directory.os, "fsync", refusal(code))
    with pytest.raises(OSError, match=rf"config\.json \({os.strerror(code)}\): free") as caught:
        directory.open_run(Config(), root=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "digits").iterdir())
    monkeypatch.undo()
    assert not directory.open_run(Config(), root=tmp_path).resumed


def test_a_full_disk_leaves_the_old_file_and_one_line(start, tmp_path):
    """RLIMIT_FSIZE stands for the full disk: root may write everywhere else."""
    process = start(
        """
        import resource
        from jaxkd.experiment import cli
        from jaxkd.runs import directory

        def main():
            with directory.open_run(Small(), root=sys.argv[1]) as made:
                resource.setrlimit(resource.RLIMIT_FSIZE, (350, 350))  # less than the file, more than the line
                made.finish({"much": list(range(1000))})

        cli.main(main)
        """,
        str(tmp_path),
    )
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 2, shown
    assert shown.startswith("error: cannot write")
    assert "environment.json (File too large)" in shown
    assert shown.count("\n") == 1
    assert sorted(f.name for f in (tmp_path / "small").iterdir()) == ["config.json", "environment.json"]
    assert json.loads((tmp_path / "small" / "environment.json").read_text())["starts"]


def test_two_processes_agree_on_what_process_0_finds(start, tmp_path):
    """Process 1 writes nothing, learns that the run is finished, and fails where process 0 fails."""
    code = """
        root, rank, port = sys.argv[1:]
        jax.distributed.initialize(f"localhost:{port}", 2, int(rank))
        from jaxkd.experiment import cli
        from jaxkd.runs import directory

        root += "/" + rank
        with directory.open_run(Small(), root=root) as first:
            first.finish({"a": 1})
        print(first.finished, first.resumed, directory.open_run(Small(), root=root).finished, flush=True)
        cli.main(lambda: directory.open_run(Small(steps=2), root=root))
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    both = [start(code, str(tmp_path), str(rank), port) for rank in range(2)]
    try:
        ends = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [out.splitlines()[-1:] for out, _ in ends] == [["True False True"]] * 2, ends
    assert [process.returncode for process in both] == [2, 2]
    assert "steps was 1 and is 2" in ends[0][1]
    assert "process 0 could not open" in ends[1][1]
    assert not (tmp_path / "1").exists()


# --- values for JSON ---


class Colour(enum.Enum):
    RED = 1


def test_plain_turns_nests_into_strict_json_or_refuses():
    nest = {"a": (1, 2.5, True, None, "x"), 2: pathlib.Path("a/b"), "c": Colour.RED, "d": {3, 1}, "e": Inner()}
    assert to_json(nest) == {"a": [1, 2.5, True, None, "x"], "2": "a/b", "c": "RED", "d": [1, 3], "e": {"width": 8}}
    arrays = {"a": np.float32(0.5), "b": jnp.ones((1, 2), jnp.bfloat16), "c": [float("nan"), np.array([np.inf, 1.0])]}
    assert to_json(arrays) == {"a": 0.5, "b": [[1.0, 1.0]], "c": [None, [None, 1.0]]}
    with pytest.raises(TypeError, match="function cannot be written as JSON"):
        to_json({"f": refusal})
