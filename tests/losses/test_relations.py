"""Relational losses: float64 twins from the papers, degenerate batches, and the relations between them."""

import functools
import itertools

import jax
import numpy as np
import pytest

from jaxkd.losses import relations

ALL = [
    relations.sp,
    relations.rkd_distance,
    relations.rkd_angle,
    relations.rkd,
    relations.cc,
    relations.cc_neighbours,
    relations.pkt,
    relations.dark_rank_hard,
    relations.dark_rank_soft,
]


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


@functools.cache
def compiled(loss):
    """The loss as one program for each shape, and one for value and gradient."""
    return jax.jit(loss), jax.jit(jax.value_and_grad(loss))


def in_float64(loss, *arrays):
    with jax.enable_x64(True):
        return float(compiled(loss)[0](*arrays))


def distances(x):
    return np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))


def numpy_pkt(student, teacher, keep_diagonal):
    def neighbours(x):
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = (x @ x.T + 1) / 2 * (1 if keep_diagonal else 1 - np.eye(len(x)))
        return kernel / kernel.sum(1, keepdims=True)

    p, q = neighbours(teacher), neighbours(student)
    return sum(p[i, j] * np.log(p[i, j] / q[i, j]) for i, j in np.argwhere(p > 0)) / len(p) ** 2


def numpy_ranking(scores):
    """Log-probability of the ranking 0, 1, 2, ... of the scores."""
    return sum(s - np.log(np.exp(scores[n:]).sum()) for n, s in enumerate(scores))


def numpy_dark_rank(student, teacher, alpha, beta, length, soft):
    s, t, total = distances(student), distances(teacher), 0.0
    for i in range(len(s)):
        nearest = [j for j in np.argsort(t[i]) if j != i][:length]
        s_scores, t_scores = (-alpha * d[i, nearest] ** beta for d in (s, t))
        for ranking in itertools.permutations(range(len(nearest))) if soft else ():
            log_s, log_t = numpy_ranking(s_scores[list(ranking)]), numpy_ranking(t_scores[list(ranking)])
            total += np.exp(log_t) * (log_t - log_s)
        total -= 0 if soft else numpy_ranking(s_scores)
    return total / len(s)


@pytest.mark.parametrize("keep_diagonal", [False, True])
def test_pkt_equals_its_numpy_twin_with_and_without_the_diagonal(keep_diagonal):
    s, t = draw((5, 4), 0), draw((5, 7), 1)
    value = in_float64(functools.partial(relations.pkt, keep_diagonal=keep_diagonal), s, t)
    np.testing.assert_allclose(value, numpy_pkt(s, t, keep_diagonal), rtol=1e-5)


def test_pkt_forgets_scale_and_stays_finite_for_opposite_examples():
    s, t = draw((6, 3), 2), draw((6, 4), 3)
    np.testing.assert_allclose(in_float64(relations.pkt, 3 * s, t / 7), in_float64(relations.pkt, s, t), rtol=1e-4)
    opposite = np.array([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]], np.float32) * np.float32(np.pi)
    value, gradient = compiled(relations.pkt)[1](opposite, draw((2, 3), 4).astype(np.float32))
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("alpha", "beta", "length"), [(3.0, 3.0, 4), (0.7, 1.5, 2), (1.0, 0.5, 9)])
def test_dark_rank_equals_its_numpy_twin(soft, alpha, beta, length):
    s, t = draw((6, 4), 5, 0.5), draw((6, 3), 6, 0.5)
    loss = relations.dark_rank_soft if soft else relations.dark_rank_hard
    value = in_float64(functools.partial(loss, alpha=alpha, beta=beta, length=length), s, t)
    np.testing.assert_allclose(value, numpy_dark_rank(s, t, alpha, beta, length, soft), rtol=1e-10)


def test_dark_rank_of_two_candidates_is_pairwise_logistic():
    s, t = draw((3, 4), 7, 0.5), draw((3, 4), 8, 0.5)
    d_s, d_t = distances(s), distances(t)
    gaps = []
    for i in range(3):
        near, far = (j for j in np.argsort(d_t[i]) if j != i)
        gaps.append(d_s[i, near] - d_s[i, far])
    value = in_float64(functools.partial(relations.dark_rank_hard, alpha=2.0, beta=1.0), s, t)
    np.testing.assert_allclose(value, np.mean(np.logaddexp(0, 2 * np.array(gaps))), rtol=1e-10)


