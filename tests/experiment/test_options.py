"""Options of the step and formats of the networks: each reaches the training, the evaluation and the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import data, losses, metrics, models, objectives, parallel, types
from jaxkd.experiment import Context, Devices, Evaluator, StepOptions, cached_teacher, predict, train_phase, trainer
from jaxkd.experiment.transfer import open_source_and_target
from jaxkd.keys import fold_name
from jaxkd.runs.directory import open_run
from jaxkd.runs.logger import Logger
from jaxkd.types import Model, Outputs, Variables

CLASSES, SIZE = 3, 24
IMAGES = np.random.default_rng(0).standard_normal((SIZE, 2, 2, 1)).astype(np.float32)
SOURCE = data.open_source({"image": IMAGES, "label": np.arange(SIZE) % CLASSES})
LABEL = objectives.from_labels(losses.cross_entropy)
NETWORK = models.mlp(CLASSES, hidden=(4,))


def noisy(batch):
    """Stands for augmentation."""
    return {**batch, "noisy": batch["id"]}


def clean(batch):
    """Stands for normalisation alone."""
    return {**batch, "clean": batch["id"]}


def one_device():
    return parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"


def trained(
    folder, options, *, source=SOURCE, student=NETWORK, objective=None, seed=0, steps=1, evaluated=None, **more
):
    """A small training, and an evaluation of its student by some metrics."""
    with open_run(Config(), root=folder) as run, Logger(run.path, tensorboard=False) as logger:
        context = Context(run, logger, one_device(), seed, 8, noisy, clean, options)
        state = train_phase(
            context,
            "phase",
            source,
            student=student,
            objective=objective or (LABEL, optax.sgd(1.0)),
            steps=steps,
            key=jax.random.key(0),
            **more,
        )
        if evaluated is not None:
            named = {name: value for name, value in more.items() if name.startswith("teacher")}
            Evaluator(context, student, evaluated, **named)(state, source)
        return state


def noting(notes, who):
    """A network that notes, where it is applied, the format of its hidden layer's weights and the kind of the batch."""

    def apply(variables, batch, key, train):
        kernels = [x for path, x in jax.tree.leaves_with_path(variables.params) if "head" not in types.leaf_name(path)]
        kind = next((kind for kind in ("noisy", "clean") if kind in batch), "raw")
        notes.add((who, "train" if train else "evaluation", kernels[0].dtype.name, kind, len(batch["image"])))
        return NETWORK.apply(variables, batch, key, train)

    return Model(NETWORK.init, apply)


def known():
    """Variables of a teacher."""
    return NETWORK.init(jax.random.key(1), {"image": jnp.asarray(IMAGES[:1])})


def test_the_gradient_is_clipped_before_the_optimizer_sees_it():
    optimizer = optax.sgd(0.5)
    assert StepOptions().clipped(optimizer) is optimizer
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    clipped = StepOptions(clip=1.0).clipped(optimizer)
    for scale, norm in ((1.0, 5.0), (0.1, 1.0)):  # the second is within the bound
        grads = {"a": scale * jnp.array([3.0, 0.0]), "b": scale * jnp.array([0.0, 4.0])}
        updates, _ = clipped.update(grads, clipped.init(params), params)
        for name, g in grads.items():
            np.testing.assert_allclose(updates[name], -0.5 * g / norm, rtol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_teacher_has_its_weights_in_the_format_that_is_asked_for(precision, weights):
    variables, batch = known(), {"image": jnp.asarray(IMAGES[:2])}
    options = StepOptions(precision=precision, teacher_weights=weights)
    teacher, small = options.cast_teacher(NETWORK, variables)
    formats = {types.leaf_name(p): x.dtype.name for p, x in jax.tree.leaves_with_path(small.params)}
    assert {f for name, f in formats.items() if "head" in name} == {"float32"}
    assert weights in {f for name, f in formats.items() if "head" not in name and "bias" not in name}
    outputs, _ = jax.eval_shape(lambda v: teacher.apply(v, batch, None, False), small)
    found = {feature.dtype.name for feature in outputs.features.values()}
    assert outputs.logits.dtype == np.float32
    assert precision in found or weights == precision == "float32"


def test_formats_and_preparations_reach_training_and_evaluation(tmp_path):
    notes = set()
    trained(
        tmp_path,
        StepOptions(precision="bfloat16"),
        student=noting(notes, "student"),
        teacher=noting(notes, "teacher"),
        teacher_variables=known(),
        evaluated={"accuracy": metrics.accuracy},
    )
    assert {note[:4] for note in notes} == {
        ("student", "train", "bfloat16", "noisy"),
        ("student", "evaluation", "bfloat16", "clean"),
        ("teacher", "evaluation", "bfloat16", "noisy"),
        ("teacher", "evaluation", "bfloat16", "clean"),
    }


def test_targets_are_written_by_the_teacher_in_its_formats(tmp_path):
    notes = set()
    context = Context(None, None, one_device(), 0, 8, noisy, clean, StepOptions(teacher_weights="bfloat16"))
    with open_run(Config(), root=tmp_path) as run:
        made = context._replace(run=run)
        cached_teacher(made, SOURCE, noting(notes, "teacher"), known(), views=1)
    assert {note[:4] for note in notes} == {("teacher", "evaluation", "bfloat16", "noisy")}


def test_options_of_the_step_reach_a_training(tmp_path):
    notes, asked = set(), []
    source = dataclasses.replace(SOURCE, read=lambda rows: asked.append(rows) or SOURCE.read(rows))
    options = StepOptions(clip=1e-2, ema_decay=0.25, micro_batches=2)
    state = trained(tmp_path, options, source=source, student=noting(notes, "student"), seed=5)
    order = data.train_batches(SOURCE, 8, seed=5)[0]["id"]
    assert [rows.tolist() for rows in asked if len(rows) == 8][-1] == order.tolist()
    begun = NETWORK.init(fold_name(jax.random.key(0), "student"), SOURCE.read(np.arange(1))).params
    moved = jax.tree.map(lambda after, before: after - before, state.params["student"], begun)
    assert np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(moved))) == pytest.approx(1e-2, rel=1e-3)
    averaged = jax.tree.map(lambda after, before: 0.25 * before + 0.75 * after, state.params["student"], begun)
    for found, expected in zip(jax.tree.leaves(state.ema.params), jax.tree.leaves(averaged), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert {size for _, way, *_, size in notes if way == "train"} == {8, 4}, "checked as a whole, computed in parts"


def test_a_lost_student_of_a_sweep_is_left_behind(tmp_path):
    points = {"rate": np.float32([0.1, 3e38])}
    state = trained(
        tmp_path, StepOptions(), objective=lambda rate: (LABEL, optax.sgd(rate)), points=points, steps=4, best=None
    )
    assert int(state.skipped[0]) == 0
    assert int(state.skipped[1]) > 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))


