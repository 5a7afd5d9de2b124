"""Losses on kept tokens: float64 NumPy twins and the relations they must obey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.programs import differentiated, run
from scipy.special import log_softmax, rel_entr, softmax

from jaxkd.losses import logits, top_k

TOP_K = [top_k.topk_kl_teacher_renorm, top_k.topk_kl_both_renorm, top_k.topk_kl_tail_bucket]
RANKING = [top_k.ranking_hinge, top_k.ranking_logistic]


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def kept_by(teacher, k):
    """Ids and log-probabilities [..., k] of the teacher's likeliest tokens."""
    log_p = log_softmax(teacher, -1)
    ids = np.argsort(-log_p, axis=-1)[..., :k]
    return ids, np.take_along_axis(log_p, ids, axis=-1)


def numpy_tail_bucket(s, ids, kept, T):
    tail = 1 - np.exp(kept).sum(-1, keepdims=True)
    p = np.concatenate([np.exp(kept), tail], -1) ** (1 / T)
    p /= p.sum(-1, keepdims=True)
    q = np.take_along_axis(softmax(s / T, -1), ids, -1)
    q = np.concatenate([q, 1 - q.sum(-1, keepdims=True)], -1)
    p[..., -1], q[..., -1] = np.clip(p[..., -1], 1e-8, 1 - 1e-8), np.clip(q[..., -1], 1e-8, 1 - 1e-8)
    return T**2 * (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_top_k_divergences_equal_their_twins(temperature):
    s = draw((2, 4, 9), 0)
    ids, kept = kept_by(draw((2, 4, 9), 1), 3)
    p = softmax(kept / temperature, -1)
    log_q = np.take_along_axis(log_softmax(s / temperature, -1), ids, -1)
    q = softmax(np.take_along_axis(s, ids, -1) / temperature, -1)
    with jax.enable_x64(True):
        given = (s, ids, kept)
        value = run(top_k.topk_kl_teacher_renorm, *given, temperature=temperature)
        np.testing.assert_allclose(value, temperature**2 * (p * (np.log(p) - log_q)).sum(-1), rtol=1e-12)
        value = run(top_k.topk_kl_both_renorm, *given, temperature=temperature)
        np.testing.assert_allclose(value, temperature**2 * rel_entr(p, q).sum(-1), rtol=1e-12)
        value = run(top_k.topk_kl_tail_bucket, *given, temperature=temperature)
        np.testing.assert_allclose(value, numpy_tail_bucket(s, ids, kept, temperature), rtol=1e-9)


@pytest.mark.parametrize("loss", TOP_K)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_keeping_the_whole_vocabulary_gives_kd(loss, temperature):
    s, t = draw((5, 7), 2), draw((5, 7), 3)
    ids, kept = kept_by(t, 7)
    with jax.enable_x64(True):
        value = run(loss, s, ids, kept, temperature=temperature)
        np.testing.assert_allclose(value, run(logits.kd, s, t, temperature=temperature), rtol=1e-5)


def test_the_three_tails_differ_in_what_they_see():
    """The bucket bounds KL from below and is 0 at equality; renormalising both sides is blind to the tail."""
    s, t = draw((5, 9), 4), draw((5, 9), 5)
    ids, kept = kept_by(t, 4)
    tail = np.ones(s.shape, bool)
    np.put_along_axis(tail, ids, False, axis=-1)
    raised = np.where(tail, s + 5, s)
    with jax.enable_x64(True):
        teacher, both, bucket = (lambda z, loss=loss: run(loss, z, ids, kept) for loss in TOP_K)
        assert np.all(bucket(s) < run(logits.kd, s, t, temperature=1.0))
        np.testing.assert_allclose(bucket(t), np.zeros(5), atol=1e-12)
        np.testing.assert_allclose(both(t), np.zeros(5), atol=1e-12)
        np.testing.assert_allclose(teacher(t), -np.log(np.exp(kept).sum(-1)), rtol=1e-9)
        np.testing.assert_allclose(both(raised), both(s), rtol=1e-12)
        assert np.all(teacher(raised) > teacher(s) + 0.1)


@pytest.mark.parametrize("loss", TOP_K)
@pytest.mark.parametrize("case", ["huge", "all mass kept", "none left", "absent slots"])
def test_value_and_gradients_are_finite_where_a_tail_is_empty(loss, case):
    s = draw((3, 6), 6)
    ids, kept = kept_by(draw((3, 6), 7), 6 if case == "none left" else 3)
    if case == "huge":
        s = 1e4 * np.sign(s)
    elif case == "all mass kept":
        s = np.where((np.arange(6) == ids[:, :1]), 1e4, 0)
        kept = np.where(np.arange(3) == 0, 0.0, -1e4) * np.ones((3, 1))
    elif case == "absent slots":
        kept = np.where(np.arange(3) == 2, -np.inf, kept)
    given = (s.astype(np.float32), ids, kept.astype(np.float32))
    value, grads = differentiated(loss, 0, 2)(*given)
    assert np.isfinite(value)
    assert value >= -1e-6
    assert all(np.all(np.isfinite(g)) for g in grads)


def numpy_ranking(values, kept, mask, pair, epsilon):
    total, count = 0.0, 0
    t = np.exp(kept)
    for row in np.argwhere(mask):
        for k in range(kept.shape[-1]):
            for j in range(kept.shape[-1]):
                high, low = t[*row, k], t[*row, j]
                if high > low + epsilon and low > epsilon:
                    total += pair(values[*row, k] - values[*row, j], high - low)
                    count += 1
    return total / (count + epsilon)


@pytest.mark.parametrize("masked", [False, True])
def test_ranking_losses_equal_their_twins(masked):
    s = draw((2, 4, 9), 8)
    ids, kept = kept_by(draw((2, 4, 9), 9), 4)
    kept[0, 0, 1] = kept[0, 0, 2]  # a tie: no pair
    kept[0, 1, 3] = -25.0  # below both thresholds
    mask = np.array([[True, True, False, True], [False, True, True, False]]) if masked else np.ones((2, 4), bool)
    given = (s, ids, kept, mask) if masked else (s, ids, kept)
    z, q = np.take_along_axis(s, ids, -1), np.take_along_axis(softmax(s, -1), ids, -1)
    with jax.enable_x64(True):
        for margin in (None, 0.1, 0.0):
            expected = numpy_ranking(
                q, kept, mask, lambda d, gap, margin=margin: max(0, (gap if margin is None else margin) - d), 1e-8
            )
            np.testing.assert_allclose(run(top_k.ranking_hinge, *given, margin=margin), expected, rtol=1e-12)
        expected = numpy_ranking(z, kept, mask, lambda d, gap: np.log1p(np.exp(-d)), 1e-9)
        np.testing.assert_allclose(run(top_k.ranking_logistic, *given), expected, rtol=1e-12)


def test_ranking_hinge_is_zero_for_the_teachers_own_gaps():
    t = draw((3, 8), 10)
    ids, kept = kept_by(t, 4)
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(top_k.ranking_hinge, t, ids, kept), 0, atol=1e-15)
        assert run(top_k.ranking_hinge, t, ids, kept, margin=0.9) > 0.1
        assert run(top_k.ranking_hinge, -t, ids, kept) > run(top_k.ranking_hinge, 0 * t, ids, kept) > 0


