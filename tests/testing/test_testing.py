"""The property kit: right losses pass, each planted bug is caught by the property that should catch it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, numerics, testing
from jaxkd.testing import check_loss, check_no_teacher_gradient

B, K = 8, 5
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, B, K)).astype(np.float32)
LABELS = RNG.integers(0, K, B).astype(np.int32)
SOFT = np.asarray(RNG.dirichlet(np.ones(K), B), np.float32)
MAPS = RNG.normal(size=(2, B, 2, 2, 3)).astype(np.float32)
TOKENS = RNG.normal(size=(2, B, 3, K)).astype(np.float32)


def sp(student, teacher):
    """A right loss that couples the batch: distance of the row-normalised Gram matrices."""
    s, t = numerics.promote(student, teacher)

    def relations(x):
        gram = x @ x.T
        norm = numerics.safe_norm(gram, axis=1, keepdims=True)
        return gram / jnp.where(norm > 0, norm, 1)

    return jnp.mean(jnp.square(relations(s) - relations(t)))


def cosine(student, teacher):
    """A right loss on features [B, D]: one minus the cosine, 1 for a zero row."""
    s, t = numerics.promote(student, teacher)
    norms = numerics.safe_norm(s, axis=1) * numerics.safe_norm(t, axis=1)
    return 1 - jnp.sum(s * t, axis=1) / jnp.where(norms > 0, norms, 1)


DISTANCE = (testing.ZERO_AT_EQUALITY, testing.FLAT_AT_EQUALITY, testing.NON_NEGATIVE)

RIGHT = {
    "kd": (
        functools.partial(losses.kd, temperature=3.0),
        (STUDENT, TEACHER),
        {},
        (*testing.LOGITS, *DISTANCE, testing.SHIFT_INVARIANT, testing.CLASS_PERMUTATION_INVARIANT),
    ),
    "kd of tokens": (losses.kd, tuple(TOKENS), {}, (*testing.LOGITS, *DISTANCE, testing.SHIFT_INVARIANT)),
    "logits_mse": (
        losses.logits_mse,
        {"student_logits": STUDENT, "teacher_logits": TEACHER},
        {},
        (*testing.LOGITS, *DISTANCE, testing.SYMMETRIC, testing.JOINT_SHIFT_INVARIANT),
    ),
    "cross_entropy with soft labels": (
        losses.cross_entropy,
        (STUDENT, SOFT),
        {"labels": "probabilities"},
        (*testing.LOGITS, testing.NON_NEGATIVE, testing.SHIFT_INVARIANT, testing.CLASS_PERMUTATION_INVARIANT),
    ),
    "cross_entropy with labels": (losses.cross_entropy, (STUDENT, LABELS), {}, (testing.LABELS_OUTSIDE,)),
    "hint": (
        losses.hint,
        tuple(MAPS),
        {},
        (*testing.FEATURES, *DISTANCE, testing.SYMMETRIC, testing.JOINT_ROTATION_INVARIANT),
    ),
    "cosine": (cosine, (STUDENT, TEACHER), {}, (*testing.FEATURES, testing.SCALE_INVARIANT, testing.SYMMETRIC)),
    "sp": (
        sp,
        (STUDENT, TEACHER[:, :3]),
        {},
        (*testing.COUPLED, testing.NON_NEGATIVE, testing.SCALE_INVARIANT, testing.ROTATION_INVARIANT),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_pass(name):
    fn, inputs, kinds, properties = RIGHT[name]
    if name not in ("kd", "sp"):  # op by op, which is slow: once for a row alone and once for a whole batch
        properties = [one for one in properties if one is not testing.JIT]
    report = check_loss(fn, inputs, properties=properties, kinds=kinds)
    assert report, str(report)
    assert set(report.not_run) <= {"finite at equality"}  # eight devices are here, so that pmap was run
    assert len(report.held) + len(report.not_run) == len(properties)


# Planted bugs: the function, its inputs, and the property that has to catch it.


def probabilities_first(student, teacher):
    p, q = jax.nn.softmax(teacher / 4), jax.nn.softmax(student / 4)
    return 16 * jnp.sum(p * jnp.log(p / q), axis=-1)


def clipped_label(student, labels):
    own = jnp.take_along_axis(student, labels[:, None], axis=1, mode="clip")
    return jax.nn.logsumexp(student, axis=1) - own[:, 0]


def unmasked(student, teacher):
    log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def softmax_over_the_batch(student, teacher):
    return numerics.kl_divergence(jax.nn.log_softmax(teacher, axis=0), jax.nn.log_softmax(student, axis=0))


def batch_mean(student, teacher):
    return jnp.mean(losses.kd(student, teacher))


def divided_by_batch(student, teacher):
    return losses.kd(student, teacher) / student.shape[0]


def root_norm(student, teacher):
    return jnp.sqrt(jnp.sum(jnp.square(student - teacher), axis=-1))


def plain_cosine(student, teacher):
    norms = jnp.linalg.norm(student, axis=-1) * jnp.linalg.norm(teacher, axis=-1)
    return 1 - jnp.sum(student * teacher, axis=-1) / norms


def no_promotion(student, teacher):
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def promoted_too_late(student, teacher):
    return jnp.mean(jnp.square(student - teacher), axis=-1).astype(jnp.promote_types(student.dtype, jnp.float32))


def rounded_weights(student, teacher):
    """Of two dtypes the program is the same but for the numbers in a constant."""
    weights = np.linspace(0.1, 0.7, K).astype(student.dtype).astype(np.float32)
    s, t = numerics.promote(student, teacher)
    return jnp.sum(weights * jnp.square(s - t), axis=-1)


def always_float32(student, teacher):
    return losses.logits_mse(student, teacher).astype(jnp.float32)


def detached_teacher(student, teacher):
    return losses.kd(student, jax.lax.stop_gradient(teacher))


def detached_student_weight(student, teacher):
    weight = jax.lax.stop_gradient(jnp.max(student, axis=-1))
    return weight * losses.logits_mse(student, teacher)


def broadcast_weights(student, teacher):
    return jnp.sum(jnp.arange(1.0, K + 1) * jnp.square(student - teacher), axis=-1)


def integer_factor(student, teacher):
    return losses.logits_mse(student, teacher) * jnp.sum(jnp.ones(student.shape[-1], jnp.int32))


def shifted(student, teacher):
    return losses.logits_mse(student, teacher) - 1


def half_distance(student, teacher):
    return jnp.sum(jnp.maximum(student - teacher, 0), axis=-1)


def by_position(student, teacher):
    return jnp.square(student[..., 0] - teacher[..., 0])


def by_row_number(student, teacher):
    return losses.logits_mse(student, teacher) * jnp.arange(student.shape[0])


def standardized(student, teacher):
    s = (student - jnp.mean(student, axis=0, keepdims=True)) / jnp.std(student, axis=0, keepdims=True)
    return jnp.mean(jnp.square(s - teacher))


def faster_when_traced(student, teacher):
    value = losses.logits_mse(student, teacher)
    return 2 * value if isinstance(student, jax.core.Tracer) else value


@jax.custom_batching.custom_vmap
def nothing(x):
    return jnp.zeros_like(x)


@nothing.def_vmap
def _nothing_batched(axis_size, in_batched, x):
    return jnp.ones_like(x), True


def wrong_batching_rule(student, teacher):
    return losses.logits_mse(student, teacher) + nothing(jax.lax.stop_gradient(student[..., 0]))


def manhattan(student, teacher):
    return jnp.mean(jnp.abs(student - teacher), axis=-1)


BOTH = (STUDENT, TEACHER)
BUGS = [
    (probabilities_first, BOTH, testing.EXTREME_LOGITS),
    (probabilities_first, BOTH, testing.MASKED_CLASSES),
    (unmasked, BOTH, testing.MASKED_CLASSES),
    (softmax_over_the_batch, BOTH, testing.INDEPENDENT_ROWS),
    (softmax_over_the_batch, BOTH, testing.SHIFT_INVARIANT),
    (softmax_over_the_batch, BOTH, testing.LEADING_AXES),
    (softmax_over_the_batch, BOTH, testing.ACCUMULATION),
    (batch_mean, BOTH, testing.KEEPS_LEADING_AXES),
    (batch_mean, BOTH, testing.LEADING_AXES),
    (batch_mean, BOTH, testing.INDEPENDENT_ROWS),
    (batch_mean, BOTH, testing.ONE_VALUE_PER_EXAMPLE),
    (batch_mean, BOTH, testing.COUPLES_THE_BATCH),
    (losses.kd, BOTH, testing.SCALAR),
    (divided_by_batch, BOTH, testing.ACCUMULATION),
    (divided_by_batch, BOTH, testing.LEADING_AXES),
    (root_norm, BOTH, testing.FINITE_AT_EQUALITY),
    (plain_cosine, BOTH, testing.ZERO_ROWS),
    (no_promotion, BOTH, testing.DTYPE),
    (promoted_too_late, BOTH, testing.DTYPE),
    (rounded_weights, BOTH, testing.DTYPE),
    (always_float32, BOTH, testing.DTYPE),
    (detached_teacher, BOTH, testing.GRADIENT),
    (detached_student_weight, BOTH, testing.STUDENT_GRADIENT),
    (broadcast_weights, BOTH, testing.RANK_PROMOTION),
    (integer_factor, BOTH, testing.DTYPE_PROMOTION),
    (shifted, BOTH, testing.NON_NEGATIVE),
    (shifted, BOTH, testing.ZERO_AT_EQUALITY),
    (half_distance, BOTH, testing.FLAT_AT_EQUALITY),
    (half_distance, BOTH, testing.SYMMETRIC),
    (losses.kd, BOTH, testing.SYMMETRIC),
    (losses.logits_mse, BOTH, testing.SHIFT_INVARIANT),
    (losses.logits_mse, BOTH, testing.SCALE_INVARIANT),
    (losses.logits_mse, BOTH, testing.ROTATION_INVARIANT),
    (manhattan, BOTH, testing.JOINT_ROTATION_INVARIANT),
    (lambda student, teacher: losses.logits_mse(student, 2 * teacher), BOTH, testing.JOINT_SHIFT_INVARIANT),
    (by_position, BOTH, testing.CLASS_PERMUTATION_INVARIANT),
    (by_row_number, BOTH, testing.BATCH_PERMUTATION),
    (clipped_label, (STUDENT, LABELS), testing.LABELS_OUTSIDE),
    (standardized, BOTH, testing.EQUAL_ROWS),
    (standardized, BOTH, testing.BATCH_OF_ONE),
    (lambda student, teacher: jnp.log(student[..., 0] - teacher[..., 0]), BOTH, testing.FINITE),
    (faster_when_traced, BOTH, testing.JIT),
    (wrong_batching_rule, BOTH, testing.VMAP),
]


@pytest.mark.parametrize(("fn", "inputs", "prop"), BUGS, ids=[f"{p.name}-{f.__name__}" for f, _, p in BUGS])
def test_planted_bugs_are_caught(fn, inputs, prop):
    report = check_loss(fn, inputs, properties=(prop,))
    assert not report
    assert report.failed == (prop.name,)
    assert "it raised" not in str(report) or prop in (testing.RANK_PROMOTION, testing.DTYPE_PROMOTION)


def test_every_property_is_held_somewhere_and_fails_somewhere():
    names = {v.name for v in vars(testing).values() if isinstance(v, testing.Property)}
    assert names == {p.name for _, _, _, properties in RIGHT.values() for p in properties} | {"gradient in the student"}
    assert names == {p.name for _, _, p in BUGS} | {"pmap"}


def test_pmap_fails_when_it_disagrees(monkeypatch):
    monkeypatch.setattr(testing.Case, "pmapped", property(lambda case: lambda arrays: 2 * case.vmapped(arrays)))
    assert check_loss(losses.kd, BOTH, properties=(testing.PMAP,)).failed == ("pmap",)


def test_pmap_is_reported_as_not_run_on_one_device(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    report = check_loss(losses.kd, BOTH, properties=(testing.FINITE, testing.PMAP))
    assert report
    assert report.held == ("finite",)
    assert "one device" in report.not_run["pmap"]
    assert "not run  pmap: " in str(report)


# The README's examples.


def my_loss(student, teacher, temperature=4.0):
    """A reader's ten lines."""
    student, teacher = numerics.promote(student, teacher)
    log_p = numerics.log_softmax(teacher, temperature)
    log_q = numerics.log_softmax(student, temperature)
    return temperature**2 * numerics.kl_divergence(log_p, log_q)


