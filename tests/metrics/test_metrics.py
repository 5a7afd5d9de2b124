"""Each metric equals its float64 twin in numpy, whatever stands in the padding and however the split is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.types import Outputs

K = 6


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def classes(label, logits):
    return label if label.ndim < logits.ndim else label.argmax(axis=-1)


def accuracy(s, t, y):
    return s.argmax(axis=-1) == classes(y, s)


def top_2(s, t, y):
    best = np.argsort(-s, axis=-1)[..., :2]
    return (best == classes(y, s)[..., None]).any(axis=-1)


def nll(s, t, y):
    return -np.log(np.take_along_axis(softmax(s), y[..., None], axis=-1)[..., 0])


def agreement(s, t, y):
    return s.argmax(axis=-1) == t.argmax(axis=-1)


def kl(s, t, y):
    p, q = softmax(t), softmax(s)
    return (p * np.log(p / q)).sum(axis=-1)


def ece(s, t, y, weight, bins=15):
    """Bin by bin: ((m - 1) / M, m / M]."""
    confidence, hit = softmax(s).max(axis=-1), accuracy(s, t, y)
    total = 0.0
    for m in range(bins):
        w = weight * (confidence > m / bins) * (confidence <= (m + 1) / bins)
        if w.sum():
            total += w.sum() * abs((w * hit).sum() / w.sum() - (w * confidence).sum() / w.sum())
    return total / weight.sum()


def total_variation(s, t, y):
    return np.abs(softmax(s) - softmax(t)).sum(axis=-1) / 2


def agreement_at_3(s, t, y):
    best = [np.argsort(-z, axis=-1)[..., :3].reshape(-1, 3) for z in (s, t)]
    return np.array([len(set(a) & set(b)) / 3 for a, b in zip(*best, strict=True)]).reshape(s.shape[:-1])


def brier(s, t, y):
    return ((softmax(s) - np.eye(K)[y]) ** 2).sum(axis=-1)


# Each metric, and its value of every example in float64.
TWINS = {
    "accuracy": (metrics.accuracy, accuracy),
    "top_2": (metrics.top_k(2), top_2),
    "nll": (metrics.nll, nll),
    "agreement": (metrics.agreement, agreement),
    "kl": (metrics.kl_to_teacher, kl),
    "total_variation": (metrics.total_variation, total_variation),
    "agreement_at_3": (metrics.agreement_at(3), agreement_at_3),
    "brier": (metrics.brier, brier),
}
ALL = {**{name: metric for name, (metric, _) in TWINS.items()}, "ece": metrics.calibration()}

SOFT = ("accuracy", "top_2", "ece")  # those that take soft labels


def twin(name, s, t, y, weight=None):
    weight = np.ones(s.shape[:-1]) if weight is None else np.broadcast_to(weight, s.shape[:-1]).astype(np.float64)
    s, t = s.astype(np.float64), t.astype(np.float64)
    if name == "ece":
        return ece(s, t, y, weight)
    return (TWINS[name][1](s, t, y) * weight).sum() / weight.sum()


def case(shape=(40,), seed=0):
    """Logits of a student and a teacher that is close to it, labels that are often right."""
    rng = np.random.default_rng(seed)
    s = rng.normal(0, 2, (*shape, K)).astype(np.float32)
    t = s + rng.normal(0, 1, s.shape).astype(np.float32)
    return s, t, (s + rng.normal(0, 2, s.shape)).argmax(axis=-1).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def measure_all(names, student, teacher, batch):
    return {name: ALL[name](Outputs(student), Outputs(teacher), batch) for name in names}


def measure(name, s, t, y, **fields):
    """One metric, from a program of all that take such labels, which is compiled once for each shape."""
    names = tuple(ALL) if np.ndim(y) < np.ndim(s) else SOFT
    return measure_all(names if name in names else (name,), s, t, {"label": y, **fields})[name]


def add(parts):
    return functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), parts)


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


# --- masks ---


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


# --- accumulation ---


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


def test_groups_hold_what_their_names_say():
    assert set(metrics.CLASSIFICATION) == {"accuracy", "nll", "ece"}
    assert set(metrics.DISTILLATION) == {"accuracy", "nll", "ece", "agreement", "kl"}
    s, t, y = case()
    for name, metric in metrics.DISTILLATION.items():
        found = metric(Outputs(s), Outputs(t), {"label": y}).value()
        np.testing.assert_allclose(found, twin(name, s, t, y), rtol=1e-5)
    for metric in metrics.CLASSIFICATION.values():
        metric(Outputs(s), Outputs(None), {"label": y})  # needs no teacher


# --- labels ---


@pytest.mark.parametrize("shape", [(40,), (5, 4)], ids=str)
@pytest.mark.parametrize("name", SOFT)
def test_soft_labels_count_by_their_largest_entry(name, shape):
    s, t, y = case(shape)
    soft = (0.6 * np.eye(K)[y] + 0.4 * np.random.default_rng(1).dirichlet(np.ones(K), shape)).astype(np.float32)
    np.testing.assert_allclose(measure(name, s, t, soft).value(), measure(name, s, t, y).value(), rtol=1e-6)
    np.testing.assert_allclose(measure(name, s, t, soft).value(), twin(name, s, t, soft), rtol=1e-5)


def test_likelihood_of_soft_labels_is_refused():
    s, t, _ = case((3,))
    with pytest.raises(ValueError, match=r"labels have shape \(3, 6\) .* give integers of shape \(3,\)"):
        measure("nll", s, t, softmax(s))


@pytest.mark.parametrize("k", [1, 2, 3, K, K + 4])
def test_top_k_lies_between_accuracy_and_one(k):
    s, t, y = case()
    found = metrics.top_k(k)(Outputs(s), Outputs(t), {"label": y}).value()
    rank = (s > np.take_along_axis(s, y[:, None], axis=-1)).sum(axis=-1)
    np.testing.assert_allclose(found, np.mean(rank < k), rtol=1e-6)
    assert (found == 1) == (k >= K)


# --- agreement with the teacher ---


def test_student_that_is_its_teacher_is_faithful():
    s, _, y = case()
    assert measure("kl", s, s, y).value() == 0
    assert measure("agreement", s, s, y).value() == 1
    shifted = s + np.random.default_rng(0).normal(0, 5, (40, 1)).astype(np.float32)
    assert measure("kl", s, shifted, y).value() == pytest.approx(0, abs=1e-6)


def test_divergence_is_the_teachers_from_the_student():
    s, t, y = case()
    assert abs(twin("kl", s, t, y) - twin("kl", t, s, y)) > 1e-2
    np.testing.assert_allclose(measure("kl", s, t, y).value(), twin("kl", s, t, y), rtol=1e-5)


# --- calibration ---


def with_confidence(confidence, right):
    """Logits of two classes with a given confidence in class 1, and labels that make it right or wrong."""
    c = np.asarray(confidence, np.float64)
    logits = np.stack([np.zeros_like(c), np.log(c) - np.log1p(-c)], axis=-1).astype(np.float32)
    return Outputs(logits), Outputs(None), {"label": np.asarray(right, np.int32)}


def test_bins_are_those_made_by_hand():
    student, nobody, batch = with_confidence([0.55, 0.58, 0.65, 0.72, 0.78, 0.95], [1, 0, 1, 1, 1, 0])
    found = jax.jit(metrics.calibration(bins=10))(student, nobody, batch)
    bins = found.bins()
    np.testing.assert_array_equal(bins["count"], [0, 0, 0, 0, 0, 2, 1, 2, 0, 1])
    np.testing.assert_allclose(bins["confidence"], [0, 0, 0, 0, 0, 0.565, 0.65, 0.75, 0, 0.95], rtol=1e-5)
    np.testing.assert_allclose(bins["accuracy"], [0, 0, 0, 0, 0, 0.5, 1, 1, 0, 0], rtol=1e-6)
    by_hand = (2 * abs(0.5 - 0.565) + 1 * abs(1 - 0.65) + 2 * abs(1 - 0.75) + 1 * abs(0 - 0.95)) / 6
    np.testing.assert_allclose(found.value(), by_hand, rtol=1e-5)


def test_certain_and_undecided_predictions_have_a_bin():
    logits = np.asarray([[0, 200], [0, 0]], np.float32)
    found = jax.jit(metrics.calibration(bins=4))(Outputs(logits), Outputs(None), {"label": np.asarray([1, 0])})
    np.testing.assert_array_equal(found.bins()["count"], [0, 1, 0, 1])
    np.testing.assert_allclose(found.bins()["confidence"], [0, 0.5, 0, 1])
    np.testing.assert_allclose(found.value(), 0.25)


def test_bins_of_stacked_students_are_pooled():
    a, nobody, batch = with_confidence([0.6, 0.7, 0.9], [1, 0, 1])
    b, *_ = with_confidence([0.6, 0.95, 0.55], [1, 0, 1])
    metric = jax.jit(metrics.calibration(bins=5))
    apart = [metric(x, nobody, batch) for x in (a, b)]
    stacked = jax.tree.map(lambda x, y: np.stack([x, y]), *apart)
    for name, pooled in stacked.bins().items():
        assert pooled.shape == (5,)
        np.testing.assert_allclose(pooled, add(apart).bins()[name], rtol=1e-6)
    np.testing.assert_allclose(stacked.value(), [x.value() for x in apart], rtol=1e-6)


def test_predictions_drawn_from_the_model_are_calibrated():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3)).astype(np.float32)
    label = (softmax(logits).cumsum(axis=-1) < rng.random((20_000, 1))).sum(axis=-1).astype(np.int32)
    measure = jax.jit(metrics.calibration())
    honest, boastful = (
        measure(Outputs(np.float32(scale) * logits), Outputs(None), {"label": label}).value() for scale in (1, 3)
    )
    assert honest < 0.02
    assert boastful > 0.1


@pytest.mark.parametrize(
    "metric", [metrics.agreement, metrics.kl_to_teacher, metrics.total_variation, metrics.per_class]
)
def test_a_comparison_without_a_teacher_is_refused_in_a_sentence(metric):
    with pytest.raises(ValueError, match="compares the student with a teacher, but there is none"):
        metric(Outputs(jnp.zeros((2, 3))), Outputs(None), {"label": np.zeros(2, np.int32)})


# --- classes and features over a whole split ---


def test_classes_are_counted_over_batches_without_padding():
    s, t, y = case((40,))
    y = np.where(y == 5, 0, y)  # a class without examples
    per_class, parts = jax.jit(metrics.per_class), []
    for i in range(0, 40, 16):
        rows = [np.resize(x[i : i + 16], (16, *x.shape[1:])) for x in (s, t, y)]
        mask = np.arange(16) < min(16, 40 - i)
        parts.append(per_class(Outputs(rows[0]), Outputs(rows[1]), {"label": rows[2], "mask": mask}))
    found = add(parts)
    called = s.argmax(1), t.argmax(1)
    expected = [np.mean(called[0][y == c] == c) if np.any(y == c) else 0 for c in range(K)]
    np.testing.assert_allclose(found.accuracy(), expected, rtol=1e-6)
    assert found.value() == pytest.approx(min(expected[:5]), rel=1e-6)
    for c in range(5):
        rows = [np.bincount(x[y == c], minlength=K) / np.sum(y == c) for x in called]
        assert found.confusion_difference()[c] == pytest.approx(np.abs(rows[0] - rows[1]).sum() / 2, abs=1e-6)


def features(seed=0, n=40):
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((n, 5)) + 3
    return (t @ rng.standard_normal((5, 4)) + rng.standard_normal((n, 4))).astype(np.float32), t.astype(np.float32)


linear_cka = jax.jit(metrics.linear_cka("a", "b"))


def cka(s, t, sizes=(16, 16, 8)):
    start, parts = 0, []
    for size in sizes:
        rows = [np.full((16, x.shape[1]), np.nan, np.float32) for x in (s, t)]
        for full, x in zip(rows, (s, t), strict=True):
            full[:size] = x[start : start + size]
        sides = Outputs(np.zeros((16, 2)), {"a": rows[0]}), Outputs(np.zeros((16, 2)), {"b": rows[1]})
        parts.append(linear_cka(*sides, {"mask": np.arange(16) < size}))
        start += size
    return float(add(parts).value())


def test_cka_equals_its_definition_over_gram_matrices():
    s, t = features()
    centred = [x.astype(np.float64) - x.mean(0, dtype=np.float64) for x in (s, t)]
    S, T = (x @ x.T for x in centred)
    expected = (S * T).sum() / np.sqrt((S * S).sum() * (T * T).sum())
    assert 0.1 < expected < 0.95
    assert cka(s, t) == pytest.approx(expected, rel=1e-4)


def test_cka_forgets_rotation_scale_and_shift():
    s, t = features()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0]
    assert cka(s, 7 * s @ rotation.astype(np.float32) + 2) == pytest.approx(1, rel=1e-4)
    assert cka(np.ones_like(s), t) == pytest.approx(0, abs=1e-6)


def test_cka_takes_the_mean_over_positions():
    s, t = features(n=16)
    maps = np.stack([s - 1, s + 1], axis=1)[:, None]
    sides = [Outputs(np.zeros((16, 2)), {"a": x}) for x in (s, maps)]
    other = Outputs(np.zeros((16, 2)), {"b": t})
    one, two = (linear_cka(side, other, {}).value() for side in sides)
    assert one == pytest.approx(two, rel=1e-5)
