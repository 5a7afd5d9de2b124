"""The command line: flags, help, messages in place of tracebacks, exit codes."""

from __future__ import annotations

import errno
import functools
import json
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from configured import Config, Inner, leaves, refusal

from jaxkd.experiment import cli
from jaxkd.files import to_json
from jaxkd.numerics import check_same_shape
from jaxkd.runs import directory


def parse(*words: str) -> Config:
    return cli.parse(Config, description="Distils digits.", smoke={"steps": 3, "hidden": (4,)}, args=words)


# --- the command line ---


def test_smoke_replaces_defaults_and_explicit_flags_win():
    assert parse() == Config()
    assert parse("--smoke") == Config(steps=3, hidden=(4,))
    assert parse("--steps", "7", "--smoke") == Config(steps=7, hidden=(4,))
    assert parse("--smoke", "--steps", "1000").steps == 1000
    assert parse("--model.width", "2", "--smoke").model == Inner(2)
    with pytest.raises(TypeError, match="stepz"):
        cli.parse(Config, description="", smoke={"stepz": 3}, args=[])


def test_help_shows_description_fields_defaults_and_smoke(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    shown = capsys.readouterr().out
    assert left.value.code == 0
    for part in ("Distils digits.", "--temperature FLOAT", "Softens both distributions.", "4.0", "--smoke", "--name"):
        assert part in shown
    assert "--config" not in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tempreture", "3"], ["--tempreture", "--temperature"]),
        (["--somke"], ["--somke", "--smoke"]),
        (["--smoke", "--stpes", "3"], ["--stpes", "--steps"]),
        (["--steps", "many"], ["--steps", "many"]),
    ],
)
def test_a_wrong_flag_or_value_gives_a_message_and_code_2(capsys, words, expected):
    with pytest.raises(SystemExit) as left:
        parse(*words)
    shown = capsys.readouterr().err
    assert left.value.code == 2
    assert all(part in shown for part in expected)
    assert "Traceback" not in shown


# --- errors of the user and errors of ours ---


def test_a_sentence_of_the_library_becomes_one_line_also_under_a_transformation(capsys):
    assert leaves(lambda: directory.open_run(Config(name="a/b"))) == 2
    assert leaves(lambda: jax.jit(jax.vmap(lambda x: check_same_shape(x, x[:1], "logits")))(jnp.ones((2, 3)))) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: the run's name is 'a/b'")
    assert "logits have" in second or "numbers of classes" in second


def raises_in_a_with_block():
    with open(os.devnull) as _:
        try:
            raise KeyError("no split 'tset': choose 'train' or 'test'.")
        finally:
            pass


def test_a_sentence_of_the_experiments_own_file_becomes_one_line(capsys):
    assert leaves(raises_in_a_with_block) == 2
    assert capsys.readouterr().err == "error: no split 'tset': choose 'train' or 'test'.\n"


def asserts():
    raise AssertionError


BUGS = {
    "accident in the experiment": lambda: int("x"),
    "accident in the library": lambda: to_json({1, "b"}),  # sorting them fails in C
    "error of jax": lambda: jnp.ones((2, 3)) @ jnp.ones((2, 3)),
    "sentence of another package": lambda: json.loads(""),
    "failed assertion": asserts,
}


@pytest.mark.parametrize("function", BUGS.values(), ids=BUGS)
def test_a_bug_keeps_its_traceback(function):
    with pytest.raises((ValueError, TypeError, AssertionError)):
        cli.main(function)


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("JAXKD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="plain folder name"):
        cli.main(lambda: directory.open_run(Config(name="")))


def test_a_full_disk_that_another_package_met_becomes_one_line(capsys):
    assert leaves(functools.partial(refusal(errno.ENOSPC))) == 2
    assert "No space left" in capsys.readouterr().err


def test_ctrl_c_and_exit_codes_of_the_loop(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert leaves(interrupted) == 130
    assert leaves(lambda: sys.exit(143)) == 143
    assert "Traceback" not in capsys.readouterr().err


def test_a_sentence_of_a_file_in_the_experiments_folder_becomes_one_line(capsys):
    """Experiments share files of their folder; a `raise` elsewhere is a bug of another package, see above."""
    names = {}
    code = compile(
        "def refuse():\n    raise ValueError('no method')", str(pathlib.Path(__file__).parent / "x.py"), "exec"
    )
    exec(code, names)

    def experiment():
        names["refuse"]()

    assert leaves(experiment) == 2
    assert capsys.readouterr().err == "error: no method\n"
