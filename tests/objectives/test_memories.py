"""Terms that remember: which rows of a bank a step moves, which negatives it draws, what a queue holds."""

import jax
import numpy as np
import pytest
from objectives.methods import BATCH, STUDENT, TEACHER, TERMS, B, N, evaluate, start, started

from jaxkd import objectives
from jaxkd.losses import contrastive
from jaxkd.objectives import memories


def test_crd_moves_the_rows_of_the_batch_and_no_others():
    term, owned = TERMS["crd"], started("crd")
    _, state, _ = evaluate(term, owned)
    before, after = owned.state["bank"], state["bank"]
    rows = np.asarray(BATCH["id"])
    others = np.setdiff1d(np.arange(N), rows)
    for name in ("student", "teacher"):
        old, new = np.asarray(getattr(before, name)), np.asarray(getattr(after, name))
        np.testing.assert_array_equal(old[others], new[others])
        assert np.all(np.abs(old[rows] - new[rows]).max(axis=1) > 1e-3)
        np.testing.assert_allclose(np.linalg.norm(new[rows], axis=1), 1, rtol=1e-5)
    assert float(before.student_z) < 0 < float(after.student_z)


def test_crd_draws_negatives_from_other_classes_only():
    labels = np.arange(N) % 4
    term = objectives.crd(student="pooled", teacher="pooled", examples=N, labels=labels, width=5, negatives=500)
    owned = start(term)
    draw_rows = jax.jit(memories.negatives_of_other_classes, static_argnums=(3, 4))
    rows = np.asarray(draw_rows(jax.random.key(0), BATCH["id"], owned.state["classes"], N, 500))
    np.testing.assert_array_equal(rows[:, 0], BATCH["id"])
    for own, negatives in zip(rows[:, 0], rows[:, 1:], strict=True):
        assert set(negatives) == set(np.flatnonzero(labels != labels[own]))
    assert np.isfinite(float(evaluate(term, owned)[0]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(N, int), "all examples are of one class"),
        (np.zeros(3, int), r"shape \(3,\) but there are 32 examples"),
    ],
)
def test_crd_says_what_is_wrong_with_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        objectives.crd(student="pooled", teacher="pooled", examples=N, labels=labels)


def test_the_queue_holds_the_teachers_latest_embeddings():
    term, owned = TERMS["info_nce_queue"], started("info_nce_queue")
    _, state, _ = evaluate(term, owned)
    queue = np.asarray(state["queue"])
    embedded = jax.jit(objectives.linear(width=5).apply)(owned.params["teacher"], TEACHER.features["pooled"])
    np.testing.assert_allclose(queue[-B:], embedded / np.linalg.norm(embedded, axis=1, keepdims=True), rtol=1e-4)
    np.testing.assert_array_equal(queue[:-B], np.asarray(owned.state["queue"])[B:])
    pushed = jax.jit(contrastive.queue_push)(owned.state["queue"], embedded)
    np.testing.assert_allclose(queue, pushed, rtol=1e-5)


def test_the_queue_of_similarities_holds_the_teachers_features_as_they_are():
    term, owned = TERMS["queue_similarity"], started("queue_similarity")
    assert set(owned.params) == {"student"}
    _, state, _ = evaluate(term, owned)
    features = np.asarray(TEACHER.features["pooled"])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(state["queue"])[-B:], unit, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(state["queue"])[:-B], np.asarray(owned.state["queue"])[B:])


def test_cirkd_is_a_short_program_with_few_draws():
    inputs = STUDENT, TEACHER, BATCH, jax.random.key(1), jax.numpy.int32(0)
    text = jax.jit(TERMS["cirkd_memory"].apply).lower(started("cirkd_memory"), *inputs).as_text()
    assert text.count("stablehlo.sort") == 0  # as of permutations
    assert text.count("call @_uniform") <= 2  # pixels that come in; rows to compare with
    assert len(text.splitlines()) < 1550
