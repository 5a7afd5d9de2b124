"""A finished run can be used: its networks are loaded and predict what was evaluated."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import augment, data, losses, metrics, models, objectives, parallel
from jaxkd.experiment import Context, Evaluator, StepOptions, load_network, train_phase
from jaxkd.runs.directory import open_run
from jaxkd.runs.logger import Logger
from jaxkd.runs.trained import fill, read_trained, write_trained
from jaxkd.types import Variables

MEAN, STD = np.array([0.3, 0.5], np.float32), np.array([0.2, 0.4], np.float32)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"
    teacher: str = "resnet8"
    student: str = "mlp"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with a student alone, whose best step is not its last, and two together; what the evaluator found."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("runs")
    fields = {"image": random.integers(0, 256, (24, 4, 4, 2), np.uint8), "label": np.arange(24) % 3}
    source, found = dataclasses.replace(data.open_source(fields), class_names=("a", "b", "c")), {}
    clean = augment.augment_batch(augment.compose(augment.to_float(), augment.normalize(MEAN, STD)), seed=0)
    label = objectives.from_labels(losses.cross_entropy)
    with open_run(Config(), root=root) as run, Logger(run.path, tensorboard=False) as logger:
        options = StepOptions(ema_decay=0.5)
        context = Context(run, logger, parallel.with_jit(), 0, 8, clean, clean, options)
        for name, key in (("alone", jax.random.key(0)), ("together", jax.random.split(jax.random.key(0), 2))):
            model = models.mlp(3, hidden=(128,))
            evaluator = Evaluator(context, model, metrics.CLASSIFICATION, stacked=bool(key.ndim))
            done = {"steps": 3, "key": key, "every": 1, "validation": (evaluator, source)}
            state = train_phase(context, name, source, student=model, objective=(label, optax.sgd(0.3)), **done)
            found[name] = metrics.values(evaluator(state, source))
    return run.path, source, found


def accuracy(network, variables, source):
    batch = source.read(np.arange(source.size))
    logits = network.model.apply(variables, network.prepare(batch), None, False)[0].logits
    return np.mean(np.argmax(logits, -1) == batch["label"])


def test_a_loaded_network_predicts_what_was_evaluated(finished):
    path, source, found = finished
    network = load_network(path, "alone")
    assert accuracy(network, network.variables, source) == pytest.approx(found["alone"]["accuracy"])
    averaged = load_network(path, "alone", which="ema")
    assert accuracy(averaged, averaged.variables, source) == pytest.approx(found["alone"]["ema_accuracy"])
    two = load_network(path, "together", model=models.mlp(3, hidden=(128,)))
    assert two.about["students"] == 2
    for number in range(2):
        one = jax.tree.map(lambda x, n=number: x[n], two.variables)
        assert accuracy(two, one, source) == pytest.approx(found["together"]["accuracy"][number])


def test_what_is_kept_is_enough_to_use_the_network(finished):
    about = load_network(finished[0], "alone").about
    for name, value in {
        "network": "mlp",
        "num_classes": 3,
        "image_shape": [4, 4, 2],
        "step": 3,
        "students": None,
    }.items():
        assert about[name] == value
    assert about["task"] == "classification"
    np.testing.assert_allclose(about["normalisation"]["mean"], MEAN, rtol=1e-5)
    np.testing.assert_allclose(about["normalisation"]["std"], STD, rtol=1e-5)
    assert ("best" in about["weights"]) == (about["best_step"] != 3)


def test_what_cannot_be_loaded_is_a_sentence(finished, tmp_path):
    path = finished[0]
    with pytest.raises(ValueError, match=r"no trained network in .*other: give one of those .*alone, together"):
        load_network(path, "other")
    with pytest.raises(ValueError, match=r"holds no 'last' weights: choose one of .*ema, final"):
        load_network(path, "alone", which="last")
    with pytest.raises(ValueError, match=r"is \[32, 5\] in the file and \[32, 3\]|is \[.*\] in the file and \[.*5"):
        load_network(path, "alone", model=models.mlp(5, hidden=(128,)))
    write_trained(tmp_path / "a", {"final": Variables({"x": np.ones(2, np.float32)}, {})}, {})
    whole = (tmp_path / "a" / "final.npz").read_bytes()
    for damaged in (b"", whole[:-30], whole.replace(b"x.npy", b"y.npy"), whole[:70] + b"abcd" + whole[74:]):
        (tmp_path / "a" / "final.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"final\.npz cannot be read .*train the network again"):
            read_trained(tmp_path / "a")
    about = json.loads((tmp_path / "a" / "network.json").read_text())
    (tmp_path / "a" / "network.json").write_text(json.dumps({**about, "weights": []}))
    with pytest.raises(ValueError, match="holds no 'final' weights"):
        read_trained(tmp_path / "a")


def test_every_dtype_and_structure_comes_back(tmp_path):
    params = {"a": {"b": jnp.ones((2, 3), jnp.bfloat16), "c": np.float32(1.5)}, "list": [np.arange(3, dtype=np.int32)]}
    variables = jax.tree.map(np.asarray, Variables(params, {"flag": np.array(True)}))
    write_trained(tmp_path, {"final": variables}, {})
    back = fill(variables, read_trained(tmp_path).variables)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
