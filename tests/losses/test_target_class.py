"""Losses that part the target class from the others: float64 NumPy twins and the relations they must obey."""

import jax
import numpy as np
import pytest
from losses.programs import compiled, differentiated, run
from scipy.special import log_softmax, rel_entr, softmax

from jaxkd.losses import logits, target_class

LABELS = np.array([2, 0, 5, 5])


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def drop(z, labels):
    """Rows without their target class, [B, K - 1]."""
    return np.stack([np.delete(row, y) for row, y in zip(z, labels, strict=True)])


def at(x, labels):
    return x[np.arange(len(labels)), labels]


def numpy_dkd(s, t, y, alpha, beta, T):
    p, q = at(softmax(t / T, -1), y), at(softmax(s / T, -1), y)
    target = rel_entr(p, q) + rel_entr(1 - p, 1 - q)
    rest = rel_entr(softmax(drop(t, y) / T, -1), softmax(drop(s, y) / T, -1)).sum(-1)
    return T**2 * (alpha * target + beta * rest)


def numpy_nkd(s, t, y, gamma, T):
    target = -at(softmax(t, -1), y) * at(log_softmax(s, -1), y)
    rest = -(softmax(drop(t, y) / T, -1) * log_softmax(drop(s, y) / T, -1)).sum(-1)
    return target + gamma * T**2 * rest


def numpy_wsld(s, t, y, alpha, T):
    ce_s, ce_t = -at(log_softmax(s, -1), y), -at(log_softmax(t, -1), y)
    soft = -(softmax(t / T, -1) * log_softmax(s / T, -1)).sum(-1)
    return alpha * T**2 * (1 - np.exp(-ce_s / (ce_t + 1e-7))) * soft


def numpy_uskd(s, w, y, alpha, beta, mu, log_ranking):
    log_q, log_w = log_softmax(s, -1), log_softmax(w, -1)
    total = []
    mean = np.mean(at(np.exp(log_q), y) ** 2)
    for b, label in enumerate(y):
        target = -(np.exp(log_q[b, label]) ** 2 + 1 - mean) * log_q[b, label]
        a = log_q[b] if log_ranking else np.exp(log_q[b])
        c = np.exp(log_w[b])
        score = c / (1 - c[label] + 1e-6) + a / (1 - a[label] + 1e-6)
        zipf = np.array([1 / (1 + np.sum(score > x)) for x in score])
        zipf = np.delete(zipf, label) / np.delete(zipf, label).sum()
        rest = -(zipf * log_softmax(np.delete(s[b], label))).sum()
        weak = -0.9 * log_w[b, label] - 0.1 * log_w[b].mean()
        total.append(alpha * target + beta * rest + mu * weak)
    return np.mean(total)


def numpy_dlr(z, y):
    others = np.where(np.eye(z.shape[-1], dtype=bool)[y], -np.inf, z).max(-1)
    ordered = np.sort(z, -1)
    return -(at(z, y) - others) / (ordered[:, -1] - ordered[:, -3])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("scale", "classes"), [(2.0, 9), (30.0, 6)])
def test_values_equal_their_twins(temperature, scale, classes):
    s, t = draw((4, classes), 0, scale), draw((4, classes), 1, scale)
    with jax.enable_x64(True):
        value = run(target_class.dkd, s, t, LABELS, alpha=0.7, beta=3.0, temperature=temperature)
        np.testing.assert_allclose(value, numpy_dkd(s, t, LABELS, 0.7, 3.0, temperature), rtol=1e-6)
        value = run(target_class.nkd, s, t, LABELS, gamma=0.7, temperature=temperature)
        np.testing.assert_allclose(value, numpy_nkd(s, t, LABELS, 0.7, temperature), rtol=1e-10)
        value = run(target_class.wsld, s, t, LABELS, alpha=1.3, temperature=temperature)
        np.testing.assert_allclose(value, numpy_wsld(s, t, LABELS, 1.3, temperature), rtol=1e-10)
        np.testing.assert_allclose(run(target_class.dlr, s, LABELS), numpy_dlr(s, LABELS), rtol=1e-12)


def test_dlr_is_above_0_where_the_network_is_wrong_and_0_without_a_scale():
    z = np.float32([[3, 1, 0, 0], [3, 1, 0, 0], [3, 1, 0, 0], [2, 2, 2, 1], [5, 4, -np.inf, -np.inf]])
    y = np.array([0, 1, 2, 0, 1])
    np.testing.assert_allclose(target_class.dlr(z, y), [-2 / 3, 2 / 3, 1, 0, 0], rtol=1e-6)
    with pytest.raises(ValueError, match="give at least three classes"):
        target_class.dlr(z[:, :2], y)


@pytest.mark.parametrize("log_ranking", [True, False])
def test_uskd_equals_its_twin(log_ranking):
    s, w = draw((4, 8), 2), draw((4, 8), 3)
    with jax.enable_x64(True):
        value = run(target_class.uskd, s, w, LABELS, alpha=0.5, beta=0.3, mu=0.2, log_ranking=log_ranking)
        np.testing.assert_allclose(value, numpy_uskd(s, w, LABELS, 0.5, 0.3, 0.2, log_ranking), rtol=1e-12)
        other = run(target_class.uskd, s, w, LABELS, alpha=0.5, beta=0.3, mu=0.2, log_ranking=not log_ranking)
        assert abs(other - value) > 1e-4


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_kd_in_another_weighting(temperature):
    """KD weights the other classes by what the teacher leaves to them; for two classes there is nothing to weight."""
    s, t = draw((4, 6), 4), draw((4, 6), 5)
    with jax.enable_x64(True):
        left = 1 - at(softmax(t / temperature, -1), LABELS)
        value = run(target_class.dkd, s, t, LABELS, alpha=np.ones(4), beta=left, temperature=temperature)
        np.testing.assert_allclose(value, run(logits.kd, s, t, temperature=temperature), rtol=1e-12)
        two = run(target_class.dkd, s[:, :2], t[:, :2], LABELS % 2, beta=7.0, temperature=temperature)
        np.testing.assert_allclose(two, run(logits.kd, s[:, :2], t[:, :2], temperature=temperature), rtol=1e-12)


