"""Every experiment and benchmark runs as a user starts it, shrunk by --smoke; the main ones keep their promises."""

import functools
import json
import pathlib
import re
import signal
import time

import jax
import pytest
from helpers import write_pictures

from jaxkd import parallel
from jaxkd.experiment import flags, methods

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments"
IMAGE_KD = FOLDER / "vision" / "image_kd.py"
PARTS = ("recipe", "published")  # of cifar100/run
EXPERIMENTS = sorted(p for p in FOLDER.rglob("*.py") if not p.name.startswith("_") and p.stem not in PARTS)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("images"), (12, 12, 3))


def arguments(path, folder, images):
    """Flags that keep an experiment within the test's folder."""
    if path.stem == "digits":
        return ["--root", folder, "--data-dir", folder / "data"]
    fields = ("text", "audio", "detection", "graph", "tabular", "methods")
    if path.stem in ("imagenet", "faces", "xrays") or path.parent.name in fields:
        return ["--root", folder]
    if path.stem in ("image_kd", "run", "transfer"):
        return ["--root", folder, "--source", images]
    if path.stem == "every_method":
        return ["--out", folder / "out.json", "--source", images]
    return ["--out", folder if path.stem == "all" else folder / "out.json"]


ELSEWHERE = ("digits", "image_kd", "crash", "large_vocabulary")  # tests of their own start these, and `all` the last


@pytest.fixture
def two_devices(monkeypatch):
    """They share batches as eight do and compile sooner; a whole run on eight stands below."""
    monkeypatch.setattr(flags, "make_mesh", functools.partial(parallel.make_mesh, jax.devices()[:2]))


@pytest.fixture
def one_device(monkeypatch):
    """As on a laptop."""
    monkeypatch.setattr(flags, "make_mesh", functools.partial(parallel.make_mesh, jax.devices()[:1]))


@pytest.mark.usefixtures("two_devices")
@pytest.mark.parametrize("path", [p for p in EXPERIMENTS if p.stem not in ELSEWHERE], ids=lambda p: p.stem)
def test_runs_in_smoke_mode(path, tmp_path, images, here, forks, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--smoke", *arguments(path, tmp_path, images))
    if path.stem == "devices":  # which cuts the CPU before anything touches it
        started = forks.start(path, *words, devices=1)
        said = started.communicate()
        assert started.returncode == 0, said
    else:
        code, said = here(path, *words)
        assert code == 0, said.err
        assert path.stem != "every_method" or "2 trainings, 0 that do not apply, 0 failed" in said.out


@pytest.mark.usefixtures("two_devices")
def test_a_method_that_diverges_does_not_end_the_table(tmp_path, images, here, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "nkd", methods.METHODS["nkd"]._replace(weight=1e38))
    path = FOLDER / "cifar100" / "run.py"
    code, said = here(path, "--smoke", *arguments(path, tmp_path, images), "--methods", "nkd", "at")
    summary = json.loads((tmp_path / "cifar100-smoke" / "summary.json").read_text())
    rows = {row["method"]: row for row in summary["table"]}
    assert code == 0, said.err
    assert rows["nkd"]["last"] == rows["nkd"]["best"] == "diverged"
    assert 0 <= float(rows["at"]["last"]) <= 100
    assert list(summary["diverged"]) == ["nkd"]
    assert "nkd: the loss became" in said.out


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_help_reads_well(path, here):
    code, shown = here(path, "--help")
    assert code == 0
    assert "--smoke" in shown.out
    assert f"python {path.relative_to(ROOT)}" in shown.out
    if path.parent != FOLDER / "benchmarks":
        panels = re.findall(r"(\w+) options \W", shown.out)
        assert panels in ([*flags.GROUPS], ["data", "networks", "training", "run"])
        first = shown.out.split(" options ")[1].split("data options")[0]
        assert re.findall(r"--[a-z]+", first) == ["--help"], "a flag without a group"


@pytest.mark.usefixtures("one_device")
def test_digits_leaves_a_whole_run_directory_and_does_not_train_twice(tmp_path, here):
    digits = FOLDER / "digits.py"
    more = ("--smoke", *arguments(digits, tmp_path, None))
    code, first = here(digits, *more)
    assert code == 0, first.err
    folder = tmp_path / "digits-smoke"
    assert {p.name for p in folder.iterdir()} >= {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "summary.json",
        "tensorboard",
        "curves.png",
        "reliability.png",
        "targets",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["network"] for row in summary["table"]] == [
        "teacher",
        "student alone",
        "student alone, all labels",
        "distilled",
        "distilled + fine-tuned",
    ]
    assert summary["table"][1]["labels"] == "100"
    assert len(summary["test"]["distilled"]["accuracy"]) == 2
    assert summary["wall_seconds"] > 0
    assert "two standard errors" in first.out
    before = (folder / "metrics.jsonl").read_bytes()
    code, again = here(digits, *more)
    assert code == 0
    assert "already finished" in again.out
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_run_cut_short_with_a_cache_and_one_under_pmap_end_as_a_live_one_under_jit(tmp_path, images, here, forks):
    """On eight devices; what batch norm does there, the tests of single steps see."""
    path = IMAGE_KD

    def words(name, *more):
        usual = ("--source", images, "--epochs", "2", "--teacher", "mlp", "--no-wandb", "--flip", "--crop", "1")
        return path, "--smoke", *usual, "--root", tmp_path / name, *more

    def ends(name, *more):
        code, said = here(*words(name, *more))
        assert code == 0, said.err
        folder = tmp_path / name / "image-kd-smoke"
        return json.loads((folder / "summary.json").read_text())["table"], (folder / "metrics.jsonl").read_text()

    started = forks.start(*words("cut", "--cache", "full"), devices=8)
    log = tmp_path / "cut" / "image-kd-smoke" / "metrics.jsonl"
    while started.poll() is None and not (log.exists() and '"alone"' in log.read_text()):
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    said = "".join(started.communicate())
    assert started.returncode == 130, said
    assert "run the same command to go on" in said
    whole, by_pmap = ends("whole"), ends("pmap", "--parallel", "pmap")
    assert ends("cut", "--cache", "full") == whole
    for one, other in zip(whole[0], by_pmap[0], strict=True):
        assert one.keys() == other.keys()
        for name, figure in one.items():
            assert figure == (pytest.approx(other[name], rel=1e-3) if isinstance(figure, float) else other[name])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tempreture", "3"], "--temperature"),
        (["--teacher", "resnet19"], "there is no network 'resnet19': choose one of mlp, convnet"),
        (["--source", "npz:nowhere.npz"], "nowhere.npz"),
        (["--batch-size", "12"], "which cannot be split evenly over 8 devices"),
        (["--train-split", "train[:0]"], "empty"),
        (["--test-split", "tset"], "test"),
        (["--cache", "99"], "--cache is 99 but"),
        (["--crop", "12"], "--crop is 12 but images are of 12 x 12 pixels"),
        (["--micro-batches", "3"], "--micro-batches is 3, but a batch of"),
        (["--grid", "temperature=4,4"], "--grid has temperature=4 twice"),
        (["--epochs", "0"], "epochs is 0: give at least 1"),
    ],
)
def test_mistakes_get_a_sentence_and_code_2(more, message, tmp_path, images, here):
    flags = {"--source": images, "--root": str(tmp_path)} | dict(zip(more[::2], more[1::2], strict=True))
    code, said = here(IMAGE_KD, "--smoke", *(w for pair in flags.items() for w in pair))
    assert code == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert "step" not in said.out, "nothing is trained before all is known to fit"


