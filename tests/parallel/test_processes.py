"""Several processes on this machine equal one device, stop together, and do not wait for one that is lost."""

import json
import pathlib
import pickle
import shutil
import signal
import socket
import textwrap
import time

import jax
import numpy as np
import pytest
from helpers import assert_trees_close, make_batch, write_pictures
from matrix import TERMS, alone, assert_each_is_another, assert_same, hand_over, parts

from jaxkd import cache, data, parallel
from jaxkd.experiment.context import Context
from jaxkd.experiment.evaluator import predict
from jaxkd.parallel import processes

HERE = pathlib.Path(__file__).parents[1]
ROOT = HERE.parent
PROGRAM = ROOT / "experiments" / "vision" / "image_kd.py"
ONE = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))
FEW = ["couples the batch"]


def start(forks, count, program, *words, devices=2):
    """Processes that find each other on a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def own(number):
        return [str(word).format(address=address, count=count, number=number) for word in words]

    return [forks.start(program, *own(number), devices=devices, path=[HERE]) for number in range(count)]


def ends(started):
    """Exit codes, and what was said on both streams."""
    said = [one.communicate(timeout=240) for one in started]
    return [one.returncode for one in started], said


def together(forks, folder, count, names, ways, more, devices=2):
    """What each of several processes wrote down."""
    (folder / "begun.pickle").write_bytes(pickle.dumps({name: hand_over(name) for name in names}))
    words = ("{address}", "{count}", "{number}", folder, ",".join(names), ",".join(ways), "more" if more else "")
    codes, said = ends(start(forks, count, HERE / "process_worker.py", *words, devices=devices))
    assert codes == [0] * count, said
    return [pickle.loads((folder / f"{number}.pickle").read_bytes()) for number in range(count)]


def test_two_processes_equal_one_device(forks, tmp_path):
    """One start for all that there is to see, since starting costs more than looking."""
    two = together(forks, tmp_path, 2, list(TERMS), ["jit", "pmap"], more=True)
    for one in two:
        for name in TERMS:
            for way in ("jit", "pmap", *(["model"] if name in FEW else [])):
                assert_same(one[name, way], alone(name))
        split_params_have_one_fingerprint(one)
        without_the_gather_the_comparison_fails(one)
        evaluation_and_prediction_see_every_row_once(one)
    targets_are_written_by_all_processes(two)
    said = two[0]["sentences"]["barrier"]
    assert "waited 0.5 s at the barrier 'the tea'" in said
    assert "missing: process 1" in said
    assert "run the same command again everywhere" in said
    assert "\n" not in said
    said = two[1]["sentences"]["rows"]
    assert (
        "has 3 rows, which cannot be split evenly over 2 devices: choose a batch size that is a multiple of 4" in said
    )


def targets_are_written_by_all_processes(two):
    makes, batch = parts("per example"), make_batch(21)
    logits = jax.jit(lambda batch: makes.teacher.apply(makes.known, batch, None, False)[0].logits)(batch)
    own = [one["cached"][0] for one in two]
    assert [len(names) for names in own] == [4, 4]
    assert not set(own[0]) & set(own[1])
    for one in two:
        np.testing.assert_allclose(one["cached"][1]["teacher_logits"], logits, rtol=1e-5, atol=1e-6)


def without_the_gather_the_comparison_fails(one):
    """Negative control."""
    assert_each_is_another(one["control"], alone("couples the batch")[0][0])


def split_params_have_one_fingerprint(one):
    assert one["shares"] == [0.25, 0.25, 1.0]
    assert one["fingerprint"] == cache.fingerprint_variables(parts("per example").known)


def evaluation_and_prediction_see_every_row_once(one):
    makes, batch = parts("per example"), make_batch(21)
    source = data.open_source({name: batch[name] for name in ("image", "label")})
    setting = Context(None, None, ONE, 0, 16, lambda batch: batch, lambda batch: batch)
    sums, (ids, logits) = makes.measure(ONE), predict(setting, makes.teacher, makes.known, source)
    for found, (ids_there, logits_there) in one["measured"].values():
        assert_trees_close(found, sums, rtol=1e-5)
        np.testing.assert_array_equal(ids_there, ids)
        np.testing.assert_allclose(logits_there, logits, rtol=1e-5, atol=1e-6)


def test_four_processes_equal_one_device(forks, tmp_path):
    for one in together(forks, tmp_path, 4, ["per example"], ["jit"], more=False, devices=1):
        assert_same(one["per example", "jit"], alone("per example"))


# --- a whole experiment ---


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path, (6, 6, 1))


def words_of(root, pictures):
    return "--smoke", "--source", pictures, "--teacher", "mlp", "--epochs", "3", "--flip", "--root", root


def experiment(forks, count, root, pictures, peer_timeout=60):
    """Processes with one device each; what more of them do, the tests of steps see."""
    many = ("--coordinator", "{address}", "--num-processes", "{count}", "--process-id", "{number}")
    words = (*words_of(root, pictures.replace("{split}", "{{split}}")), *many, "--peer-timeout", peer_timeout)
    return start(forks, count, PROGRAM, *words, devices=1)


def when_training(started, root, phase):
    """Waits until a phase has logged something."""
    log = root / "image-kd-smoke" / "metrics.jsonl"
    while not (log.exists() and f'"{phase}"' in log.read_text()):
        assert all(one.poll() is None for one in started), ends(started)
        time.sleep(0.02)


def logged(root):
    """Where each line belongs, and its numbers."""
    lines = [json.loads(line) for line in (root / "image-kd-smoke" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] != "system"]
    places = [(line.pop("phase"), line.pop("step"), line.pop("split"), tuple(line)) for line in lines]
    return places, [list(line.values()) for line in lines]


def summary(root):
    return json.loads((root / "image-kd-smoke" / "summary.json").read_text())


def test_an_experiment_stops_loses_a_process_goes_on_and_equals_one_process(forks, tmp_path, pictures, here):
    many, one, fewer = tmp_path / "many", tmp_path / "one", tmp_path / "fewer"

    stopped = experiment(forks, 2, many, pictures)
    when_training(stopped, many, "teacher")
    stopped[1].send_signal(signal.SIGTERM)  # to one of them: both agree on a step
    codes, said = ends(stopped)
    assert codes == [143, 143], said
    assert "checkpoint saved: run the same command to go on" in said[0][0]
    assert "checkpoint saved" not in said[1][0]

    lost = experiment(forks, 2, many, pictures, peer_timeout=5)
    when_training(lost, many, "alone")
    lost[1].kill()
    codes, said = ends(lost)
    assert codes == [processes.LOST, -signal.SIGKILL], said
    assert "error: process 0 of 2 has waited 5 s for a sign of life of another process" in said[0][1]
    assert "run the same command again everywhere" in said[0][1]
    shutil.copytree(many, fewer)

    codes, said = ends(experiment(forks, 2, many, pictures))
    assert codes == [0, 0], said
    assert "agrees" in said[0][0]
    assert said[1][0].replace("[Gloo]", "").count("step") == 0, "the first process alone speaks"

    for root in (one, fewer):  # one process alone, from the start and where two were
        code, said = here(PROGRAM, *words_of(root, pictures))
        assert code == 0, said.err
    (places, numbers), table = logged(one), summary(one)["table"]
    for root in (many, fewer):
        places_there, numbers_there = logged(root)
        assert places_there == places
        for row_there, row in zip(numbers_there, numbers, strict=True):
            np.testing.assert_allclose(row_there, row, rtol=1e-4, atol=1e-5)
        assert summary(root)["table"] == table


def test_a_process_that_fails_alone_tells_the_others(forks, tmp_path, pictures):
    """The first cannot write; the other does not wait for it for ever."""
    root = tmp_path / "file"
    root.write_text("where the folder should be")
    codes, said = ends(experiment(forks, 2, root, pictures, peer_timeout=8))
    assert codes == [2, 2], said
    assert "error:" in said[0][1]
    assert "process 0 could not open" in said[1][1]


PAIR = """
    import sys, time
    from jaxkd.parallel import processes

    address, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    processes.start(address, count, number, peer_timeout=2)
    processes.check_same({"--clip": None})
    try:
        processes.check_same({"--epochs": 2 + number, "--seed": 0})
    except ValueError as error:
        print(error, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_loss_of_process_0_is_code_75(forks, tmp_path, number):
    """Killed or suspended; and before that both have said in which flags they differ."""
    program = tmp_path / "pair.py"
    program.write_text(textwrap.dedent(PAIR))
    both = start(forks, 2, program, "{address}", "{count}", "{number}", devices=1)
    try:
        while not all(one.has_spoken() for one in both):
            assert all(one.poll() is None for one in both), ends(both)
            time.sleep(0.02)
        both[0].send_signal(number)
        said = both[1].communicate(timeout=100)
        assert both[1].returncode == processes.LOST, said
    finally:
        for one in both:
            one.kill()
    assert "--epochs is 2 in process 0 and 3 in process 1): give all" in said[0]
    assert "--seed" not in said[0]
    assert "stack trace" not in said[1]
    assert "error: process 1 of 2 has" in said[1]
    assert "process 0" in said[1]
    assert "run the same command again everywhere" in said[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "no coordinator"),
        (("somewhere", 2, 0), "is 'somewhere': give HOST:PORT"),
        (("localhost:1", 2, None), "number of processes is 2 and that of this one None"),
        (("localhost:1", 2, 2), "process 2 of 2 does not exist: give 0..1"),
    ],
)
def test_what_does_not_belong_together_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        processes.start(*arguments)


