"""Losses on embeddings against float64 twins: scores of candidates, masks of examples, prefixes."""

import jax
import numpy as np
import pytest
from losses.programs import differentiated, run

from jaxkd import losses

MASK = np.array([1, 0, 1, 1, 1, 0], bool)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def in_float64(loss, *arrays, **options):
    with jax.enable_x64(True):
        return run(loss, *arrays, **options)


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def margins(s, t):
    """MarginMSE of one query's candidates, of which the first is the positive."""
    return np.mean([((s[0] - s[j]) - (t[0] - t[j])) ** 2 for j in range(1, len(s))])


def kl_over_candidates(s, t, T, teacher_T):
    """Mean KL over queries, a query and its candidates at a time."""
    rows = []
    for i in range(len(s)):
        a, b = (np.exp(np.delete(cosines(x)[i], i) / T) for x, T in ((t, teacher_T), (s, T)))
        p, q = a / a.sum(), b / b.sum()
        rows.append(np.sum(p * np.log(p / q)))
    return np.mean(rows)


def margins_within_the_batch(s, t):
    rows = []
    for i in range(len(s)):
        mine, theirs = (np.delete(cosines(x)[i], i) for x in (s, t))
        order = np.argsort(-theirs)
        rows.append(margins(mine[order], theirs[order]))
    return np.mean(rows)


def test_margin_mse_equals_its_twin_and_with_one_negative_the_papers_formula():
    s, t = draw(2, 3, 5)
    np.testing.assert_allclose(in_float64(losses.margin_mse, s, t), [margins(*x) for x in zip(s, t, strict=True)])
    one = in_float64(losses.margin_mse, s[:, :2], t[:, :2])
    np.testing.assert_allclose(one, ((s[:, 0] - s[:, 1]) - (t[:, 0] - t[:, 1])) ** 2)


def test_margin_mse_leaves_out_candidates_that_are_not_there_and_queries_without_a_positive_or_a_negative():
    s, t = draw(2, 4, 4).astype(np.float32)
    mask = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    s[mask == 0] = np.nan
    found = run(losses.margin_mse, s, t, mask)
    np.testing.assert_allclose(found, [margins(s[0, [0, 1, 3]], t[0, [0, 1, 3]]), 0, 0, 0], rtol=1e-6)
    _, (gradient,) = differentiated(losses.margin_mse, 0)(s, t, mask)
    assert np.all(np.isfinite(gradient))
    assert not np.any(np.asarray(gradient)[mask == 0])


@pytest.mark.parametrize(
    ("loss", "twin", "options"),
    [
        (losses.candidates_kl, kl_over_candidates, (0.3, 0.7)),
        (losses.candidates_margin_mse, margins_within_the_batch, ()),
    ],
)
def test_losses_within_a_batch_equal_their_twins_and_a_mask_is_the_batch_without_those_examples(loss, twin, options):
    s, t = draw(6, 4, seed=1), draw(6, 7, seed=2)
    given = dict(zip(("temperature", "teacher_temperature"), options, strict=False))
    one, none = np.eye(6, dtype=bool)[3], np.zeros(6, bool)
    for mask in (np.ones(6, bool), MASK, one, none):
        expected = twin(s[mask], t[mask], *options) if mask.sum() > 1 else 0
        with jax.enable_x64(True):
            rubbish = np.where(mask[:, None], s, np.nan)
            value, (gradient,) = differentiated(loss, 0, **given)(rubbish, t, mask)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        assert np.all(np.isfinite(gradient))
        assert not np.any(np.asarray(gradient)[~mask])
        assert np.any(gradient) == (mask.sum() > 1)


@pytest.mark.parametrize("both", [False, True])
def test_matryoshka_is_the_weighted_sum_over_prefixes(both):
    s, t = draw(5, 6, seed=3), draw(5, 8, seed=4)
    nested = losses.matryoshka(losses.candidates_kl, widths=(2, 6), weights=(0.5, 2.0), both=both)
    expected = sum(
        c * kl_over_candidates(s[:, :m], t[:, :m] if both else t, 0.4, 0.05) for c, m in ((0.5, 2), (2.0, 6))
    )
    np.testing.assert_allclose(in_float64(nested, s, t, temperature=0.4), expected, rtol=1e-9)


def test_shapes_masks_and_widths_that_do_not_fit_are_refused():
    s = draw(4, 6).astype(np.float32)
    with pytest.raises(ValueError, match=r"\(4, 6\) but teacher embeddings have shape \(3, 6\)"):
        losses.candidates_kl(s, s[:3])
    with pytest.raises(ValueError, match=r"mask has shape \(4, 1\) but there are examples of shape \(4,\)"):
        losses.candidates_margin_mse(s, s, np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"mask has shape \(4,\) but there are scores of shape \(4, 6\)"):
        losses.margin_mse(s, s, np.ones(4))
    with pytest.raises(ValueError, match="no axis of candidates"):
        losses.margin_mse(np.float32(1), np.float32(2))
    with pytest.raises(ValueError, match=r"teacher_temperature is 0\.0"):
        losses.candidates_kl(s, s, teacher_temperature=0.0)
    with pytest.raises(ValueError, match=r"student's embedding has shape \(4, 6\), but a prefix has width 8"):
        losses.matryoshka(losses.rkd, widths=(2, 8))(s, s)
    with pytest.raises(ValueError, match=r"teacher's embedding has shape \(4, 2\)"):
        losses.matryoshka(losses.cosine, widths=(6,), both=True)(s, s[:, :2])
    for widths, weights in (((), None), ((0, 2), None), ((2, 4), (1.0,)), ((2, 4), (1.0, 0.0))):
        with pytest.raises(ValueError, match="at least one positive width"):
            losses.matryoshka(losses.cosine, widths=widths, weights=weights)
