"""Losses on rankings against float64 twins: pairs, a teacher's best items, its order above all others."""

import jax
import numpy as np
import pytest
from losses.programs import differentiated, run

from jaxkd import losses

Z = 2 * np.random.default_rng(0).standard_normal((4, 9))
RANKING = np.array([[3, 7, 0], [8, 2, -1], [5, -1, -1], [-1, -1, -1]], np.int32)
UNRANKED = np.array([[0, 1, 1, 0, 1, 0, 1, 0, 1]] * 4)
CANDIDATES = np.array([[1, 1, 0, 1, 1, 1, 0, 1, 1]] * 4)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def in_float64(loss, *arrays, **options):
    with jax.enable_x64(True):
        return run(loss, *arrays, **options)


def softplus(x):
    return np.log1p(np.exp(x))


def real(ranking):
    return [i for i in ranking if i >= 0]


def rd(z, ranking, decay, mu, candidates=None):
    """One row: weights of a position, and of how far below the student ranks its item."""
    ids = real(ranking)
    weights = []
    for r, item in enumerate(ids, 1):
        weight = np.exp(-r / decay)
        if mu is not None:
            there = z if candidates is None else z[candidates == 1]
            weight *= np.tanh(max(mu * (np.sum(there > z[item]) - r), 0))
        weights.append(weight)
    total = np.sum(weights)
    return sum(w / total * softplus(-z[i]) for w, i in zip(weights, ids, strict=True)) if total else 0


def rrd(z, ranking, unranked):
    """One row: the product over the places of the item's probability among what is left."""
    ids, likelihood = real(ranking), 0
    rest = sum(np.exp(z[j]) for j in range(len(z)) if unranked[j] and j not in ids)
    for k, item in enumerate(ids):
        likelihood += np.log(np.exp(z[item]) / (sum(np.exp(z[i]) for i in ids[k:]) + rest))
    return -likelihood


def test_bpr_equals_its_twin_and_leaves_out_what_is_not_there():
    positive, negatives = np.array([1, 4, -1, 2]), np.array([[0, 2], [8, -1], [3, 4], [-1, -1]])
    expected = [
        np.mean([softplus(-(Z[0, 1] - Z[0, j])) for j in (0, 2)]),
        softplus(-(Z[1, 4] - Z[1, 8])),
        0,
        0,
    ]
    np.testing.assert_allclose(in_float64(losses.bpr, Z, positive, negatives), expected, rtol=1e-12)


@pytest.mark.parametrize("options", [(1.0, None), (10.0, None), (2.0, 0.3)])
def test_ranking_distillation_equals_its_twin(options):
    decay, mu = options
    found = in_float64(losses.ranking_distillation, Z, RANKING, decay=decay, mu=mu)
    np.testing.assert_allclose(found, [rd(z, r, decay, mu) for z, r in zip(Z, RANKING, strict=True)], rtol=1e-12)
    assert found[0] > 0
    assert found[3] == 0


def test_candidates_alone_count_in_the_students_ranking_and_no_gradient_passes_through_it():
    rows = zip(Z, RANKING, CANDIDATES, strict=True)
    given = {"decay": 2.0, "mu": 0.3, "candidates": CANDIDATES}
    found = in_float64(losses.ranking_distillation, Z, RANKING, **given)
    np.testing.assert_allclose(found, [rd(z, r, 2.0, 0.3, c) for z, r, c in rows], rtol=1e-12)
    _, (slope,) = differentiated(losses.ranking_distillation, 0, mu=0.3)(Z[:1].astype("f"), RANKING[:1])
    assert not np.any(np.delete(np.asarray(slope[0]), RANKING[0]))


def test_relaxed_ranking_distillation_equals_its_twin():
    expected = [rrd(z, r, u) for z, r, u in zip(Z, RANKING, UNRANKED, strict=True)]
    np.testing.assert_allclose(
        in_float64(losses.relaxed_ranking_distillation, Z, RANKING, UNRANKED), expected, rtol=1e-12
    )
    everything = in_float64(losses.relaxed_ranking_distillation, Z, RANKING, np.ones_like(UNRANKED))
    cross_entropy = -in_float64(jax.nn.log_softmax, Z)[2, 5]
    assert everything[2] == pytest.approx(cross_entropy, rel=1e-12)  # of one item and all others


def test_a_number_that_is_no_item_gives_nan_and_what_is_not_there_reaches_nothing():
    z = Z.astype("f")
    z[3] = np.nan
    for loss, rest in (
        (losses.ranking_distillation, ()),
        (losses.relaxed_ranking_distillation, (UNRANKED,)),
    ):
        value, (slope,) = differentiated(loss, 0)(z, RANKING, *rest)
        assert np.isfinite(value)
        assert np.all(np.isfinite(slope))
        for wrong in (9, -2):
            assert np.isnan(run(loss, Z.astype("f")[:1], np.array([[3, wrong, 0]]), *(x[:1] for x in rest)))
    assert np.isnan(run(losses.bpr, Z[:1].astype("f"), np.array([9]), np.array([[0]])))
    masked = np.where(UNRANKED == 1, -np.inf, Z).astype("f")  # nothing but the ranking is left
    value, (slope,) = differentiated(losses.relaxed_ranking_distillation, 0)(masked, RANKING[:, :1], UNRANKED)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


def test_mistakes_are_refused():
    z = Z.astype("f")
    with pytest.raises(ValueError, match=r"the positive items have shape \(4, 1\)"):
        losses.bpr(z, RANKING[:, :1], RANKING)
    with pytest.raises(ValueError, match=r"the teacher's ranking has shape \(3, 3\)"):
        losses.ranking_distillation(z, RANKING[:3])
    with pytest.raises(ValueError, match=r"dtype float32"):
        losses.ranking_distillation(z, RANKING.astype("f"))
    with pytest.raises(ValueError, match=r"`unranked` has shape \(4, 3\)"):
        losses.relaxed_ranking_distillation(z, RANKING, RANKING)
    with pytest.raises(ValueError, match=r"`candidates` has shape \(4, 3\)"):
        losses.ranking_distillation(z, RANKING, mu=1.0, candidates=RANKING)
    with pytest.raises(ValueError, match=r"decay is 0\.0"):
        losses.ranking_distillation(z, RANKING, decay=0.0)
