"""What all trainings of an experiment share: the options of the step, and what is measured."""

import jax
import numpy as np
from helpers import Setup, make_batch

from jaxkd import data, metrics, parallel
from jaxkd.stage import Measure, Setting, variables_of


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