def test_dkd_sees_the_other_classes_behind_a_certain_target():
    """In float32 the target's logit of 1e4 must not blur the distribution of the others."""
    s, t = draw((4, 6), 6), draw((4, 6), 7)
    s[np.arange(4), LABELS] = t[np.arange(4), LABELS] = 1e4
    value = run(target_class.dkd, s.astype(np.float32), t.astype(np.float32), LABELS, temperature=1.0, beta=1.0)
    expected = rel_entr(softmax(drop(t, LABELS), -1), softmax(drop(s, LABELS), -1)).sum(-1)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_nkd_is_least_where_the_other_classes_agree_and_pulls_the_target_up():
    t = draw((4, 6), 8).astype(np.float32)
    _, (grad,) = differentiated(target_class.nkd, 0, gamma=2.0, temperature=3.0)(t, t, LABELS)
    p, p_y = softmax(t, -1), at(softmax(t, -1), LABELS)[:, None]
    # Only the target part is left: p_y (q - [c = y]).
    np.testing.assert_allclose(grad, p_y * (p - np.eye(6, dtype=np.float32)[LABELS]), rtol=1e-4, atol=1e-6)


def test_wsld_scales_kds_gradient_by_a_constant_weight():
    s, t = draw((4, 6), 9), draw((4, 6), 10)
    with jax.enable_x64(True):
        _, (grad,) = differentiated(target_class.wsld, 0, alpha=1.5, temperature=2.0)(s, t, LABELS)
        _, (of_kd,) = differentiated(logits.kd, 0, temperature=2.0)(s, t)
        ratio = log_softmax(s, -1)[np.arange(4), LABELS] / log_softmax(t, -1)[np.arange(4), LABELS]
        np.testing.assert_allclose(grad, 1.5 * (1 - np.exp(-ratio))[:, None] * np.asarray(of_kd), rtol=1e-5)


def test_wsld_leaves_alone_what_the_student_knows():
    s, t = draw((4, 6), 11).astype(np.float32), draw((4, 6), 12).astype(np.float32)
    s[np.arange(4), LABELS] = 100.0
    np.testing.assert_array_equal(run(target_class.wsld, s, t, LABELS), np.zeros(4))


def test_uskd_trains_the_student_by_constants_and_the_weak_head_by_smoothed_labels():
    s, w = draw((4, 6), 13), draw((4, 6), 14)
    with jax.enable_x64(True):
        _, grads = differentiated(target_class.uskd, 0, 1, alpha=2.0, beta=0.0, mu=0.5)(s, w, LABELS)
        q, one_hot = softmax(s, -1), np.eye(6)[LABELS]
        P = at(q, LABELS) ** 2 + 1 - np.mean(at(q, LABELS) ** 2)
        np.testing.assert_allclose(grads[0], 2.0 * P[:, None] * (q - one_hot) / 4, rtol=1e-10)
        np.testing.assert_allclose(
            grads[1], 0.5 * (softmax(w, -1) - 0.9 * one_hot - 0.1 / 6) / 4, rtol=1e-10, atol=1e-15
        )


@pytest.mark.parametrize("loss", [target_class.dkd, target_class.nkd, target_class.wsld])
def test_leading_axes_and_one_hyper_parameter_a_row(loss):
    s, t = draw((2, 4, 6), 15).astype(np.float32), draw((2, 4, 6), 16).astype(np.float32)
    y, T = np.stack([LABELS, LABELS[::-1]]), np.array([1.0, 5.0], np.float32)
    each = [run(loss, s[i], t[i], y[i], temperature=float(T[i])) for i in range(2)]
    np.testing.assert_allclose(compiled(loss)(s, t, y, temperature=T), np.stack(each), rtol=1e-5)


@pytest.mark.parametrize("loss", [target_class.dkd, target_class.nkd, target_class.wsld])
def test_the_temperature_can_be_learned_although_a_class_is_masked(loss):
    s, t = draw((4, 7), 17).astype(np.float32), draw((4, 7), 18).astype(np.float32)
    s[:, 3] = t[:, 3] = -np.inf
    value, grad = jax.jit(jax.value_and_grad(lambda T: loss(s, t, LABELS, temperature=T).sum()))(2.0)
    assert np.isfinite(grad)
    assert grad != 0
    kept = [0, 1, 2, 4, 5, 6]
    there = run(loss, s[:, kept], t[:, kept], np.array([kept.index(y) for y in LABELS]), temperature=2.0)
    np.testing.assert_allclose(run(loss, s, t, LABELS, temperature=2.0), there, rtol=1e-5)
    np.testing.assert_allclose(value, there.sum(), rtol=1e-5)


@pytest.mark.parametrize("loss", [target_class.dkd, target_class.nkd, target_class.wsld, target_class.uskd])
def test_what_does_not_fit_is_named(loss):
    s = np.zeros((4, 6), np.float32)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\) and dtype int.*integers of shape \(4,\)"):
        run(loss, s, s, np.zeros(3, int))
    with pytest.raises(ValueError, match=r"labels have shape \(4,\) and dtype float"):
        run(loss, s, s, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"different numbers of classes \(6 and 5"):
        run(loss, s, s[:, :5], LABELS)
