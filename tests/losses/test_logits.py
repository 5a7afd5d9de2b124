"""Logits losses against their authors' numbers, a float64 numpy twin, and the relations they must obey."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from losses.programs import compiled, differentiated, run
from scipy.special import log_softmax, rel_entr, softmax

from jaxkd import losses
from jaxkd.losses.logits import kd, mft, spherical_kd, standardize_logits, tfkd_reg, ttm, wttm

HALF_MASKED = np.array([[1.0, -np.inf, 2.0, -np.inf], [0.5, -np.inf, -1.0, -np.inf]], np.float32)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numpy_kd(student, teacher, temperature):
    def log_softmax(z):
        z = z / temperature
        z = z - z.max(-1, keepdims=True)
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    log_p, log_q = log_softmax(teacher.astype(np.float64)), log_softmax(student.astype(np.float64))
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kd_equals_its_numpy_twin_and_optax(temperature):
    s, t = draw((5, 3, 7), 1), draw((5, 3, 7), 2)
    value = run(losses.kd, s, t, temperature=temperature)
    assert value.shape == (5, 3)
    np.testing.assert_allclose(value, numpy_kd(s, t, temperature), rtol=2e-5, atol=1e-6)
    s, t = (x / np.float32(temperature) for x in (s, t))
    peer = run(lambda s, t: optax.kl_divergence(jax.nn.log_softmax(s), jax.nn.softmax(t)), s, t)
    # optax sums p (log p - log q) as it stands, whose rounding T^2 magnifies.
    np.testing.assert_allclose(value, temperature**2 * peer, rtol=2e-5, atol=5e-7 * temperature**2)


def test_kd_is_zero_at_equality_also_in_bfloat16_and_otherwise_positive():
    s = draw((6, 10), 3)
    np.testing.assert_array_equal(run(losses.kd, s, s), np.zeros(6))
    half = losses.kd(*[jnp.asarray(s, jnp.bfloat16)] * 2)
    np.testing.assert_array_equal(half, np.zeros(6))
    assert half.dtype == jnp.float32
    assert run(losses.kd, s, draw((6, 10), 4)).min() > 0


def test_kd_knows_which_side_is_the_teacher():
    s, t = draw((4, 5), 5), draw((4, 5), 6)
    assert np.abs(run(losses.kd, s, t) - run(losses.kd, t, s)).max() > 1e-3


def test_kd_gradient_keeps_its_scale_when_the_temperature_grows():
    """Without T^2 the gradient at T = 40 would be 100 times smaller than at T = 4."""
    s, t = draw((4, 5), 7, 0.1), draw((4, 5), 8, 0.1)
    g4, g40 = (differentiated(losses.kd, 0, temperature=T)(s, t)[1][0] for T in (4.0, 40.0))
    np.testing.assert_allclose(g4, g40, rtol=0.1, atol=1e-3)


def test_kd_takes_one_temperature_per_example():
    s, t = draw((3, 5), 9), draw((3, 5), 10)
    T = np.array([1.0, 2.0, 8.0], np.float32)
    each = [run(losses.kd, s[i], t[i], temperature=float(T[i])) for i in range(3)]
    np.testing.assert_allclose(losses.kd(s, t, temperature=T), np.stack(each), rtol=1e-5)


# With the temperature as an array among the others, whose gradient is asked for too.
at_temperature = {loss: lambda s, t, T, loss=loss: loss(s, t, temperature=T) for loss in (losses.kd, losses.logits_mse)}


@pytest.mark.parametrize("loss", [losses.kd, losses.logits_mse])
@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (draw((2, 4)), draw((2, 4))),
        (np.full((2, 4), 1e4, np.float32) * [1, -1, 1, -1], np.full((2, 4), 1e4, np.float32) * [-1, 1, -1, 1]),
        (draw((2, 4)), np.eye(2, 4, dtype=np.float32) * 1e4),
        (HALF_MASKED, HALF_MASKED[::-1]),
        (np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32)),
    ],
    ids=["equal", "huge", "one-hot teacher", "masked classes", "zeros"],
)
def test_value_and_all_gradients_are_finite_in_hard_places(loss, student, teacher):
    value, grads = differentiated(at_temperature[loss], 0, 1, 2)(
        np.float32(student), np.float32(teacher), np.float32(2)
    )
    assert np.isfinite(value)
    for grad in grads:
        assert np.all(np.isfinite(grad))


def test_masked_classes_count_as_absent():
    kept = HALF_MASKED[:, [0, 2]]
    other = draw((2, 2), 11)
    masked_other = np.full_like(HALF_MASKED, -np.inf)
    masked_other[:, [0, 2]] = other
    np.testing.assert_allclose(run(losses.kd, HALF_MASKED, masked_other), run(losses.kd, kept, other), rtol=1e-6)


def test_cross_entropy_with_integers_equals_one_hot_and_smoothing_by_hand():
    z, y = draw((6, 5), 12), np.array([0, 1, 2, 3, 4, 0])
    hard = losses.cross_entropy(z, y)
    np.testing.assert_allclose(hard, run(losses.cross_entropy, z, np.eye(5, dtype=np.float32)[y]), rtol=1e-5)
    log_q = log_softmax(z.astype(np.float64), -1)
    by_hand = -(0.9 * log_q[np.arange(6), y] + 0.1 * log_q.mean(-1))
    np.testing.assert_allclose(run(losses.cross_entropy, z, y, label_smoothing=0.1), by_hand, rtol=1e-5)


def test_soft_cross_entropy_is_kd_at_one_plus_the_teachers_entropy():
    z, t = draw((6, 5), 13), draw((6, 5), 14)
    p = softmax(t, -1)
    entropy = -np.sum(p * np.log(p), axis=-1)
    soft = run(losses.cross_entropy, z, p)
    np.testing.assert_allclose(soft, run(losses.kd, z, t, temperature=1.0) + entropy, rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.kd, losses.logits_mse])
def test_shapes_that_do_not_fit_are_named(loss):
    with pytest.raises(ValueError, match=r"different numbers of classes \(10 and 7, logits \(4, 10\) and \(4, 7\)\)"):
        loss(draw((4, 10)), draw((4, 7)))
    with pytest.raises(ValueError, match=r"shape \(3, 10\).*shape \(4, 10\)"):
        loss(draw((3, 10)), draw((4, 10)))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\).*integers of shape \(4,\)"):
        losses.cross_entropy(draw((4, 10)), np.zeros(3, np.int32))


def test_kd_takes_one_temperature_per_example_of_many_tokens():
    s, t = draw((2, 3, 5), 15), draw((2, 3, 5), 16)
    T = np.array([1.0, 8.0], np.float32)
    each = [run(losses.kd, s[i], t[i], temperature=float(T[i])) for i in range(2)]
    np.testing.assert_allclose(compiled(losses.kd)(s, t, temperature=T), np.stack(each), rtol=1e-5)


def test_standardized_logits_have_zero_mean_and_unit_sample_deviation():
    z = np.asarray(run(standardize_logits, draw((5, 8), 17, 30.0)), np.float64)
    np.testing.assert_allclose(z.mean(-1), np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(z.std(-1, ddof=1), np.ones(5), rtol=1e-6)
    np.testing.assert_array_equal(run(standardize_logits, np.full((2, 3), 7.0)), np.zeros((2, 3)))
    np.testing.assert_allclose(
        run(standardize_logits, HALF_MASKED)[:, [0, 2]], run(standardize_logits, HALF_MASKED[:, [0, 2]])
    )
    assert np.all(np.isneginf(run(standardize_logits, HALF_MASKED)[:, [1, 3]]))


def test_standardized_kd_ignores_shift_and_scale_of_either_side():
    s, t = draw((5, 8), 18), draw((5, 8), 19)

    @jax.jit
    def loss(s, t):
        return losses.kd(standardize_logits(s), standardize_logits(t), temperature=2.0)

    np.testing.assert_allclose(loss(3 * s + 1, 0.5 * t - 2), loss(s, t), rtol=1e-4)
    assert np.abs(np.asarray(loss(s, t)) - run(losses.kd, s, t, temperature=2.0)).max() > 1e-2


def test_spherical_kd_ignores_the_students_scale_and_is_kd_where_norms_agree():
    s, t = draw((5, 8), 20), draw((5, 8), 21)
    with jax.enable_x64(True):
        value = run(spherical_kd, s, t, alpha=0.7, temperature=2.0)
        np.testing.assert_allclose(run(spherical_kd, 100 * s + 3, t, alpha=0.7, temperature=2.0), value, rtol=1e-5)
        deviation = [z.astype(np.float64).std(-1, ddof=1, keepdims=True) for z in (s, t)]
        expected = 0.7 * numpy_kd(s.astype(np.float64) * deviation[1] / deviation[0], t, 2.0)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_spherical_kd_with_a_given_norm_ignores_both_scales():
    s, t = draw((5, 8), 22), draw((5, 8), 23)
    value = run(spherical_kd, s, t, norm=6.0)
    np.testing.assert_allclose(run(spherical_kd, 3 * s, 0.1 * t, norm=6.0), value, rtol=1e-4)
    norm = np.linalg.norm(t - t.mean(-1, keepdims=True), axis=-1)
    np.testing.assert_allclose(run(spherical_kd, s, t, norm=norm), run(spherical_kd, s, t), rtol=1e-5)


def test_spherical_kd_of_a_student_without_direction_is_kd_of_a_uniform_one():
    t = draw((3, 5), 24)
    nothing = np.zeros((3, 5), np.float32)
    value, (grad,) = differentiated(spherical_kd, 0, alpha=1.0)(nothing, t)
    np.testing.assert_allclose(value, run(losses.kd, nothing, t).sum(), rtol=1e-5)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("classes", [2, 7])
def test_tfkd_reg_equals_its_numpy_twin(released, classes):
    z, y = draw((6, classes), 25).astype(np.float64), np.array([0, 1, 1, 0, 1, 0])
    u = np.where(np.eye(classes)[y] == 1, 0.9, 0.1 / (classes - 1))
    p, q = softmax(u / 5, -1), softmax(z / (1 if released else 5), -1)
    divergence = rel_entr(p, q).sum(-1) / (classes if released else 1)
    expected = -0.7 * log_softmax(z, -1)[np.arange(6), y] + 0.3 * 2.0 * divergence
    with jax.enable_x64(True):
        value = run(
            tfkd_reg, z, y, alpha=0.3, temperature=5.0, multiplier=2.0, correct_probability=0.9, released=released
        )
        np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_tfkd_reg_between_label_and_virtual_teacher():
    z, y = draw((6, 5), 26), np.array([0, 1, 2, 3, 4, 0])
    np.testing.assert_allclose(run(tfkd_reg, z, y, alpha=0.0), run(losses.cross_entropy, z, y), rtol=1e-6)
    u = np.where(np.eye(5)[y] == 1, 0.99, 0.01 / 4).astype(np.float32)
    np.testing.assert_allclose(run(tfkd_reg, u, y, alpha=1.0), np.zeros(6), atol=1e-9)


def numpy_mft_teacher(p, y, threshold):
    """MFT's corrected teacher of one row, by its cases."""
    a = p.argmax()
    if a != y:
        f = (p[a] - p[y] + threshold) / (1 + p[a] - p[y] + 1e-7)
    else:
        f = ((1 if p[y] > 1 - threshold else p[y] + threshold) - p[y]) / (1 - p[y] + 1e-7)
    return (1 - f) * p + f * np.eye(len(p))[y]


