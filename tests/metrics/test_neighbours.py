"""Shares of classes among nearest neighbours equal scikit-learn's."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from jaxkd import metrics


@pytest.mark.parametrize("neighbours", [1, 5, 60])
def test_shares_equal_scikit_learns(neighbours):
    random = np.random.default_rng(neighbours)
    x, bank, labels = random.normal(size=(30, 8)), random.normal(size=(40, 8)), random.integers(0, 4, 40)
    count = min(neighbours, 40)
    weights = lambda distance: np.exp((1 - distance) / 0.3)  # noqa: E731
    peer = KNeighborsClassifier(count, weights=weights, metric="cosine", algorithm="brute").fit(bank, labels)
    found = metrics.nearest_neighbours(x, bank, labels, 4, neighbours=neighbours, temperature=0.3)
    np.testing.assert_allclose(found, peer.predict_proba(x), rtol=1e-9, atol=1e-12)


def test_own_row_alone_gives_its_class_and_shapes_are_checked():
    bank = np.eye(3)
    np.testing.assert_array_equal(
        metrics.nearest_neighbours(bank, bank, np.array([2, 0, 1]), 3, neighbours=1).argmax(axis=1), [2, 0, 1]
    )
    with pytest.raises(ValueError, match=r"shape \(3, 3\), the bank \(3, 2\)"):
        metrics.nearest_neighbours(bank, bank[:, :2], np.zeros(3, int), 3)
    with pytest.raises(ValueError, match=r"labels are 0..3 of int64: give whole numbers in 0..2"):
        metrics.nearest_neighbours(bank, bank, np.array([0, 1, 3]), 3)
    with pytest.raises(ValueError, match="temperature=0"):
        metrics.nearest_neighbours(bank, bank, np.array([0, 1, 2]), 3, temperature=0)