@pytest.mark.parametrize("loss", RANKING)
def test_ranking_of_nothing_is_zero_and_a_masked_token_cannot_hurt(loss):
    s = draw((3, 6), 11).astype(np.float32)
    ids, kept = kept_by(draw((3, 6), 12).astype(np.float32), 3)
    nothing = np.zeros(3, bool)
    value, (grad,) = differentiated(loss, 0)(s, ids, kept, nothing)
    assert value == 0
    np.testing.assert_array_equal(grad, np.zeros_like(s))
    s[0, ids[0, 2]] = kept[0, 2] = -np.inf
    value, grads = differentiated(loss, 0, 2)(s, ids, kept)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("loss", TOP_K)
def test_one_temperature_a_row_that_can_be_learned(loss):
    s = draw((2, 3, 6), 17).astype(np.float32)
    ids, kept = kept_by(draw((2, 3, 6), 18).astype(np.float32), 3)
    T = np.array([1.0, 4.0], np.float32)
    each = [run(loss, s[i], ids[i], kept[i], temperature=float(T[i])) for i in range(2)]

    def total(T):
        values = loss(s, ids, kept, temperature=T)
        return values.sum(), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(T)
    np.testing.assert_allclose(values, np.stack(each), rtol=1e-5)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("loss", [*TOP_K, *RANKING])
def test_what_does_not_fit_is_named(loss):
    s, kept = np.zeros((4, 9), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"ids have shape \(4, 2\).*\(4, 3\) and student logits \(4, 9\).*\(4,\) \+"):
        run(loss, s, np.zeros((4, 2), int), kept)
    with pytest.raises(ValueError, match=r"dtype float"):
        run(loss, s, kept, kept)


def test_a_mask_that_does_not_fit_is_named():
    s, kept = np.zeros((4, 9), np.float32), np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), expected \(4,\)"):
        run(top_k.ranking_hinge, s, np.zeros((4, 3), int), kept, np.ones(3, bool))


@pytest.mark.parametrize("loss", TOP_K + RANKING)
def test_a_padded_entry_counts_on_neither_side(loss):
    """-inf is padding, whatever its id: rows of 1 to 4 entries in one array have the values of each row alone."""
    s = draw((5, 9), 10).astype(np.float32)
    ids, kept = (a.astype(np.int32 if a.dtype.kind == "i" else np.float32) for a in kept_by(draw((5, 9), 11), 4))
    lengths = np.asarray([4, 1, 3, 2, 0])
    padding = np.arange(4) >= lengths[:, None]
    padded = np.where(padding, -np.inf, kept).astype(np.float32)
    rows = [(s[i : i + 1], ids[i : i + 1, :n], kept[i : i + 1, :n]) for i, n in enumerate(lengths[:4])]
    alone = jax.jit(lambda rows: [jnp.sum(loss(*row)) for row in rows])(rows)
    empty = np.where(padding[:, :1], np.nan, s).astype(np.float32)  # nothing of a row without an entry is read
    for fill in (0, -1, 10**6, ids):
        value, (slope, *_) = differentiated(loss, 0)(empty, np.where(padding, fill, ids), padded)
        assert np.all(np.isfinite(slope))
        if loss in RANKING:
            pairs = lengths[:4] * (lengths[:4] - 1) / 2
            expected = sum(float(a) * p for a, p in zip(alone, pairs, strict=True)) / pairs.sum()
        else:
            expected = sum(map(float, alone))
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", TOP_K)
def test_an_id_that_is_no_class_gives_nan(loss):
    ids, kept = np.asarray([[0, 1], [0, 9], [-1, 2]], np.int32), np.full((3, 2), -1, np.float32)
    np.testing.assert_array_equal(np.isnan(run(loss, draw((3, 9), 12).astype(np.float32), ids, kept)), [0, 1, 1])