def test_soft_labels_of_every_row_come_in_the_sources_order():
    def apply(variables, batch, key, train):
        assert not train
        return Outputs(jnp.stack([batch["id"] * 1.0, batch["image"][:, 0, 0, 0]], axis=-1)), {}

    def forbidden(batch):
        raise AssertionError("augmentation is no part of an evaluation")

    def shifted(batch):
        return {**batch, "image": batch["image"] + 1}

    context = Context(None, None, one_device(), 0, 100, forbidden, shifted)
    model = Model(lambda key, batch: Variables({}, {}), apply)
    ids, logits = predict(context, model, Variables({}, {}), SOURCE)
    np.testing.assert_array_equal(ids, np.arange(SIZE))
    np.testing.assert_allclose(logits, np.stack([np.arange(SIZE), IMAGES[:, 0, 0, 0] + 1], axis=-1), rtol=1e-6)
    assert context.batch_of(SOURCE) == SIZE, "all of a source that is smaller than a batch"


def test_a_target_has_its_last_classes_and_the_labels_of_its_seed(tmp_path):
    label = np.arange(120) % 6
    image = np.stack([np.arange(120), 10 * label], axis=-1).astype(np.uint8).reshape(120, 1, 1, 2)
    np.savez(tmp_path / "x.npz", image=image, label=label)

    def opened(seed):
        sizes = {"per_class": 4, "source_classes": 4, "target_classes": 3}
        splits = ("train", "train[:60]", "train[60:90]", "train[90:]")
        sources = open_source_and_target(*[f"npz:{tmp_path}/x.npz"] * 2, splits, **sizes, seed=seed)
        return [source.read(np.arange(source.size)) for source in sources]

    pretraining, few, validation, _ = opened(0)
    for found, first, classes in ((pretraining, 0, 4), (few, 3, 3), (validation, 3, 3)):
        assert set(found["label"]) == set(range(classes))
        np.testing.assert_array_equal(found["image"][:, 0, 0, 1], 10 * (first + found["label"]))
    assert np.bincount(few["label"]).tolist() == [4, 4, 4]
    assert not np.array_equal(few["image"], opened(1)[1]["image"])


def test_the_fastest_form_is_measured_once_a_run(tmp_path, monkeypatch):
    """Else a run that goes on on a busier machine would go on with other bits."""
    found = iter(["map", "unroll", "vmap"])
    monkeypatch.setattr(trainer.students, "fastest_form", lambda *_: next(found))
    with open_run(Config(), root=tmp_path) as run:
        context = Context(run, None, one_device(), 0, 8, noisy, clean)
        forms = [trainer._fastest(context, name, None, None, None, [{}]) for name in ("a", "a", "b", "a", "b")]
    assert forms == ["map", "map", "unroll", "map", "unroll"]


def test_devices_are_arranged_as_the_flags_say():
    count = jax.device_count()
    assert dict(Devices().plan().mesh.shape) == {"data": count}
    assert dict(Devices(mesh="model=4").plan().mesh.shape) == {"data": count // 4, "model": 4}
    assert [Devices(parallel=way).plan().axis_name for way in ("jit", "pmap")] == [None, "data"]
