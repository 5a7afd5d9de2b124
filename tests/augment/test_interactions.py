"""Items that are drawn for users: of the right kind, evenly, and by (seed, id, view) alone."""

import jax
import numpy as np
import pytest

from jaxkd import augment

SEEN = np.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], np.uint8)


def batch(rows, view=0):
    rows = np.asarray(rows)
    return {"seen": SEEN[rows], "id": rows.astype(np.int32), "view": np.full(len(rows), view, np.int32)}


def test_items_are_drawn_evenly_from_those_seen_and_the_others_and_there_may_be_none():
    draw = jax.jit(augment.draw_items(seed=0, negatives=4))
    found = [draw(batch([0, 1, 2], view)) for view in range(60)]
    items, others = (np.stack([one[name] for one in found]) for name in ("item", "negatives"))
    counts = np.bincount(items[:, 0], minlength=6)
    assert counts[SEEN[0] == 0].sum() == 0
    assert counts[SEEN[0] == 1].min() > 8
    counts = np.bincount(others[:, 0].ravel(), minlength=6)
    assert counts[SEEN[0] == 1].sum() == 0
    assert counts[SEEN[0] == 0].min() > 40
    assert np.all(items[:, 1] == -1)
    assert np.all(others[:, 2] == -1)
    again = draw(batch([2, 0, 1], 7))
    assert again["item"][1] == items[7, 0]


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="0 negatives"):
        augment.draw_items(seed=0, negatives=0)
    with pytest.raises(ValueError, match="no 'seen'"):
        augment.draw_items(seed=0)({"id": np.zeros(1, np.int32)})