def test_readme_right_loss():
    report = check_loss(my_loss, (STUDENT, TEACHER), properties=(*testing.LOGITS, testing.ZERO_AT_EQUALITY))
    assert report, str(report)
    assert str(report).startswith("my_loss: 20 held, 0 failed, 0 not run\n  held     dtype")


def test_readme_planted_bug():
    def my_loss(student, teacher, temperature=4.0):
        student, teacher = numerics.promote(student, teacher)
        p, q = jax.nn.softmax(teacher / temperature), jax.nn.softmax(student / temperature)
        return temperature**2 * jnp.sum(p * jnp.log(p / q), axis=-1)

    report = check_loss(my_loss, (STUDENT, TEACHER), properties=(*testing.LOGITS, testing.ZERO_AT_EQUALITY))
    assert report.failed == ("extreme logits", "masked classes")
    text = str(report)
    assert text == repr(report)
    assert "FAILED   extreme logits: for student of +-1e4, the value must be finite\n" in text
    assert "student = [" in text
    assert "value   = inf\n" in text
    with pytest.raises(AssertionError, match="counter-example"):
        assert report, str(report)


def outcome(report):
    (result,) = report.results
    return result.outcome


def test_counter_examples_reproduce_the_failure():
    found = outcome(check_loss(probabilities_first, BOTH, properties=(testing.EXTREME_LOGITS,)))
    row = {name: jnp.asarray(value, jnp.float32)[None] for name, value in found.rows.items()}
    assert not np.isfinite(probabilities_first(**row)[0])
    assert not np.isfinite(found.values["value"])

    found = outcome(check_loss(losses.kd, BOTH, properties=(testing.SYMMETRIC,)))
    s, t = (jnp.asarray(value, jnp.float32)[None] for value in found.rows.values())
    value, swapped = found.values.values()
    np.testing.assert_allclose(losses.kd(s, t)[0], value, rtol=1e-5)
    np.testing.assert_allclose(losses.kd(t, s)[0], swapped, rtol=1e-5)


