"""Labels: the one rule for all losses that take them, and one class where a softmax needs two."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import labels, losses, testing
from jaxkd.testing import Draw

DECLARED = testing.declarations(losses)
IGNORING = [d for d in DECLARED if "ignore" in inspect.signature(d.loss).parameters]
LABELS = ("labels", "teacher_tokens")
B, K = 6, 7
LOGITS, OTHER = np.random.default_rng(0).standard_normal((2, B, K)).astype(np.float32)
CLASSES = np.array([0, 1, 2, 3, 4, 6])


@pytest.mark.parametrize("declared", IGNORING, ids=lambda d: d.name)
def test_a_label_to_ignore_gives_zero_and_nothing_of_its_row_counts(declared):
    call, inputs, fixed = declared.example(Draw())
    name = next(n for n in LABELS if n in inputs)
    inputs = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in inputs.items()}
    ignore = 255 if inputs[name].dtype == np.int32 else -9.0
    sides = {n: a for n, a in inputs.items() if a.dtype == np.float32 and n != name}

    @jax.jit
    def values_and_slopes(sides, others):
        def total(sides):
            values = call(**{**others, **sides}, **fixed, ignore=ignore)
            return jnp.sum(values), values

        slopes, values = jax.grad(total, has_aux=True)(sides)
        return values, slopes

    def run(sides, label):
        values, slopes = values_and_slopes(sides, {**inputs, name: label})
        return np.asarray(values), [np.asarray(g) for g in slopes.values()]

    whole, _ = run(sides, inputs[name])
    label = inputs[name].copy()
    label[0] = ignore
    broken = {n: np.concatenate([np.full_like(a[:1], np.nan), a[1:]]) for n, a in sides.items()}
    for given in (sides, broken):
        values, slopes = run(given, label)
        if values.ndim:
            assert values[0] == 0
            np.testing.assert_allclose(values[1:], whole[1:], rtol=1e-6)
        else:
            left = {n: a[1:] for n, a in {**inputs, **sides}.items()}
            np.testing.assert_allclose(values, call(**left, **fixed), rtol=1e-5)
        assert all((g[0] == 0).all() and np.isfinite(g).all() for g in slopes)
    values, slopes = run(sides, np.full_like(label, ignore))
    assert (values == 0).all()
    assert all((g == 0).all() for g in slopes)


def test_every_loss_on_labels_can_ignore_one():
    assert {d.name for d in DECLARED if set(LABELS) & set(d.takes)} == {d.name for d in IGNORING}


# Shifts change neither a softmax nor, without one, channels of features and margins between scores.
OF_A_SOFTMAX = [
    d
    for d in DECLARED
    if testing.SHIFT_INVARIANT in d.properties
    and not {"student_feature", "student_scores"} & set(d.example(Draw()).inputs)
]


@pytest.mark.parametrize("declared", OF_A_SOFTMAX, ids=lambda d: d.name)
def test_a_softmax_over_one_class_is_refused(declared):
    call, inputs, fixed = declared.example(Draw())
    logits = next(iter(inputs.values()))
    one = {n: a[..., :1] if a.shape == logits.shape else a for n, a in inputs.items()}
    with pytest.raises(ValueError, match=r"a softmax over one class is always 1.*losses\.binary_cross_entropy"):
        jax.eval_shape(functools.partial(call, **fixed), **one)


@pytest.mark.parametrize("loss", [losses.logits_mse, losses.binary_kd])
def test_losses_without_a_softmax_take_one_output(loss):
    assert jax.eval_shape(loss, LOGITS[:, :1], OTHER[:, :1]).shape == (B,)


@pytest.mark.parametrize("kind", [np.uint8, np.int64, bool, list])
def test_labels_of_every_integer_kind_are_the_same(kind):
    y = CLASSES % 2
    given = y.tolist() if kind is list else y.astype(kind)
    expected = losses.cross_entropy(LOGITS, y.astype(np.int32))
    np.testing.assert_array_equal(losses.cross_entropy(LOGITS, given), expected)
    np.testing.assert_array_equal(losses.cross_entropy(LOGITS, np.asarray(given)[:, None]), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_label_is_another_class(smoothing):
    y = np.array([0, 1, -1, 255, K, 3], np.int32)
    found = np.asarray(losses.cross_entropy(LOGITS, y, label_smoothing=smoothing))
    np.testing.assert_array_equal(np.isnan(found), [False, False, True, True, True, False])
    assert np.isnan(losses.cross_entropy(LOGITS, np.uint8(CLASSES - 1), label_smoothing=smoothing)[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (CLASSES + 2**32, r"labels hold 4294967302, which would become another number in int32"),
        ([2**32 + 1] * B, "labels hold 4294967297"),
        (-CLASSES - 2**40, "labels hold -1099511627782"),
        (CLASSES.astype(np.uint64) + 2**33, "labels hold 8589934598, .* in uint32"),
        (CLASSES.astype(np.float32), r"dtype float32 .*integers of shape \(6,\).*squared_error"),
        (np.eye(K, dtype=np.int32)[CLASSES], r"shape \(6, 7\) and dtype int32.*argmax.*binary_cross_entropy"),
        (np.ones((B, K), np.float32), r"sum to 7 to 7: for several labels .*losses\.binary_cross_entropy"),
        (CLASSES[:3], r"labels have shape \(3,\) .*logits have shape \(6, 7\)"),
        (np.array(list("abcdef")), r"labels have dtype <U1, expected numbers"),
    ],
    ids=["wraps", "list wraps", "wraps below", "unsigned", "floats", "one-hot", "multi-hot", "short", "text"],
)
def test_labels_that_are_none_are_named(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        losses.cross_entropy(LOGITS, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ignore", [25.5, True, "255", 2**40, float("nan")])
def test_a_label_to_ignore_is_an_integer(ignore):
    with pytest.raises(ValueError, match=r"is no label: give one integer, such as 255, -1 or -100"):
        losses.cross_entropy(LOGITS, CLASSES, ignore=ignore)


def test_probabilities_that_are_none_are_nan_inside_a_program():
    y = np.full((B, K), 1 / K, np.float32)
    y[1], y[2] = 1, 0
    found = jax.jit(losses.cross_entropy)(LOGITS, y)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False, False, False])
    with pytest.raises(ValueError, match=r"ignore=255 names an integer label, but the labels are probabilities"):
        losses.cross_entropy(LOGITS, y, ignore=255)


def test_tokens_to_ignore_are_not_in_the_mean_of_a_sequence():
    z = np.random.default_rng(1).standard_normal((2, 3, K)).astype(np.float32)
    y = np.array([[1, 2, -100], [0, -100, -100]])
    each = np.asarray(losses.cross_entropy(z, np.maximum(y, 0)))
    on_sequences = losses.token_level(losses.cross_entropy)
    np.testing.assert_allclose(on_sequences(z, y, None, ignore=-100), [each[0, :2].mean(), each[1, 0]], rtol=1e-6)
    second = np.array([[0, 1, 1], [1, 1, 1]])
    np.testing.assert_allclose(on_sequences(z, y, second, ignore=-100), [each[0, 1], each[1, 0]], rtol=1e-6)


def test_arrays_on_a_device_pass_the_check_of_the_range():
    labels.check_range("labels", jnp.asarray([1, 2]))
    labels.check_range("labels", np.zeros(0, np.int64))
    labels.check_range("labels", np.array([2**32], np.float64))
    labels.check_range("labels", np.array([2**31 - 1, -(2**31)], np.int64))
