"""Losses in transformers against numpy twins, the masks they must respect, and the relations between them."""

import jax
import numpy as np
import optax
import pytest
from losses.programs import differentiated, run

from jaxkd import numerics
from jaxkd.losses import transformers

MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True):
        yield


def draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_hidden_mse_under_a_mask_is_the_mean_over_real_tokens():
    s, t = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    value = transformers.hidden_mse(s, t)
    np.testing.assert_allclose(value, np.square(s - t).mean(-1), rtol=1e-12)
    np.testing.assert_allclose(run(numerics.masked_mean, value, MASK), np.square(s - t)[MASK == 1].mean(), rtol=1e-12)


def test_attention_mse_under_a_mask_is_the_mean_over_heads_and_pairs_of_real_tokens():
    s, t = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    total = count = 0
    for b, n in enumerate(MASK.sum(1)):
        total += np.square(s - t)[b, :, :n, :n].sum()
        count += 2 * n * n

    def masked(s, t, mask):
        return numerics.masked_mean(transformers.attention_mse(s, t), transformers.pair_mask(mask))

    value = run(masked, s, t, MASK)
    np.testing.assert_allclose(value, total / count, rtol=1e-12)


def test_attention_mse_leaves_out_the_scores_of_padding():
    s, t = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    padded = MASK[:, None, None, :] == 0
    want = np.where(padded, 0, np.square(s - t)).mean(1)
    masked = [np.where(padded, -np.inf, x) for x in (s, t)]
    np.testing.assert_allclose(run(transformers.attention_mse, *masked), want, rtol=1e-12)
    _, (gradient,) = differentiated(transformers.attention_mse, 0)(*masked)
    assert np.all(np.isfinite(gradient))
    biased = [np.where(padded, x - 1e4, x) for x in (s, t)]
    np.testing.assert_allclose(run(transformers.attention_mse, *biased, padding_score=-100.0), want, rtol=1e-12)
    one_side = run(transformers.attention_mse, biased[0], t, padding_score=-100.0)
    np.testing.assert_allclose(one_side, np.square(np.where(padded, 0, s) - t).mean(1), rtol=1e-12)


@pytest.mark.parametrize(("S", "N"), [(1, 3), (2, 4), (3, 3)])
def test_tinybert_pairs_each_student_layer_with_every_gth_of_the_teacher(S, N):
    a_s, a_t = draw(2, S, 3, 4, 4), draw(2, N, 3, 4, 4, seed=1)
    h_s, h_t = draw(2, S + 1, 4, 5), draw(2, N + 1, 4, 5, seed=1)
    a_t[:, :, :, :, -1] -= 1e4
    a_s[:, :, :, :, -1] -= 2e4
    g = N // S
    want = np.zeros(2)
    for i in range(S):
        want += np.square(a_s[:, i, :, :, :-1] - a_t[:, i * g + g - 1, :, :, :-1]).sum((1, 2, 3)) / (3 * 4 * 4)
    for i in range(S + 1):
        want += np.square(h_s[:, i] - h_t[:, i * g]).mean((1, 2))
    np.testing.assert_allclose(run(transformers.tinybert, a_s, a_t, h_s, h_t), want, rtol=1e-12)


