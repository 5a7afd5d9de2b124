"""What all trainings of an experiment share: the options of the step, and what is measured."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import Setup, make_batch

from jaxkd import data, metrics, parallel
from jaxkd.log import Logger
from jaxkd.run import open_run
from jaxkd.stage import Measure, Setting, train_stage, variables_of


def same(batch):
    return batch


def test_the_moving_average_is_measured_beside_the_student():
    setup = Setup(ema_decay=0.5)
    state, _ = jax.jit(setup.step)(setup.state, setup.teacher_variables, make_batch())
    batch = make_batch(40)
    source = data.open_source({"image": batch["image"], "label": batch["label"]})
    setting = Setting(None, None, parallel.with_jit(), 0, 16, same, same)
    options = {"teacher": setup.teacher, "teacher_variables": setup.teacher_variables}
    measure = Measure(setting, setup.student, metrics.DISTILLATION, **options)
    found = metrics.values(measure(state, source))
    raw = metrics.values(measure(state.replace(ema=None), source))
    averaged = state.replace(
        params={**state.params, "student": state.ema.params},
        state={**state.state, "student": state.ema.state},
        ema=None,
    )
    assert variables_of(averaged) == state.ema
    for name, value in metrics.values(measure(averaged, source)).items():
        np.testing.assert_allclose(found[f"ema_{name}"], value, rtol=1e-6)
        np.testing.assert_allclose(found[name], raw[name], rtol=1e-6)
    assert found["nll"] != found["ema_nll"]
    assert set(found) == set(raw) | {f"ema_{name}" for name in raw}


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"


def test_stage_goes_on_with_the_same_teacher_alone(tmp_path):
    setup = Setup(ema_decay=0.5)
    batch = make_batch(40)
    source = data.open_source({"image": batch["image"], "label": batch["label"]})
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        setting = Setting(run, logger, parallel.with_jit(), 0, 16, same, same)

        def train(steps, teacher_variables, source=source):
            return train_stage(setting, "student", source, student=setup.student, term=setup.term, steps=steps,
                               optimizer=setup.optimizer, key=jax.random.key(0), teacher=setup.teacher,
                               teacher_variables=teacher_variables)  # fmt: skip

        train(1, setup.teacher_variables)
        assert int(train(2, jax.tree.map(np.asarray, setup.teacher_variables)).step) == 2
        changed = jax.tree.map(lambda x: x * 1.0001, setup.teacher_variables)
        with pytest.raises(ValueError, match=r"checkpoint 2 in .*made with another teacher \(.*give the teacher that"):
            train(3, changed)
        with pytest.raises(ValueError, match="made with another teacher of the targets"):
            train(3, setup.teacher_variables, dataclasses.replace(source, made_with={"teacher": "abc"}))


def test_stage_keeps_its_best_validation(tmp_path):
    setup = Setup()
    batch = make_batch(40)
    source = data.open_source({"image": batch["image"], "label": batch["label"]})
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        setting = Setting(run, logger, parallel.with_jit(), 0, 16, same, same)
        accuracies = iter([0.2, 0.7, 0.1, 0.3, 0.4])

        def measure(state, split):
            return {"accuracy": metrics.Mean(next(accuracies), 1)}

        train_stage(setting, "student", source, student=setup.student, term=setup.term, optimizer=setup.optimizer,
                    steps=5, key=jax.random.key(0), teacher=setup.teacher, teacher_variables=setup.teacher_variables,
                    validation=(measure, source), every=1)  # fmt: skip
        assert {int(p.name) for p in run.stage("student").checkpoints.iterdir()} == {2, 4, 5}
