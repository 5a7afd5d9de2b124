"""Feature-map losses against float64 twins written from the papers, finite in hard places, and their relations."""

from functools import cache, partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import numerics
from jaxkd.losses import flows, maps
from jaxkd.losses.maps import ofd


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def run(loss, *arrays, **options):
    """The loss as one program: op by op, dispatch would take most of a test's time."""
    return np.asarray(jax.jit(partial(loss, **options))(*arrays))


@cache
def differentiated(loss):
    """(sides) -> value and gradients, compiled once for each shape."""
    return jax.jit(jax.value_and_grad(lambda sides: jnp.sum(loss(*sides))))


def loops_pool(x, size, reduce):
    """Adaptive pooling, window by window."""
    (H, W), (h, w) = x.shape[1:3], size
    rows = [slice(i * H // h, -(-(i + 1) * H // h)) for i in range(h)]
    columns = [slice(j * W // w, -(-(j + 1) * W // w)) for j in range(w)]
    return np.stack([np.stack([reduce(x[:, r, c], axis=(1, 2)) for c in columns], 1) for r in rows], 1)


@pytest.mark.parametrize("size", [(3, 2), (5, 7), (2, 7), (1, 1), (4, 3)])
def test_maps_are_pooled_to_the_smaller_one(size):
    x, y = draw(2, 5, 7, 3), draw(2, *size, 4, seed=1)
    match = jax.jit(numerics.match_resolution, static_argnums=2)
    for pool, reduce in ((numerics.adaptive_average_pool, np.mean), (flows._adaptive_max_pool, np.max)):
        for first, second in (match(x, y, pool), match(y, x, pool)[::-1]):
            np.testing.assert_allclose(first, loops_pool(x, size, reduce), rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(second, y)


def test_attention_transfer_adds_weighted_layers_of_any_size_and_power():
    s = [draw(3, 6, 4, 5), draw(3, 2, 2, 3)]
    t = [draw(3, 3, 2, 7, seed=1), draw(3, 2, 2, 9, seed=1)]
    expected = np.zeros(3)
    for w, a, b in zip((0.5, 2.0), s, t, strict=True):
        a = loops_pool(a.astype(np.float64), b.shape[1:3], np.mean)
        maps_ = [(np.abs(x.astype(np.float64)) ** 3).sum(-1).reshape(3, -1) for x in (a, b)]
        maps_ = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps_]
        expected += w * np.linalg.norm(maps_[0] - maps_[1], axis=1)
    np.testing.assert_allclose(run(maps.attention_transfer, s, t, p=3, weights=(0.5, 2.0)), expected, rtol=1e-5)


def test_released_attention_transfer_is_the_mean_square_and_keeps_the_sign_of_odd_powers():
    s, t = draw(3, 4, 5, 6), draw(3, 4, 5, 2, seed=1)
    norm, released = run(lambda s, t: [maps.attention_transfer(s, t, as_released=r) for r in (False, True)], s, t)
    np.testing.assert_allclose(released, norm**2 / 20, rtol=1e-5)
    norm, released = run(lambda s, t: [maps.attention_transfer(s, t, p=3, as_released=r) for r in (False, True)], s, -s)
    assert np.abs(released).min() > 1e-3
    np.testing.assert_allclose(norm, np.zeros(3), atol=1e-6)


def test_nst_is_the_squared_distance_of_mean_outer_products():
    """<x, y>^2 is the product of x x^T and y y^T, so the MMD has a closed form in their means."""
    s, t = draw(3, 4, 3, 5), draw(3, 4, 3, 8, seed=1)

    def moment(x):
        x = x.astype(np.float64).reshape(3, 12, -1)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x @ x.swapaxes(1, 2) / x.shape[2]

    expected = np.square(moment(s) - moment(t)).sum((1, 2))
    one, two = run(lambda s, t: [maps.nst(s, t), maps.nst([s, s], [t, t])], s, t)
    np.testing.assert_allclose(one, expected, rtol=1e-4)
    np.testing.assert_allclose(two, 2 * expected, rtol=1e-4)


def test_fsp_takes_the_maximum_by_default_and_sums_over_all_neighbours():
    s = [draw(2, 6, 5, 3), draw(2, 4, 3, 4), draw(2, 4, 3, 2)]
    t = [draw(2, 3, 3, 3, seed=1), draw(2, 5, 5, 4, seed=1), draw(2, 2, 2, 2, seed=1)]

    def flow(x, y, reduce):
        size = tuple(np.minimum(x.shape[1:3], y.shape[1:3]))
        x, y = (loops_pool(a.astype(np.float64), size, reduce).reshape(2, -1, a.shape[-1]) for a in (x, y))
        return x.swapaxes(1, 2) @ y / x.shape[1]

    for max_pool, reduce in ((True, np.max), (False, np.mean)):
        pairs = [[flow(*side[i : i + 2], reduce) for side in (s, t)] for i in (0, 1)]
        expected = sum(np.square(a - b).mean((1, 2)) for a, b in pairs)
        np.testing.assert_allclose(run(flows.fsp, s, t, max_pool=max_pool), expected, rtol=1e-4)


def test_ab_asks_for_the_teachers_side_by_a_margin():
    s, t = np.array([[2.0, 0.5, -3.0, 3.0, 0.0]], np.float32), np.array([[1.0, 1.0, -1.0, 0.0, 0.0]], np.float32)
    ab, wider = jax.jit(maps.ab), jax.jit(partial(maps.ab, margin=2.0))
    np.testing.assert_allclose(ab(s, t), [0 + 0.25 + 0 + 16 + 1])
    np.testing.assert_allclose(wider(s, t), [0 + 2.25 + 0 + 25 + 4])
    far = np.where(t > 0, 5, -5).astype(np.float32)
    np.testing.assert_array_equal(ab(far, t), [0])
    np.testing.assert_array_equal(ab(s, 7 * t), ab(s, t))


def test_ab_as_released_halves_earlier_layers():
    s, t = draw(2, 3, 3, 4), draw(2, 3, 3, 4, seed=1)
    layers = [s] * 3, [t] * 3
    one, three, released = run(lambda: [maps.ab(s, t), maps.ab(*layers), maps.ab(*layers, as_released=True)])
    np.testing.assert_allclose(released, 3e-3 * 1.75 * one, rtol=1e-5)
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)


def test_ft_equals_its_twin_and_the_benchmarks_form_loses_the_channels():
    s, t = draw(3, 2, 4, 5), draw(3, 2, 4, 5, seed=1)
    a, b = (x.reshape(3, -1).astype(np.float64) for x in (s, t))
    difference = a / np.linalg.norm(a, axis=1, keepdims=True) - b / np.linalg.norm(b, axis=1, keepdims=True)
    powers = (1, 2, 3)
    for p, value in zip(powers, run(lambda s, t: [maps.ft(s, t, p=n) for n in powers], s, t), strict=True):
        np.testing.assert_allclose(value, (np.abs(difference) ** p).mean(1), rtol=1e-4)
    whole, benchmark = run(lambda s, t: [loss(s, t) for loss in (maps.ft, maps.ft_repdistiller)], s, s[..., ::-1])
    assert np.abs(whole).min() > 1e-3
    np.testing.assert_allclose(benchmark, np.zeros(3), atol=1e-6)
    square, released = run(
        lambda s, t: [maps.ft_repdistiller(s, t, p2=2), maps.attention_transfer(s, t, as_released=True)], s, t
    )
    np.testing.assert_allclose(square, released, rtol=1e-5)


@pytest.mark.parametrize("loss", [maps.ft, maps.ft_repdistiller, maps.attention_transfer, maps.nst, ofd])
def test_the_gradient_at_equal_sides_is_zero_where_nothing_is_rounded_apart(loss):
    s = draw(2, 3, 3, 4)
    margin = (np.full(4, -0.5, np.float32),) if loss is ofd else ()
    # One array for both sides, so that the compiler cannot round them apart.
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(loss(x, jax.lax.stop_gradient(x), *margin))))(s)
    np.testing.assert_allclose(gradient, np.zeros_like(s), atol=1e-7)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
@pytest.mark.parametrize(
    "loss", [maps.attention_transfer, maps.nst, maps.ab, maps.ft, maps.ft_repdistiller, flows.fsp, flows.kdsvd]
)
def test_value_and_gradients_are_finite_at_any_scale(loss, scale):
    s, t = (draw(3, 4, 4, 5, seed=i, scale=scale) for i in (0, 1))
    several = loss in (flows.fsp, flows.kdsvd)
    one, other = ([x, x[..., ::2, :3]] if several else x for x in (s, t))
    for sides in ((one, other), (one, one), (jax.tree.map(np.ones_like, one), other)):
        found = differentiated(loss)(sides)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def numpy_kdsvd(student, teacher, k):
    """One example, float64, layer by layer."""
    vectors = []
    for s, t in zip(student, teacher, strict=True):
        _, sigma, v_t = np.linalg.svd(t.reshape(-1, t.shape[-1]).astype(np.float64), full_matrices=False)
        _, _, v_s = np.linalg.svd(s.reshape(-1, s.shape[-1]).astype(np.float64), full_matrices=False)
        scale = sigma[:k] / np.linalg.norm(sigma[:k])
        pair = []
        for j in range(k):
            v = v_t[j] * np.sign(v_t[j][np.abs(v_t[j]).argmax()])
            products = v_s[: k + 3] @ v
            best = np.abs(products).argmax()
            pair.append((scale[j] * np.sign(products[best]) * v_s[best], scale[j] * v))
        vectors.append(pair)
    total = 0.0
    for below, above in pairwise(vectors):
        for side_below, side_above in zip(below, above, strict=True):
            R = [np.exp(-((y[:, None] - x[None]) ** 2) / 8) for x, y in zip(side_below, side_above, strict=True)]
            total += np.square(R[0] - R[1]).sum()
    return total


@pytest.mark.parametrize("k", [1, 2, 3])
def test_kdsvd_equals_its_twin(k):
    shapes = [(2, 3, 4, 7), (2, 2, 2, 9), (2, 3, 1, 4)]
    s = [draw(*shape) for shape in shapes]
    t = [draw(shape[0], 5, 3, shape[-1], seed=1) for shape in shapes]
    with jax.enable_x64(True):
        value = run(flows.kdsvd, *jax.tree.map(lambda x: x.astype(np.float64), (s, t)), k=k)
    twins = [numpy_kdsvd([x[b] for x in s], [x[b] for x in t], k) for b in range(2)]
    np.testing.assert_allclose(value, twins, rtol=1e-9)


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 6), (2, 4, 4)])
def test_derivatives_of_singular_vectors_are_those_of_finite_differences(shape):
    with jax.enable_x64(True):
        x, dx = (draw(*shape, seed=i).astype(np.float64) for i in (0, 1))
        parts = jax.eval_shape(flows._svd, x)
        weights = [draw(*part.shape, seed=2).astype(np.float64) for part in parts]

        @jax.jit
        @jax.value_and_grad
        def f(x):
            """Squares, for the vectors' signs are arbitrary."""
            sigma, v = flows._svd(x)
            return jnp.sum(sigma * weights[0]) + jnp.sum(v**2 * weights[1])

        derivative = np.sum(f(x)[1] * dx)
        np.testing.assert_allclose(derivative, (f(x + 1e-6 * dx)[0] - f(x - 1e-6 * dx)[0]) / 2e-6, rtol=1e-6)