@pytest.mark.parametrize(("threshold", "temperature"), [(0.2, 1.0), (0.6, 3.0)])
def test_mft_equals_its_numpy_twin(threshold, temperature):
    s, t, y = draw((8, 5), 27).astype(np.float64), draw((8, 5), 28).astype(np.float64), np.arange(8) % 5
    corrected = [numpy_mft_teacher(p, k, threshold) for p, k in zip(softmax(t / temperature, -1), y, strict=True)]
    expected = temperature**2 * rel_entr(np.stack(corrected), softmax(s / temperature, -1)).sum(-1)
    with jax.enable_x64(True):
        value = run(mft, s, t, y, temperature=temperature, threshold=threshold)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        each = compiled(mft)(s, t, y, temperature=np.full(8, temperature), threshold=np.full(8, threshold))
        np.testing.assert_allclose(each, expected, rtol=1e-10)


def test_mft_puts_the_label_above_a_wrong_teachers_choice_by_the_threshold():
    """At its minimum, which is the corrected teacher, the label leads the teacher's choice by the threshold."""
    t = np.log(np.array([[0.6, 0.3, 0.1]]))
    corrected = np.log(numpy_mft_teacher(np.exp(t[0]), 1, 0.25))[None]
    np.testing.assert_allclose(np.exp(corrected[0, 1]) - np.exp(corrected[0, 0]), 0.25, rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(mft, corrected, t, np.array([1]), threshold=0.25), 0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_ttm_and_wttm_equal_their_numpy_twin(gamma):
    s, t = draw((4, 3, 7), 30).astype(np.float64), draw((4, 3, 7), 31).astype(np.float64)
    powers = softmax(t, -1) ** gamma
    U = powers.sum(-1)
    expected = rel_entr(powers / U[..., None], softmax(s, -1)).sum(-1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(ttm, s, t, temperature=1 / gamma), expected, rtol=1e-12)
        np.testing.assert_allclose(run(wttm, s, t, temperature=1 / gamma), U * expected, rtol=1e-12)
        if gamma == 1:
            np.testing.assert_allclose(run(wttm, s, t, temperature=1.0), run(kd, s, t, temperature=1.0), rtol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_wttm_weighs_a_one_hot_teacher_with_1_and_a_uniform_one_with_a_power_of_the_classes(masked):
    s = draw((2, 6), 32)
    t = np.stack([np.where(np.arange(6) == 2, 1e4, 0), np.zeros(6)]).astype(np.float32)
    if masked:
        s, t = (np.where(np.arange(6) == 5, np.float32(-np.inf), z) for z in (s, t))
    ratio = run(wttm, s, t, temperature=4.0) / run(ttm, s, t, temperature=4.0)
    np.testing.assert_allclose(ratio, [1, (5 if masked else 6) ** 0.75], rtol=1e-6)

    def total(s, t, T):
        return jnp.sum(wttm(s, t, temperature=T))

    s[0] *= 1e4
    value, gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(s, t, np.float32([4, 4]))
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("loss", [spherical_kd, mft, wttm])
def test_new_losses_name_shapes_that_do_not_fit(loss):
    labels = (np.zeros(4, np.int32),) if loss is mft else ()
    with pytest.raises(ValueError, match=r"different numbers of classes \(10 and 7"):
        loss(draw((4, 10)), draw((4, 7)), *labels)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\).*integers of shape \(4,\)"):
        run(tfkd_reg, draw((4, 10)), np.zeros(3, np.int32))
