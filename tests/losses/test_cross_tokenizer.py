"""Losses between vocabularies that differ: float64 NumPy twins and the relations they must obey."""

import jax
import numpy as np
import pytest
from losses.programs import run
from scipy.special import softmax

from jaxkd.losses.cross_tokenizer import uld, uld_answers


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def test_uld_equals_its_twin_and_ignores_the_order_of_either_vocabulary():
    s, t = draw((3, 4, 6), 13), draw((3, 4, 9), 14)
    q, p = -np.sort(-softmax(s / 2, -1), -1), -np.sort(-softmax(t / 3, -1), -1)
    expected = np.abs(np.pad(q, [(0, 0), (0, 0), (0, 3)]) - p).sum(-1)
    options = {"student_temperature": 2.0, "teacher_temperature": 3.0}
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(uld, s, t, **options), expected, rtol=1e-12)
        shuffled = run(uld, s[..., [3, 1, 5, 0, 2, 4]], t[..., ::-1], **options)
        np.testing.assert_allclose(shuffled, expected, rtol=1e-12)
        back = run(uld, t, s, student_temperature=3.0, teacher_temperature=2.0)
        np.testing.assert_allclose(back, expected, rtol=1e-12)
        padded = np.concatenate([s, np.full((3, 4, 2), -np.inf)], -1)
        np.testing.assert_allclose(run(uld, padded, s), np.zeros((3, 4)), atol=1e-15)


def test_uld_of_answers_walks_both_spans():
    s, t = draw((4, 5, 6), 15), draw((4, 7, 8), 16)
    spans = np.array([1, 0, 4, 2]), np.array([3, 5, 1, 0]), np.array([0, 3, 6, 2]), np.array([5, 4, 1, 2])
    q, p = np.pad(-np.sort(-softmax(s / 2, -1), -1), [(0, 0), (0, 0), (0, 2)]), -np.sort(-softmax(t, -1), -1)
    expected = np.zeros(4)
    for b, (i, n, j, m) in enumerate(zip(*spans, strict=True)):
        k = min(n, m)
        expected[b] = 1.5 * np.abs(q[b, i : i + k] - p[b, j : j + k]).sum() / max(k, 1)
    with jax.enable_x64(True):
        value = run(uld_answers, s, t, *spans, student_temperature=2.0, weight=1.5)
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_what_does_not_fit_is_named():
    s = np.zeros((4, 9), np.float32)
    with pytest.raises(ValueError, match=r"\(4, 9\).*\(3, 9\).*only the vocabularies may differ"):
        run(uld, s, s[:3])
    with pytest.raises(ValueError, match=r"\(4, 9\).*four \[B\]"):
        run(uld_answers, s, s, *[np.zeros(4, int)] * 4)
