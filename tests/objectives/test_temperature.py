"""Temperatures that adapt: what the adversary maximises, and how strongly, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.adaptive import STUDENT, TEACHER, B, evaluate, start

from jaxkd import losses, objectives
from jaxkd.types import Outputs


def test_the_temperature_climbs_while_the_student_descends():
    term = objectives.curriculum_temperature(strength=0.5)
    owned = start(term)
    value, _, metrics = jax.jit(lambda: evaluate(term, owned))()
    T = 1 + 20 / (1 + np.exp(-1))
    assert float(metrics["temperature"]) == pytest.approx(T, rel=1e-5)

    def direct(theta, student):
        return jnp.mean(losses.kd(student, TEACHER.logits, temperature=1 + 20 * jax.nn.sigmoid(theta)))

    def of_term(params, student):
        return evaluate(term, owned._replace(params=params), student=Outputs(student))[0]

    plain, (of_theta, expected) = jax.jit(jax.value_and_grad(direct, argnums=(0, 1)))(1.0, STUDENT.logits)
    assert float(value) == pytest.approx(float(plain), rel=1e-5)
    params, of_student = jax.jit(jax.grad(of_term, argnums=(0, 1)))(owned.params, STUDENT.logits)
    (gradient,) = jax.tree.leaves(params)
    assert float(gradient) == pytest.approx(-0.5 * float(of_theta), rel=1e-4)
    np.testing.assert_allclose(of_student, expected, rtol=1e-4, atol=1e-7)


def test_strength_is_a_schedule_and_other_numbers_are_checked():
    term = objectives.curriculum_temperature(strength=objectives.cosine_ramp(10))
    owned = start(term)
    slope = jax.jit(jax.grad(lambda params, step: evaluate(term, owned._replace(params=params), step)[0]))
    gradients = [float(slope(owned.params, step)["theta"]) for step in (0, 5, 10, 20)]
    assert gradients[0] == 0
    np.testing.assert_allclose(np.array(gradients) / gradients[2], [0, 0.5, 1, 1], atol=1e-5)
    with pytest.raises(TypeError, match="kd has no hyper-parameter 'beta'"):
        objectives.curriculum_temperature(strength=1.0, beta=2.0)
    with pytest.raises(ValueError, match="a ramp of 0 steps has no slope: give at least 1"):
        objectives.cosine_ramp(0)


def test_each_instance_has_its_temperature():
    seen = []

    def spy(s, t, *, temperature=1.0):
        seen.append(temperature)
        return losses.kd(s, t, temperature=temperature)

    term = objectives.curriculum_temperature(spy, strength=1.0, instance=True, hidden=8)
    owned = start(term)
    evaluate(term, owned)
    assert seen[-1].shape == (B,)
    assert len(np.unique(seen[-1])) == B
    assert np.all((np.asarray(seen[-1]) > 1) & (np.asarray(seen[-1]) < 21))