def test_tinybert_under_a_mask_is_the_mean_over_real_tokens_and_their_pairs():
    S, N = 2, 4
    a_s, a_t = draw(3, S, 2, 4, 4), draw(3, N, 2, 4, 4, seed=1)
    h_s, h_t = draw(3, S + 1, 4, 5), draw(3, N + 1, 4, 5, seed=1)
    want = np.zeros(3)
    for b, n in enumerate(MASK.sum(1)):
        want[b] = np.square(a_s - a_t[:, 1::2])[b, ..., :n, :n].sum() / (2 * n * n)
        want[b] += np.square(h_s - h_t[:, ::2])[b, :, :n].sum() / (5 * n)
    np.testing.assert_allclose(run(transformers.tinybert, a_s, a_t, h_s, h_t, MASK), want, rtol=1e-12)
    loss, empty = differentiated(transformers.tinybert, 0, 2), MASK * np.array([[1], [1], [0]])
    total, gradients = loss(a_s, a_t, h_s, h_t, empty)
    np.testing.assert_allclose(total, want[:2].sum(), rtol=1e-12)
    padded = [np.where(empty[:, None, :, None] > 0, x, np.nan) for x in (h_s, h_t)]
    same, found = loss(a_s, a_t, *padded, empty)
    np.testing.assert_array_equal(same, total)
    for a, b in zip(gradients, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tinybert_names_layers_that_do_not_match():
    with pytest.raises(ValueError, match=r"\(1, 2, 1, 4, 4\) and \(1, 3, 1, 4, 4\).*multiple"):
        transformers.tinybert(draw(1, 2, 1, 4, 4), draw(1, 3, 1, 4, 4), draw(1, 3, 4, 5), draw(1, 4, 4, 5))
    with pytest.raises(ValueError, match=r"hidden \(1, 2, 4, 5\).*one layer more"):
        transformers.tinybert(draw(1, 2, 1, 4, 4), draw(1, 2, 1, 4, 4), draw(1, 2, 4, 5), draw(1, 3, 4, 5))


def test_cosine_equals_optax_and_spans_0_to_2():
    s, t = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    np.testing.assert_allclose(run(transformers.cosine, s, t), 1 - run(optax.cosine_similarity, s, t), rtol=1e-9)
    np.testing.assert_allclose(run(transformers.cosine, s, 3 * s), np.zeros((3, 4)), atol=1e-11)
    np.testing.assert_allclose(run(transformers.cosine, s, -s), np.full((3, 4), 2), rtol=1e-11)
    short = np.array([[[1e-6, 0.0]]])  # whose square is the 1e-12 under the root
    np.testing.assert_allclose(transformers.cosine(short, np.array([[[1.0, 0.0]]])), 1 - np.sqrt(0.5), rtol=1e-9)


def test_pkd_normalised_is_the_cosine_distance_and_otherwise_the_plain_one():
    s, t = draw(3, 2, 5), draw(3, 2, 5, seed=1)
    np.testing.assert_allclose(run(transformers.pkd, s, t), 2 / 5 * run(transformers.cosine, s, t).mean(1), rtol=1e-9)
    np.testing.assert_allclose(run(transformers.pkd, s, t, normalized=False), np.square(s - t).mean((1, 2)), rtol=1e-12)


def numpy_relation_kl(student, teacher, m, n, heads, lengths):
    values = []
    for s, t, length in zip(student, teacher, lengths, strict=True):
        total = 0.0
        for a in range(heads):
            R = []
            for x in (t, s):
                d = x.shape[-1] // heads
                rows, columns = (x[k - 1, :length, a * d : (a + 1) * d] for k in (m, n))
                R.append(softmax(rows @ columns.T / np.sqrt(d)))
            total += (R[0] * np.log(R[0] / R[1])).sum()
        values.append(total / (heads * length))
    return np.array(values)


@pytest.mark.parametrize("widths", [(6, 6), (6, 12)])
def test_minilm_equals_its_numpy_twin_with_masked_tokens(widths):
    s, t = draw(3, 3, 4, widths[0]), draw(3, 3, 4, widths[1], seed=1)
    lengths = MASK.sum(1)
    qk, vv, kq = (numpy_relation_kl(s, t, m, n, 3, lengths) for m, n in ((1, 2), (3, 3), (2, 1)))
    np.testing.assert_allclose(run(transformers.minilm, s, t, MASK, attention_heads=3), qk + vv, rtol=1e-10)
    v2 = run(transformers.minilmv2, s, t, MASK == 1, relations=((2, 1, 0.25), (3, 3, 2.0)), relation_heads=3)
    np.testing.assert_allclose(v2, 0.25 * kq + 2 * vv, rtol=1e-10)


def test_minilmv2_weighs_its_three_relations_alike_and_needs_no_mask():
    s, t = draw(3, 3, 4, 48), draw(3, 3, 4, 96, seed=1)
    want = sum(numpy_relation_kl(s, t, m, m, 48, [4] * 3) for m in (1, 2, 3)) / 3
    np.testing.assert_allclose(run(transformers.minilmv2, s, t), want, rtol=1e-10)


def test_minilm_neither_sees_padding_nor_breaks_where_all_is_padding():
    s, t = draw(3, 3, 4, 12), draw(3, 3, 4, 12, seed=1)
    other = [np.where(MASK[:, None, :, None] == 1, x, 7 * x + 1) for x in (s, t)]
    values = run(transformers.minilm, s, t, MASK)
    np.testing.assert_allclose(run(transformers.minilm, *other, MASK), values, rtol=1e-12)
    empty = MASK * np.array([1, 0, 1])[:, None]
    values = run(transformers.minilm, s, t, empty)
    assert values[1] == 0
    assert np.all(np.isfinite(values))
    grad = np.asarray(differentiated(transformers.minilm, 0)(s, t, empty)[1][0])
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(np.any(grad != 0, axis=(1, 3)), empty == 1)


def test_minilm_names_shapes_and_heads_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(3, 3, 4, 12\) and \(3, 4, 12\).*\[B, 3, L, D\]"):
        transformers.minilm(draw(3, 3, 4, 12), draw(3, 4, 12))
    with pytest.raises(ValueError, match=r"48 relation heads do not divide.*\(3, 3, 4, 12\)"):
        transformers.minilmv2(draw(3, 3, 4, 12), draw(3, 3, 4, 48))


def test_vitkd_mimics_low_layers_and_generates_the_masked_tokens_only():
    low_s, low_t, high_s, high_t = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1), draw(3, 4, 5), draw(3, 4, 5, seed=1)
    mimic = np.square(low_s - low_t).sum((1, 2, 3))
    generate = (MASK * np.square(high_s - high_t).sum(-1)).sum(1)
    arrays = (low_s, low_t, high_s, high_t, MASK)
    np.testing.assert_allclose(run(transformers.vitkd, *arrays), 3e-5 * mimic + 6e-6 * generate, rtol=1e-12)
    value = run(transformers.vitkd, *arrays, alpha=2.0, beta=3.0, lam=0.25)
    np.testing.assert_allclose(value, 2 * mimic + 12 * generate, rtol=1e-12)
    with pytest.raises(ValueError, match=r"mask has shape \(3, 3\).*\(3, 4, 5\)"):
        transformers.vitkd(low_s, low_t, high_s, high_t, MASK[:, :3])


@pytest.mark.parametrize("name", ["hidden_mse", "attention_mse", "cosine", "pkd"])
def test_shapes_that_do_not_fit_are_named(name):
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 4\).*\(2, 4, 4, 8\)"):
        getattr(transformers, name)(draw(2, 4, 4, 4), draw(2, 4, 4, 8))
