"""Metrics of full rankings against scikit-learn, and against plain NumPy where scores are equal."""

import jax
import numpy as np
import pytest
from metrics.twins import add
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from jaxkd import metrics
from jaxkd.types import Outputs

B, ITEMS, HELD = 12, 40, 3
RNG = np.random.default_rng(0)
Z = RNG.permuted(np.tile(np.arange(ITEMS, dtype=np.float32), (B, 1)), axis=1)
NUMBERS = RNG.permuted(np.tile(np.arange(ITEMS), (B, 1)), axis=1)
LABEL = np.where(np.arange(HELD) < RNG.integers(1, HELD + 1, (B, 1)), NUMBERS[:, :HELD], -1).astype(np.int32)
SEEN = np.zeros((B, ITEMS), np.uint8)
np.put_along_axis(SEEN, NUMBERS[:, HELD : HELD + 8], 1, axis=1)
MEASURED = {f"{m.__name__}{k}": m(k) for m in (metrics.hit_rate, metrics.recall, metrics.ndcg) for k in (1, 5, 10)}
MEASURED |= {"mrr": metrics.mrr}


@jax.jit
def measure(z, label, seen, mask):
    batch = {"label": label, "seen": seen, "mask": mask}
    return {name: metric(Outputs(z), Outputs(None), batch) for name, metric in MEASURED.items()}


def measured(z, label, seen, mask=None):
    return metrics.values(measure(z, label, seen, np.ones(len(z), bool) if mask is None else mask))


def ranking(z, seen):
    """Items of one user that were not seen, the best first."""
    return [i for i in np.argsort(-z, kind="stable") if not seen[i]]


def test_ndcg_equals_scikit_learns_and_the_others_their_definitions():
    found = measured(Z, LABEL, SEEN)
    relevant = np.zeros((B, ITEMS))
    for row, held in zip(relevant, LABEL, strict=True):
        row[held[held >= 0]] = 1
    hidden = np.where(SEEN, -1, Z)  # below all others
    places = [[ranking(z, s).index(i) for i in held[held >= 0]] for z, s, held in zip(Z, SEEN, LABEL, strict=True)]
    for k in (1, 5, 10):
        assert found[f"ndcg{k}"] == pytest.approx(ndcg_score(relevant, hidden, k=k), rel=1e-5)
        assert found[f"hit_rate{k}"] == pytest.approx(np.mean([min(p) < k for p in places]))
        assert found[f"recall{k}"] == pytest.approx(np.mean([np.mean(np.array(p) < k) for p in places]))
    first = [min(p) for p in places]
    assert found["mrr"] == pytest.approx(np.mean(1 / (1 + np.array(first))), rel=1e-5)
    alone = measured(Z, LABEL[:, :1], SEEN)  # of a single item it is the average precision
    one = np.eye(ITEMS)[LABEL[:, 0]]
    assert alone["mrr"] == pytest.approx(label_ranking_average_precision_score(one, hidden), rel=1e-5)


def test_sums_over_padded_batches_are_those_of_all_rows_and_users_without_a_held_out_item_do_not_count():
    label = LABEL.copy()
    label[3] = -1
    counted = np.arange(B) != 3
    whole = measured(Z[counted], label[counted], SEEN[counted])
    parts = []
    for rows in (slice(0, 8), slice(8, 12)):
        z, y, s = (x[rows] for x in (Z, label, SEEN))
        pad = ((0, 8 - len(z)), (0, 0))
        mask = np.arange(8) < len(z)
        parts.append(measure(np.pad(z, pad, constant_values=np.nan), np.pad(y, pad), np.pad(s, pad), mask))
    for name, value in metrics.values(add(parts)).items():
        assert value == pytest.approx(whole[name], rel=1e-6), name


def test_equal_scores_count_against_the_held_out_item_and_nan_is_seen():
    z, label, seen = np.zeros((1, 12), np.float32), np.array([[4, 7]], np.int32), np.zeros((1, 12), np.uint8)
    found = measured(z, label, seen)
    assert found["hit_rate10"] == 0
    assert found["mrr"] == pytest.approx(1 / 11)
    z[0, [4, 7]] = 1  # equal among themselves: places 0 and 1
    found = measured(z, label, seen)
    assert found["ndcg5"] == pytest.approx(1)
    assert found["recall1"] == pytest.approx(0.5)
    z[0, 0] = np.nan
    assert np.isnan(measured(z, label, seen)["mrr"])


def test_a_held_out_item_that_was_seen_is_a_miss():
    z, seen = np.arange(12, dtype=np.float32)[None], np.eye(12, dtype=np.uint8)[[11]]
    found = measured(z, np.array([[11, 10]], np.int32), seen)
    assert found["recall10"] == 0.5
    assert found["mrr"] == 1
    assert measured(z, np.array([[11, -1]], np.int32), seen)["mrr"] == 0


@pytest.mark.parametrize("item", [12, -2])
def test_a_number_of_no_item_is_seen(item):
    z, seen = np.zeros((2, 12), np.float32), np.zeros((2, 12), np.uint8)
    assert np.isnan(list(measured(z, np.array([[4, -1], [item, -1]], np.int32), seen).values())).all()


def test_mistakes_are_refused():
    z = Outputs(np.zeros((2, 5), np.float32))
    with pytest.raises(ValueError, match="the first 0 places"):
        metrics.ndcg(0)
    with pytest.raises(ValueError, match="no 'label'"):
        metrics.mrr(z, Outputs(None), {})
    with pytest.raises(ValueError, match=r"held-out items have shape \(3,\)"):
        metrics.mrr(z, Outputs(None), {"label": np.zeros(3, np.int32)})
    with pytest.raises(ValueError, match=r"`seen` has shape \(2, 4\) but logits \(2, 5\)"):
        metrics.mrr(z, Outputs(None), {"label": np.zeros(2, np.int32), "seen": np.zeros((2, 4))})
