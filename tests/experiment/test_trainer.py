"""Phases of an experiment and their evaluation, with the options of the step."""

import dataclasses
import logging

import jax
import numpy as np
import optax
import pytest
from helpers import Setup, assert_trees_equal, make_batch

from jaxkd import data, losses, metrics, models, objectives, parallel
from jaxkd.experiment import NO_VARIABLES, Context, Evaluator, StepOptions, train_phase, trainer, variables_of
from jaxkd.runs import timing
from jaxkd.runs.directory import open_run
from jaxkd.runs.divergence import Divergence, DivergenceError, NonFiniteError
from jaxkd.runs.logger import Logger, read_metrics


def same(batch):
    return batch


def test_the_moving_average_is_evaluated_with_the_student():
    setup = Setup(ema_decay=0.5)
    state, _ = jax.jit(setup.step)(setup.state, setup.teacher_variables, make_batch())
    batch = make_batch(40)
    source = data.open_source({"image": batch["image"], "label": batch["label"]})
    context = Context(None, None, parallel.with_jit(), 0, 16, same, same)
    options = {"teacher": setup.teacher, "teacher_variables": setup.teacher_variables}
    evaluator = Evaluator(context, setup.student, metrics.DISTILLATION, **options)
    found = metrics.values(evaluator(state, source))
    raw = metrics.values(evaluator(state.replace(ema=None), source))
    averaged = state.replace(
        params={**state.params, "student": state.ema.params},
        state={**state.state, "student": state.ema.state},
        ema=None,
    )
    assert variables_of(averaged) == state.ema
    for name, value in metrics.values(evaluator(averaged, source)).items():
        np.testing.assert_allclose(found[f"ema_{name}"], value, rtol=1e-6)
        np.testing.assert_allclose(found[name], raw[name], rtol=1e-6)
    assert found["nll"] != found["ema_nll"]
    assert set(found) == set(raw) | {f"ema_{name}" for name in raw}


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"


def test_phase_goes_on_with_the_same_teacher_alone(tmp_path):
    setup = Setup(ema_decay=0.5)
    batch = make_batch(40)
    source = data.open_source({"image": batch["image"], "label": batch["label"]})
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        context = Context(run, logger, parallel.with_jit(), 0, 16, same, same)

        def train(steps, teacher_variables, source=source):
            return train_phase(
                context,
                "student",
                source,
                student=setup.student,
                steps=steps,
                objective=(setup.term, setup.optimizer),
                key=jax.random.key(0),
                teacher=setup.teacher,
                teacher_variables=teacher_variables,
                measured={"nll": metrics.nll},
            )

        train(1, setup.teacher_variables)
        assert {"nll", "loss"} <= (logged := read_metrics(run.path)[0]).keys()
        assert "accuracy" not in logged
        assert int(train(2, jax.tree.map(np.asarray, setup.teacher_variables)).step) == 2
        changed = jax.tree.map(lambda x: x * 1.0001, setup.teacher_variables)
        with pytest.raises(ValueError, match=r"checkpoint 2 in .*made with another teacher \(.*give the teacher that"):
            train(3, changed)
        with pytest.raises(ValueError, match="made with another teacher of the targets"):
            train(3, setup.teacher_variables, dataclasses.replace(source, made_with={"teacher": "abc"}))


def test_phase_keeps_its_best_validation(tmp_path):
    setup = Setup()
    batch = make_batch(40)
    source = data.open_source({"image": batch["image"], "label": batch["label"]})
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        context = Context(run, logger, parallel.with_jit(), 0, 16, same, same)
        accuracies = iter([0.2, 0.7, 0.1, 0.3, 0.4])

        def evaluator(state, split):
            return {"accuracy": metrics.Mean(next(accuracies), 1)}

        train_phase(
            context,
            "student",
            source,
            student=setup.student,
            objective=(setup.term, setup.optimizer),
            steps=5,
            key=jax.random.key(0),
            teacher=setup.teacher,
            teacher_variables=setup.teacher_variables,
            validation=(evaluator, source),
            every=1,
        )
        assert {int(p.name) for p in run.phase("student").checkpoints.iterdir()} == {2, 4, 5}


def train(folder, *, bad=(), rate=0.1, steps=6, every=2, **options):
    """A small training, in which the rows `bad` hold a NaN."""
    whole = data.open_source({"image": np.ones((24, 2, 2, 1), np.float32), "label": np.arange(24) % 3})

    def read(rows):
        batch = whole.read(rows)
        batch["image"][np.isin(batch["id"], bad)] = np.nan
        return batch

    with open_run(Config(), root=folder) as run, Logger(run.path, tensorboard=False) as logger:
        plan = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))
        state = train_phase(
            Context(run, logger, plan, 0, 4, same, same, **options),
            "phase",
            dataclasses.replace(whole, read=read),
            student=models.mlp(3, hidden=(4,)),
            objective=(objectives.from_labels(losses.cross_entropy), optax.sgd(rate)),
            steps=steps,
            key=jax.random.key(0),
            every=every,
            log_every=1,
        )
        return state, run.path