ROTATIONS = [np.linalg.qr(np.random.default_rng(n).standard_normal((n, n)))[0] for n in (4, 3)]


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((4, 3)),
        np.eye(4)[:, :3],
        ROTATIONS[0][:, :3] @ np.diag([2, 2, 1]) @ ROTATIONS[1],
        np.ones((4, 3)),
        np.ones((2, 5)),
        np.diag([2, 2, 1e-9]),
    ],
    ids=["zeros", "equal values", "equal up to rounding", "rank one", "rank one, wide", "equal and tiny"],
)
def test_kdsvd_is_calm_at_equal_and_zero_singular_values(matrix):
    degenerate = matrix.astype(np.float32)[None, :, None]
    other = draw(*degenerate.shape)
    for s, t in ((degenerate, other), (other, degenerate), (degenerate, degenerate)):
        value, gradients = differentiated(flows.kdsvd)(([s, other], [t, other]))
        assert np.isfinite(value)
        assert all(np.abs(g).max() < 1e3 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "hyper", "message"),
    [
        (maps.attention_transfer, [draw(2, 3, 3, 4)] * 2, [draw(2, 3, 3, 4)], {}, "2 layers of the student, 1 of the"),
        (maps.attention_transfer, draw(2, 3, 3, 4), draw(2, 3, 3, 4), {"weights": [1, 2]}, "2 weights"),
        (maps.nst, draw(2, 3, 3, 4), draw(3, 3, 3, 4), {}, r"\(2, 3, 3, 4\) and \(3, 3, 3, 4\): give two"),
        (maps.ab, draw(2, 3, 3, 4), draw(2, 3, 3, 5), {}, r"\(2, 3, 3, 4\).*\(2, 3, 3, 5\)"),
        (maps.ft, draw(2, 3, 3, 4), draw(2, 3, 4, 4), {}, r"\(2, 3, 3, 4\).*\(2, 3, 4, 4\)"),
        (maps.ft_repdistiller, draw(2, 3), draw(2, 3), {}, r"\(2, 3\) and \(2, 3\): give two"),
        (flows.fsp, [draw(2, 3, 3, 4)], [draw(2, 3, 3, 4)], {}, "at least two layers"),
        (flows.fsp, [draw(2, 3, 3, 4)] * 2, [draw(2, 3, 3, 5)] * 2, {}, "same batch and channels"),
        (flows.kdsvd, [draw(2, 1, 2, 4)] * 2, [draw(2, 1, 2, 4)] * 2, {"k": 3}, "k is 3.*1 x 2 positions.*has 2 sing"),
    ],
)
def test_shapes_that_do_not_fit_are_named(loss, student, teacher, hyper, message):
    with pytest.raises(ValueError, match=message):
        loss(student, teacher, **hyper)