def test_counter_examples_are_small():
    found = outcome(check_loss(losses.logits_mse, BOTH, properties=(testing.SCALE_INVARIANT,)))
    entries = np.concatenate(list(found.rows.values()))
    assert np.count_nonzero(entries) == 1
    np.testing.assert_array_equal(entries, np.round(entries))
    coupled = outcome(check_loss(softmax_over_the_batch, BOTH, properties=(testing.INDEPENDENT_ROWS,)))
    assert coupled.row is None
    assert coupled.rows["student"].shape == (2, K)


def test_reports_are_deterministic_and_settings_are_left_alone():
    properties = (testing.DTYPE, testing.GRADIENT, testing.SYMMETRIC)
    first, second = (check_loss(losses.kd, BOTH, properties=properties) for _ in range(2))
    assert str(first) == str(second)
    assert jnp.asarray(np.ones(2)).dtype == jnp.float32
    assert jax.config.jax_numpy_rank_promotion == "raise"


def test_a_loss_that_raises_has_failed():
    def picky(student, teacher):
        if student.shape[0] == 1:
            raise ValueError("one row is not enough.\nReally.")
        return losses.kd(student, teacher)

    report = check_loss(picky, BOTH, properties=(testing.FINITE, testing.BATCH_OF_ONE))
    assert report.failed == ("batch of one",)
    assert "batch of one: it raised ValueError: one row is not enough.\n" in str(report) + "\n"