def test_processes_agree_on_the_firsts_choice_and_on_any_flag(monkeypatch):
    """As process 0 of two, whose peer has other flags; then as process 1."""
    there = np.array([False, True, False])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", lambda flags: np.stack([flags, there]))
    assert processes.any_of(np.array([True, False, False])).tolist() == [True, True, False]
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", lambda own: np.int32(1))
    assert processes.agree("map", ("map", "vmap")) == "vmap"


def test_one_process_waits_for_nobody():
    processes.barrier("nobody")
    assert processes.is_first()
    assert not processes.stop_agreed()


def test_a_connection_that_breaks_is_never_taken_for_a_mistake_in_the_values(monkeypatch):
    """Else a peer that is lost while a checkpoint begins would be told as a folder that cannot be written to."""

    def breaks(value):
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", breaks)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", breaks)
    with pytest.raises(jax.errors.JaxRuntimeError, match="reset by peer") as caught:
        processes.any_of(np.array([True]))
    assert processes._of_the_runtime(caught.value)
    assert processes._of_the_runtime(caught.value.__cause__), "a step that is started says it so"
    with pytest.raises(jax.errors.JaxRuntimeError, match="reset by peer"):
        processes.agree("one", ("one", "two"))
    assert not processes._of_the_runtime(ValueError("the batch has 3 rows: choose 4."))
