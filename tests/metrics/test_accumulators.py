"""Each metric equals its float64 twin in numpy, whatever stands in the padding and however the split is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metrics.twins import ALL, K, add, case, measure, twin

from jaxkd import metrics
from jaxkd.types import Outputs


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(40,), (1,), (6, 7)], ids=str)
def test_metric_equals_its_twin(name, shape):
    s, t, y = case(shape)
    expected = twin(name, s, t, y)
    np.testing.assert_allclose(measure(name, s, t, y).value(), expected, rtol=1e-5, atol=1e-6)
    if shape == (40,):
        assert 0.01 < expected < 10  # nothing that a constant would pass


@pytest.mark.parametrize("name", ALL)
def test_metric_is_the_same_under_jit(name):
    s, t, y = case()
    op_by_op = ALL[name](Outputs(jnp.asarray(s)), Outputs(jnp.asarray(t)), {"label": y})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), measure(name, s, t, y), op_by_op)


@pytest.mark.parametrize("name", ALL)
def test_metric_of_half_precision_is_computed_in_float32(name):
    s, t, y = case()
    half = [x.astype(jnp.bfloat16) for x in (s, t)]
    s, t = (x.astype(np.float32) for x in half)
    np.testing.assert_allclose(measure(name, *half, y).value(), measure(name, s, t, y).value(), rtol=1e-6)


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("name", ALL)
def test_padding_never_counts_whatever_stands_there(name, rubbish):
    s, t, y = case((12,))
    mask = np.arange(16) < 12
    padded = [np.concatenate([x, np.full((4, K), rubbish, np.float32)]) for x in (s, t)]
    labels = np.concatenate([y, np.asarray([0, K - 1, K + 9, -1], np.int32)])
    for kind in (bool, np.float32):  # a product with a mask of booleans the compiler turns into a choice
        found = measure(name, *padded, labels, mask=mask.astype(kind))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, measure(name, s, t, y))


@pytest.mark.parametrize(
    "mask", [np.asarray([1, 0, 1]), np.asarray([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])], ids=str
)
@pytest.mark.parametrize("dtype", [bool, np.float32, np.int32])
@pytest.mark.parametrize("name", ALL)
def test_mask_covers_examples_or_tokens(name, dtype, mask):
    s, t, y = case((3, 4))
    expected = twin(name, s, t, y, mask.reshape(3, -1))
    found = measure(name, s, t, y, mask=mask.astype(dtype))
    np.testing.assert_allclose(found.value(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_mask_may_hold_weights_that_sum_to_less_than_one(name):
    s, t, y = case((5,))
    weight = np.asarray([0.1, 0.2, 0.0, 0.05, 0.3], np.float32)
    found = measure(name, s, t, y, mask=weight)
    np.testing.assert_allclose(found.value(), twin(name, s, t, y, weight), rtol=1e-5)
    np.testing.assert_allclose(np.sum(found.count), 0.65, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_metric_of_nothing_is_zero(name):
    found = measure(name, *case((3,)), mask=np.zeros(3, bool))
    assert found.value() == 0
    if name == "ece":
        assert not any(np.any(b) for b in found.bins().values())


@pytest.mark.parametrize("name", ALL)
def test_uneven_batches_add_up_to_the_whole(name):
    s, t, y = case()
    cuts = [slice(0, 16), slice(16, 17), slice(17, 40)]
    total = add([measure(name, s[c], t[c], y[c]) for c in cuts])
    np.testing.assert_allclose(total.value(), twin(name, s, t, y), rtol=1e-5)
    means = np.mean([measure(name, s[c], t[c], y[c]).value() for c in cuts])
    assert abs(means - twin(name, s, t, y)) > 1e-3  # which a mean of means is not


@pytest.mark.parametrize("name", ALL)
def test_stacked_students_are_measured_each_by_itself(name):
    students = [case(seed=i) for i in range(3)]
    y, t = students[0][2], students[0][1]
    stacked = jax.vmap(lambda s: measure(name, s, t, y))(np.stack([s for s, *_ in students]))
    value = stacked.value()
    assert value.shape == (3,)
    np.testing.assert_allclose(value, [twin(name, s, t, y) for s, *_ in students], rtol=1e-5)


def test_values_keeps_the_names():
    s, t, y = case()
    accumulated = {name: measure(name, s, t, y) for name in ("ece", "accuracy")}
    found = metrics.values(accumulated)
    assert list(found) == ["ece", "accuracy"]
    for name, value in found.items():
        assert isinstance(float(value), float)
        np.testing.assert_allclose(value, twin(name, s, t, y), rtol=1e-5)
    stacked = metrics.values(jax.tree.map(lambda x: np.stack([x, 2 * x, x]), accumulated))
    np.testing.assert_allclose(stacked["ece"], [found["ece"]] * 3, rtol=1e-6)
    assert metrics.values({}) == {}