def test_own_properties():
    def check(case, arrays):
        values = case.values(arrays)
        wrong = values > 0.1
        return testing.Finding("values must be small", {}, {"largest": values.max()}) if wrong.any() else None

    small = testing.Property("small", check)
    assert check_loss(losses.kd, BOTH, properties=(small,)).failed == ("small",)
    assert check_loss(functools.partial(losses.kd, temperature=1e3), (STUDENT, STUDENT), properties=(small,))


def test_comparisons_of_two_sides_are_not_run_without_them():
    report = check_loss(losses.cross_entropy, (STUDENT, LABELS), properties=(testing.SYMMETRIC,))
    assert report.not_run == {"symmetric": "it compares two sides, and logits is the only one"}
    report = check_loss(sp, (STUDENT, TEACHER[:, :3]), properties=(testing.ZERO_AT_EQUALITY,))
    assert "(8, 5) and (8, 3)" in report.not_run["zero at equality"]
    report = check_loss(losses.kd, (STUDENT[:, :2], TEACHER[:, :2]), properties=(testing.MASKED_CLASSES,))
    assert "three classes" in report.not_run["masked classes"]
    report = check_loss(always_float32, BOTH, properties=(testing.GRADIENT,))
    assert "float64" in report.not_run["gradient"]


def test_large_and_odd_batches_are_cut_to_an_even_few():
    shapes = set()

    def spy(student, teacher):
        shapes.add(student.shape)
        return losses.kd(student, teacher)

    check_loss(spy, (np.ones((101, 3)), np.ones((101, 3))), properties=(testing.FINITE,))
    check_loss(spy, (np.ones((5, 3)), np.ones((5, 3))), properties=(testing.FINITE,))
    assert shapes == {(8, 3), (4, 3)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: check_loss(losses.kd, (STUDENT, TEACHER[:3])), "'student_logits': 8, 'teacher_logits': 3.*partial"),
        (lambda: check_loss(losses.kd, (STUDENT[:1], TEACHER[:1])), "at least 2"),
        (lambda: check_loss(losses.kd, (STUDENT, np.float32(1))), "'teacher_logits' is a scalar"),
        (lambda: check_loss(losses.kd, (STUDENT, np.full_like(TEACHER, np.nan))), "NaN or Inf"),
        (lambda: check_loss(losses.kd, BOTH, kinds={"teacher": "side"}), r"'teacher'.*student_logits"),
        (lambda: check_loss(losses.kd, BOTH, kinds={"teacher_logits": "logits"}), "'logits'.*probabilities"),
        (lambda: check_loss(lambda a: a, (LABELS,)), "none of the inputs"),
        (lambda: check_loss(lambda a: (a, a), (STUDENT,)), "returns a tuple"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_no_teacher_gradient():
    variables = {"params": {"dense": {"kernel": jnp.ones((3, K)), "bias": jnp.ones(K)}}, "steps": jnp.int32(3)}
    x = jnp.asarray(RNG.normal(size=(B, 3)), jnp.float32)

    def leaky(teacher):
        logits = x @ teacher["params"]["dense"]["kernel"]
        return jnp.mean(losses.logits_mse(STUDENT, logits)) + 0 * teacher["steps"]

    report = check_no_teacher_gradient(leaky, variables)
    assert report.failed == ("no teacher gradient",)
    assert "largest |gradient| in params/dense/kernel" in str(report)
    assert "not in 1" in str(report)
    assert check_no_teacher_gradient(lambda teacher: leaky(jax.lax.stop_gradient(teacher)), variables)
    nan = check_no_teacher_gradient(
        lambda teacher: jnp.sum(jnp.sqrt(0 * teacher["params"]["dense"]["bias"])), variables
    )
    assert not nan
    assert "no floating" in check_no_teacher_gradient(lambda teacher: 0.0, {"a": 1}).not_run["no teacher gradient"]