def test_run_made_with_another_configuration_is_refused(tmp_path, here):
    """Once it has a step; a start that fails before does not use the name up."""
    path, folder = IMAGE_KD, tmp_path / "image-kd-smoke"
    more = ("--smoke", "--source", "npz:nowhere.npz", "--root", tmp_path)
    assert here(path, *more)[0] == 2
    assert not folder.exists()
    folder.mkdir()
    (folder / "config.json").write_text('{"temperature": 4.0}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')
    code, said = here(path, *more, "--temperature", "2")
    assert code == 2
    assert "temperature was 4.0 and is 2.0" in said.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "at", "kdd"], "there is no method 'kdd'"),
        (["--table"], "nobody published tiny -> tiny"),
        (["--batch-size", "0"], "--batch-size is 0: give at least 1"),
    ],
)
def test_mistakes_in_names_are_found_before_a_folder_is_made(more, message, tmp_path, here):
    code, said = here(FOLDER / "cifar100" / "run.py", "--smoke", "--root", tmp_path / "runs", *more)
    assert code == 2
    assert message in said.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "domains",
            ["--teacher-size", "4", "--image-size", "28", "--teacher", "lenet"],
            "give a larger --teacher-size",
        ),
        ("domains", ["--source-validation-split", "train"], "--source-validation-split overlaps with --source-split"),
        ("exits", ["--student", "mlp"], "--exits stage1 do not suit --student mlp"),
        ("mean_teacher", ["--labels", "5000"], "--labels is 5000"),
        ("modalities", ["--towers", "none", "clip-kd"], "--towers has none next to kinds of towers"),
        ("no_teacher", ["--members", "1"], "--members is (1,): give numbers of 2 or more"),
        ("robust", ["--lambdas", "0.5", "0.5"], "--lambdas is (0.5, 0.5): give each number once"),
        (
            "several_teachers",
            ["--image-size", "4", "--teachers", "mlp", "lenet"],
            "--teachers lenet cannot take images",
        ),
        ("tasks", ["--validation-split", "test"], "--validation-split, for choices, overlaps with --test-split"),
    ],
)
def test_mistakes_with_methods_are_found_before_anything_is_trained(name, more, message, tmp_path, here):
    code, said = here(FOLDER / "methods" / f"{name}.py", "--smoke", "--root", tmp_path, *more)
    assert code == 2
    assert message in said.err
    assert "step" not in said.out
    assert not any(tmp_path.iterdir())


def test_one_student_of_the_digits_has_no_standard_error(tmp_path, here):
    code, said = here(FOLDER / "digits.py", "--smoke", "--root", tmp_path / "runs", "--seeds", "1")
    assert code == 2
    assert "--seeds is 1: give at least 2, for a standard error." in said.err
    assert not (tmp_path / "runs").exists()


def test_methods_that_do_not_apply_are_counted_apart(tmp_path, images, here):
    path = FOLDER / "cifar100" / "every_method.py"
    more = ("--pairs", "tiny convnet", "--methods", "fsp")
    code, said = here(path, "--smoke", *arguments(path, tmp_path, images), *more)
    assert code == 0, said.err
    assert "0 trainings, 1 that do not apply, 0 failed" in said.out