def test_only_the_teachers_order_counts_for_hard_dark_rank():
    s, t = draw((5, 3), 9), draw((5, 3), 10)
    hard = functools.partial(relations.dark_rank_hard, alpha=0.5)
    np.testing.assert_array_equal(jax.jit(jax.grad(hard, argnums=1))(s, t), np.zeros_like(t))
    assert in_float64(hard, s, 2 * t) == in_float64(hard, s, t)
    soft = functools.partial(relations.dark_rank_soft, alpha=0.5)
    assert in_float64(soft, s, 2 * t) != in_float64(soft, s, t)


def test_the_gaussian_kernel_is_the_taylor_series_of_the_true_one():
    x = draw((5, 4), 11)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    true = np.exp(-0.4 * distances(x) ** 2)
    with jax.enable_x64(True):
        kernels = jax.jit(lambda x: [relations.gaussian_kernel(x, gamma=0.4, order=P) for P in (0, 2, 20)])(x)
    errors = [np.abs(np.asarray(kernel) - true).max() for kernel in kernels]
    assert errors[0] > 3 * errors[1] > 0
    assert errors[2] < 1e-12


def test_cc_is_the_mean_squared_difference_of_kernels_and_unsquared_on_request():
    s, t = draw((5, 4), 12), draw((5, 3), 13)
    bilinear = functools.partial(relations.cc, kernel=relations.bilinear_kernel)
    difference = s @ s.T - t @ t.T
    np.testing.assert_allclose(in_float64(bilinear, s, t), np.mean(difference**2), rtol=1e-12)
    unsquared = functools.partial(bilinear, squared=False)
    np.testing.assert_allclose(in_float64(unsquared, s, t), np.linalg.norm(difference) / 25, rtol=1e-12)
    np.testing.assert_array_equal(jax.jit(jax.grad(unsquared))(s, s), np.zeros_like(s))


def test_cc_neighbours_depends_on_the_order_of_the_batch():
    s, t = np.array([[3.0], [0.0], [1.0]]), np.zeros((3, 1))
    assert in_float64(relations.cc_neighbours, s, t) == 0
    assert in_float64(relations.cc_neighbours, s[[0, 2, 1]], t) == 1.5


def test_rkd_is_its_two_parts_weighted():
    s, t = draw((5, 4), 14), draw((5, 3), 15)
    distance, angle = in_float64(relations.rkd_distance, s, t), in_float64(relations.rkd_angle, s, t)
    np.testing.assert_allclose(in_float64(relations.rkd, s, t), 25 * distance + 50 * angle, rtol=1e-12)
    only_angle = functools.partial(relations.rkd, distance_weight=0.0, angle_weight=1.0)
    np.testing.assert_allclose(in_float64(only_angle, s, t), angle, rtol=1e-12)


def test_rkd_of_known_triangles():
    """A right isosceles triangle against an equilateral one."""
    right = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    equilateral = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    mean = (2 + np.sqrt(2)) / 3
    squares = 2 * (2 * (1 / mean - 1) ** 2 + (np.sqrt(2) / mean - 1) ** 2)
    np.testing.assert_allclose(in_float64(relations.rkd_distance, right, equilateral), squares / 2 / 9, rtol=1e-10)
    cosines = 2 * (0.5**2 + 2 * (np.sqrt(0.5) - 0.5) ** 2)
    np.testing.assert_allclose(in_float64(relations.rkd_angle, right, equilateral), cosines / 2 / 27, rtol=1e-10)


def test_feature_maps_are_flattened():
    s, t = draw((4, 2, 3, 2), 16), draw((4, 3, 5), 17)
    flattened = [loss for loss in ALL if loss is not relations.cc_neighbours]

    @jax.jit
    def both(s, t):
        return [[loss(*sides) for loss in flattened] for sides in ((s, t), (s.reshape(4, -1), t.reshape(4, -1)))]

    with jax.enable_x64(True):
        np.testing.assert_allclose(*both(s, t), rtol=1e-7)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)
def test_one_example_has_no_relations(loss):
    value, gradient = compiled(loss)[1](np.ones((1, 3), np.float32), np.full((1, 3), 2, np.float32))
    assert value == 0 or loss is relations.cc  # whose kernels relate an example to itself as well
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)
def test_batches_that_differ_are_named(loss):
    with pytest.raises(ValueError, match=r"features have shape \(4, 3\) but teacher features have shape \(5, 3\)"):
        loss(np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"give both \[B, ...\]"):
        loss(np.zeros(4), np.zeros(4))