def test_a_nan_in_a_batch_stops_a_phase_or_is_skipped_and_counted_as_its_context_says(tmp_path):
    with pytest.raises(NonFiniteError, match="the loss became nan at step"):
        train(tmp_path / "stop", bad=[7])
    state, path = train(tmp_path / "skip", bad=[7], step_options=StepOptions(skip_nonfinite=True))
    assert int(state.skipped) == 1, "six steps of four rows are one epoch, in which the row comes once"
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))
    assert [line["skipped"] for line in read_metrics(path)][-1] == 1


def test_a_phase_writes_its_speed_into_a_file_of_its_own(tmp_path):
    _, path = train(tmp_path)
    lines = read_metrics(path / "system.jsonl")
    assert [(line["phase"], line["step"], line["split"]) for line in lines] == [
        ("phase", step, "system") for step in range(1, 7)
    ]
    figures = {"step_ms_median", "examples_per_second", "waiting_share", "read_ms", "place_ms", "host_peak_bytes"}
    assert figures <= set().union(*lines)
    assert {line["split"] for line in read_metrics(path)} == {"train"}
    again = train(tmp_path / "again")[1]
    assert (again / "metrics.jsonl").read_bytes() == (path / "metrics.jsonl").read_bytes()


def test_a_phase_that_diverges_is_stopped_unless_its_context_allows_it(tmp_path):
    """Steps that climb: the loss grows by three orders of magnitude and is finite all the time."""
    quick = Divergence(factor=3.0, patience=3)
    climb = {"rate": lambda step: -1.0 * (step > 24)}
    with pytest.raises(DivergenceError, match="the last good checkpoint is step"):
        train(tmp_path / "watched", steps=60, every=20, divergence=quick, **climb)
    state, _ = train(tmp_path / "free", steps=60, every=60, divergence=None, **climb)
    assert int(state.step) == 60


def test_a_slow_source_is_reported_by_its_phase(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("jaxkd.experiment.trainer.Clock", lambda size: timing.Clock(size, patience=1e-6, share=-1.0))
    with caplog.at_level(logging.WARNING, "jaxkd.runs.timing"):
        train(tmp_path)
    said = [r.getMessage() for r in caplog.records if "waiting for data" in r.getMessage()]
    assert len(said) == 1
    assert "reading the source" in said[0]


def test_checkpoints_know_which_rows_were_drawn():
    arrays = {"image": np.zeros((20, 1), np.float32), "label": np.arange(20) % 2}
    whole, one, again, other = (data.open_source(arrays, f"train{s}") for s in ("", "[:50%]", "[:50%]", "[50%:]"))
    rows = [trainer._made_with(source, NO_VARIABLES) for source in (whole, one, again, other)]
    assert set(rows[0]) == {"teacher"}
    assert rows[1] == rows[2] != rows[3]


def test_a_student_of_a_sweep_that_diverges_is_listed_as_lost_also_after_a_resume(tmp_path):
    source = data.open_source({"image": np.ones((24, 2, 2, 1), np.float32), "label": np.arange(24) % 3})

    def sweep(steps):
        with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
            plan = parallel.with_jit(parallel.make_mesh(jax.devices()[:1]))
            train_phase(
                Context(run, logger, plan, 0, 4, same, same),
                "phase",
                source,
                student=models.mlp(3, hidden=(4,)),
                objective=lambda rate: (objectives.from_labels(losses.cross_entropy), optax.sgd(rate)),
                points={"rate": np.array([0.1, 3e38], np.float32)},
                steps=steps,
                key=jax.random.key(0),
            )
            return run.lost

    assert sweep(6) == {"phase": [1]}
    assert sweep(6) == {"phase": [1]}


def test_steps_and_micro_batches_that_cannot_be_are_refused_by_their_flags(tmp_path):
    with pytest.raises(ValueError, match="the phase 'phase' has 2147483648 steps, but must have 1 to 2147483647"):
        train(tmp_path / "long", steps=2**31)
    with pytest.raises(
        ValueError, match=r"--micro-batches is 3, but a batch of .* has 4 examples: give a divisor of 4"
    ):
        train(tmp_path / "parts", step_options=StepOptions(micro_batches=3))


def test_a_phase_with_a_mean_teacher_goes_on_where_it_was(tmp_path):
    batch = make_batch(32)
    source = data.open_source({"image": batch["image"], "label": batch["label"]})
    student = models.mlp(5, hidden=(4,))
    term = objectives.weighted(
        label=objectives.from_labels(losses.cross_entropy), mean=objectives.from_logits(losses.logits_mse)
    )
    parts = {"student": student, "objective": (term, optax.adam(0.05)), "key": jax.random.key(0), "every": 2}
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        context = Context(run, logger, parallel.with_jit(), 0, 16, same, same)
        whole = train_phase(context, "whole", source, steps=4, mean_teacher=0.5, **parts)
        for steps in (2, 4):
            state = train_phase(context, "parts", source, steps=steps, mean_teacher=0.5, **parts)
        assert_trees_equal((state.params, state.ema), (whole.params, whole.ema))
        assert any(
            np.any(x != y)
            for x, y in zip(*map(jax.tree.leaves, (state.params["student"], state.ema.params)), strict=True)
        )
        for options, message in (
            (StepOptions(ema_decay=0.9), "leave --ema-decay out"),
            (StepOptions(teacher_weights="int8"), "leave --teacher-weights out"),
        ):
            own = context._replace(step_options=options)
            with pytest.raises(ValueError, match=message):
                train_phase(own, "other", source, steps=1, mean_teacher=0.5, **parts)
