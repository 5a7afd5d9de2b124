"""The configuration that experiments share, its flags, and the end of a run."""

import dataclasses
import json

import pytest

from jaxkd import experiment
from jaxkd.experiment import TRAINING, check_choice, check_positive, cli, conclude, conclusion, flag
from jaxkd.experiment.command_line import read_flags
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
        ({"at_once": 0}, "--at-once is 0"),
    ],
)
def test_values_outside_their_domain_are_refused_by_the_names_of_their_flags(more, message):
    Config().check()
    with pytest.raises(ValueError, match=message):
        Config(**more).check()


def test_names_are_refused_by_the_names_of_their_flags():
    check_choice(Config(), "teacher", "network", ["resnet56"])
    with pytest.raises(ValueError, match="there is no network 'resnet56': choose one of a, b for --teacher"):
        check_choice(Config(), "teacher", "network", ["a", "b"])
    with pytest.raises(ValueError, match="--seed is 0"):
        check_positive(Config(), "seed")


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
