"""The configuration that experiments share, its flags, and the end of a run."""

import dataclasses
import json

import pytest

from jaxkd import experiment
from jaxkd.experiment import TRAINING, check_choice, check_file, cli, conclude, conclusion, flag, parse_grid
from jaxkd.experiment.command_line import read_flags
from jaxkd.experiment.domains import TEMPERATURE
from jaxkd.files import to_json
from jaxkd.runs import Logger, open_run


@dataclasses.dataclass(frozen=True)
class Config(experiment.ImageConfig):
    name: str = "mine"
    epochs: int = 3
    rate: float = flag(0.1, "first rate of SGD", TRAINING)


def test_the_resolved_configuration_is_flat_and_has_the_options_of_the_step():
    resolved = to_json(Config())
    assert not any(isinstance(value, dict) for value in resolved.values())
    assert {"name": "mine", "epochs": 3, "rate": 0.1, "precision": "tf32", "seed": 0}.items() <= resolved.items()


def test_a_subclass_changes_a_default_and_keeps_help_and_group(capsys):
    with pytest.raises(SystemExit):
        cli.parse(Config, description="", smoke={}, args=["--help"])
    shown = capsys.readouterr().out
    training = shown.split("training options")[1].split("devices options")[0]
    assert "passes over the training data" in training
    assert "(default: 3)" in training
    assert training.index("--rate") < training.index("--precision"), "options of the step come last"
    assert "{None}" not in shown


def test_two_classes_share_a_command_line():
    devices = experiment.Devices()
    found = read_flags(
        [Config, experiment.Devices],
        [Config(), devices],
        args=["--rate", "0.2", "--mesh", "data=2", "--image-size", "8"],
    )
    assert (found["rate"], found["mesh"], found["image_size"], found["smoke"]) == (0.2, "data=2", 8, False)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0: give at least 1"),
        ({"epochs": -1}, "--epochs is -1"),
        ({"image_size": 0}, "--image-size is 0"),
        ({"image_size": 99999999}, "--image-size is 99999999: give a number from 1 to 16384"),
        ({"at_once": 0}, "--at-once is 0"),
        ({"ema_decay": 1.0}, "--ema-decay is 1.0: give a number from 0 to 0.999999"),
        ({"clip": 1e308}, r"--clip is 1e\+308: give a number from 1.17549e-38 to 3.40282e\+38"),
        ({"seed": 2**63}, "--seed is 9223372036854775808: give a number from 0 to 2147483646"),
        ({"source": ""}, "--source is an empty text"),
        ({"data_dir": ""}, "--data-dir is an empty text"),
        ({"teacher": "resnet9"}, "there is no network 'resnet9'"),
    ],
)
def test_values_outside_their_domain_are_refused_by_the_names_of_their_flags(more, message):
    Config().check()
    with pytest.raises(ValueError, match=message):
        Config(**more).check()


def test_no_more_views_are_cached_than_there_are_epochs():
    views = [experiment.SweepConfig(epochs=5, views=views).number_of_views for views in (None, 2, 9)]
    assert views == [5, 2, 5]


def test_names_are_refused_by_the_names_of_their_flags():
    check_choice(Config(), "teacher", "network", ["resnet56"])
    with pytest.raises(ValueError, match="there is no network 'resnet56': choose one of a, b for --teacher"):
        check_choice(Config(), "teacher", "network", ["a", "b"])
    twice = dataclasses.make_dataclass("Twice", [("methods", tuple, ("kd", "at", "kd"))])
    with pytest.raises(ValueError, match="--methods has 'kd' twice"):
        check_choice(twice(), "methods", "method", ["kd", "at"])


def test_a_file_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "there.npz").write_text("")
    for path, message in ((None, ""), ("there.npz", ""), ("nothing.npz", "does not exist"), (".", "is a folder")):
        config = dataclasses.make_dataclass("One", [("file", str, path and str(tmp_path / path))])()
        if message:
            with pytest.raises(ValueError, match=rf"--file is .*, which {message}"):
                check_file(config, "file")
        else:
            check_file(config, "file")


SWEPT = dataclasses.make_dataclass(
    "Swept", [("grid", tuple, ()), ("temperature", float, flag(4.0, "T", TRAINING, TEMPERATURE))]
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["temperature=a"], "'temperature=a' is no part of --grid"),
        (["temperature"], "'temperature' is no part of --grid"),
        (["temperature=1,,2"], "is no part of --grid"),
        (["=1"], "'' cannot be varied"),
        (["nothing=1"], "'nothing' cannot be varied by --grid"),
        (["temperature=1", "temperature=2"], "is given twice in --grid"),
        (["temperature=4,4.00000001"], "--grid has temperature=4 twice"),
        (["temperature=nan"], "temperature in --grid is nan: give a number above 0"),
        (["temperature=1,0"], "temperature in --grid is 0"),
        (["temperature=1e400"], "temperature in --grid is inf"),
    ],
)
def test_a_grid_has_the_domains_of_its_fields(words, message):
    with pytest.raises(ValueError, match=message):
        parse_grid(SWEPT(tuple(words)), "grid", ("temperature",))
    assert parse_grid(SWEPT(("temperature=1,2.5",)), "grid", ("temperature",)) == {"temperature": [1.0, 2.5]}


def test_a_run_is_concluded_once_by_the_first_process(tmp_path, capsys, monkeypatch):
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        logger.write(1, "validation", {"accuracy": 0.5}, "student")

        def end():
            conclude(
                run,
                lambda found: [{"network": name, "accuracy": str(row["last"])} for name, row in found.items()],
                {"network": "network", "accuracy": "accuracy"},
                title="One student",
                curves=["accuracy"],
                gain=1.0,
            )

        monkeypatch.setattr(conclusion.processes, "is_first", lambda: False)
        end()
        assert not run.finished
        monkeypatch.undo()
        end()
    said, summary = capsys.readouterr().out, json.loads((run.path / "summary.json").read_text())
    assert "One student" in said
    assert f"figures, metrics and checkpoints are in {run.path}" in said
    assert summary["table"] == [{"network": "student", "accuracy": "0.5"}]
    assert (summary["gain"], summary["validation"]["student"]["best"]) == (1.0, 0.5)
    assert (run.path / "curves.png").exists()
