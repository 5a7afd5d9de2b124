"""Metrics that compare the student with its teacher: predictions and features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metrics.twins import add, case, measure, twin

from jaxkd import metrics
from jaxkd.types import Outputs


def test_groups_hold_what_their_names_say():
    assert set(metrics.CLASSIFICATION) == {"accuracy", "nll", "ece"}
    assert set(metrics.DISTILLATION) == {"accuracy", "nll", "ece", "agreement", "kl"}
    s, t, y = case()
    for name, metric in metrics.DISTILLATION.items():
        found = metric(Outputs(s), Outputs(t), {"label": y}).value()
        np.testing.assert_allclose(found, twin(name, s, t, y), rtol=1e-5)
    for metric in metrics.CLASSIFICATION.values():
        metric(Outputs(s), Outputs(None), {"label": y})  # needs no teacher


def test_student_that_is_its_teacher_is_faithful():
    s, _, y = case()
    assert measure("kl", s, s, y).value() == 0
    assert measure("agreement", s, s, y).value() == 1
    shifted = s + np.random.default_rng(0).normal(0, 5, (40, 1)).astype(np.float32)
    assert measure("kl", s, shifted, y).value() == pytest.approx(0, abs=1e-6)


def test_divergence_is_the_teachers_from_the_student():
    s, t, y = case()
    assert abs(twin("kl", s, t, y) - twin("kl", t, s, y)) > 1e-2
    np.testing.assert_allclose(measure("kl", s, t, y).value(), twin("kl", s, t, y), rtol=1e-5)


@pytest.mark.parametrize(
    "metric", [metrics.agreement, metrics.kl_to_teacher, metrics.total_variation, metrics.per_class]
)
def test_a_comparison_without_a_teacher_is_refused_in_a_sentence(metric):
    with pytest.raises(ValueError, match="compares the student with a teacher, but there is none"):
        metric(Outputs(jnp.zeros((2, 3))), Outputs(None), {"label": np.zeros(2, np.int32)})


def features(seed=0, n=40):
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((n, 5)) + 3
    return (t @ rng.standard_normal((5, 4)) + rng.standard_normal((n, 4))).astype(np.float32), t.astype(np.float32)


linear_cka = jax.jit(metrics.linear_cka("a", "b"))


def cka(s, t, sizes=(16, 16, 8)):
    start, parts = 0, []
    for size in sizes:
        rows = [np.full((16, x.shape[1]), np.nan, np.float32) for x in (s, t)]
        for full, x in zip(rows, (s, t), strict=True):
            full[:size] = x[start : start + size]
        sides = Outputs(np.zeros((16, 2)), {"a": rows[0]}), Outputs(np.zeros((16, 2)), {"b": rows[1]})
        parts.append(linear_cka(*sides, {"mask": np.arange(16) < size}))
        start += size
    return float(add(parts).value())


def test_cka_equals_its_definition_over_gram_matrices():
    s, t = features()
    centred = [x.astype(np.float64) - x.mean(0, dtype=np.float64) for x in (s, t)]
    S, T = (x @ x.T for x in centred)
    expected = (S * T).sum() / np.sqrt((S * S).sum() * (T * T).sum())
    assert 0.1 < expected < 0.95
    assert cka(s, t) == pytest.approx(expected, rel=1e-4)


def test_cka_forgets_rotation_scale_and_shift():
    s, t = features()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    assert cka(s, 7 * s @ rotation.astype(np.float32) + 2) == pytest.approx(1, rel=1e-4)
    assert cka(np.ones_like(s), t) == pytest.approx(0, abs=1e-6)


def test_cka_takes_the_mean_over_positions():
    s, t = features(n=16)
    maps = np.stack([s - 1, s + 1], axis=1)[:, None]
    sides = [Outputs(np.zeros((16, 2)), {"a": x}) for x in (s, maps)]
    other = Outputs(np.zeros((16, 2)), {"b": t})
    one, two = (linear_cka(side, other, {}).value() for side in sides)
    assert one == pytest.approx(two, rel=1e-5)


def test_cka_with_a_constant_side_is_zero_whatever_rounding_leaves():
    s = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    constant = np.full((50, 4), 3.3, np.float32)
    run = jax.jit(lambda s, t: metrics.linear_cka("x", "x")(Outputs(None, {"x": s}), Outputs(None, {"x": t}), {}))
    assert run(s, constant).value() == 0
    assert run(s + 10, 2 * s + 5).value() == pytest.approx(1, abs=1e-3)
