"""Token-level losses under masks, against NumPy twins."""

import jax
import numpy as np
import pytest
from losses.programs import compiled, differentiated, run

from jaxkd import losses
from jaxkd.losses.sequence import masked_token_kl, next_tokens, sequence_kd, token_level

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(*shape, seed=0, scale=2.0):
    return scale * np.random.default_rng((seed, *shape)).standard_normal(shape)


def numpy_log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def numpy_kl(student, teacher, temperature):
    log_p, log_q = numpy_log_softmax(teacher / temperature), numpy_log_softmax(student / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_masked_token_kl_equals_its_numpy_twin(temperature):
    s, t = draw(3, 4, 6), draw(3, 4, 6, seed=1)
    expected = (MASK * numpy_kl(s, t, temperature)).sum() / MASK.sum()
    value = run(masked_token_kl, s.astype(np.float32), t.astype(np.float32), MASK, temperature=temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_masked_token_kl_counts_tokens_where_token_level_counts_sequences():
    s, t = (draw(3, 4, 6, seed=i).astype(np.float32) for i in (0, 1))
    each = run(losses.kd, s, t, temperature=2.0)
    per_sequence = run(token_level(losses.kd), s, t, MASK, temperature=2.0)
    np.testing.assert_allclose(per_sequence, [each[0, :3].mean(), each[1, 0], 0], rtol=1e-6)
    value = run(masked_token_kl, s, t, MASK, temperature=2.0)
    np.testing.assert_allclose(value, (each[0, :3].sum() + each[1, 0]) / 4, rtol=1e-6)
    np.testing.assert_allclose(run(token_level(losses.kd), s, t, None), run(losses.kd, s, t).mean(-1), rtol=1e-6)


def test_token_level_takes_labels_too_and_keeps_what_is_padded_out_of_value_and_gradient():
    z = draw(3, 4, 6).astype(np.float32)
    z[~MASK] = np.nan
    labels = np.zeros((3, 4), np.int32)
    expected = -numpy_log_softmax(z[MASK].astype(np.float64))[:, 0]
    for kind in (bool, np.float32):  # a product with a mask of booleans the compiler turns into a choice
        value, (gradient,) = differentiated(token_level(losses.cross_entropy), 0)(z, labels, MASK.astype(kind))
        np.testing.assert_allclose(value, expected[:3].mean() + expected[3], rtol=1e-5)
        assert np.isfinite(gradient[MASK]).all()


def test_a_temperature_for_each_sequence_holds_for_its_tokens():
    s, t = (draw(3, 4, 6, seed=i).astype(np.float32) for i in (0, 1))
    T = np.array([1.0, 2.0, 4.0], np.float32)
    weights = np.ones((3, 4), np.float32)
    each = [run(masked_token_kl, s[i : i + 1], t[i : i + 1], weights[:1], temperature=float(T[i])) for i in range(3)]
    np.testing.assert_allclose(compiled(masked_token_kl)(s, t, weights, temperature=T), np.mean(each), rtol=1e-6)


def test_sequence_kd_sums_the_surprise_at_the_teachers_tokens():
    z, y = draw(3, 4, 6), np.array([[1, 2, 3, -1], [0, 99, 0, 0], [5, 5, 5, 5]])
    surprise = -np.take_along_axis(numpy_log_softmax(z), np.clip(y, 0, 5)[..., None], -1)[..., 0]
    padded = np.where(MASK[..., None], z, np.nan).astype(np.float32)
    for kind in (bool, np.float32):
        value = run(sequence_kd, padded, y, MASK.astype(kind))
        np.testing.assert_allclose(value, (MASK * surprise).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(run(sequence_kd, z[2:].astype(np.float32), y[2:]), surprise[2:].sum(-1), rtol=1e-5)


def test_next_tokens_never_cross_padding_or_the_end():
    tokens = np.array([[7, 8, 9, 0], [5, 0, 0, 0], [1, 2, 3, 4]])
    labels, valid = next_tokens(tokens, tokens > 0)
    np.testing.assert_array_equal(valid, np.array([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], bool))
    np.testing.assert_array_equal(labels[valid], [8, 9, 2, 3, 4])
    padded_left = np.array([[0, 0, 4, 5]])
    np.testing.assert_array_equal(next_tokens(padded_left, padded_left > 0)[1], [[False, False, True, False]])
    np.testing.assert_array_equal(next_tokens(tokens)[1], np.array([[1, 1, 1, 0]] * 3, bool))


def test_shapes_that_do_not_fit_are_named():
    for loss in (masked_token_kl, token_level(losses.kd)):
        with pytest.raises(ValueError, match=r"mask has shape \(3,\) but the tokens have shape \(3, 4\)"):
            loss(draw(3, 4, 6), draw(3, 4, 6), MASK[:, 0])
    with pytest.raises(ValueError, match=r"\(3, 4, 6\).*shape \(3, 3\)"):
        sequence_kd(draw(3, 4, 6), np.zeros((3, 3), np.int32))
