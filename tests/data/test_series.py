"""Windows of series: what they hold, that no part sees another one's labels, and what is refused."""

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.readers.series import Series
from jaxkd.data.series import cut_windows

RNG = np.random.default_rng(0)
VALUES = (RNG.standard_normal((100, 3)) * 4 + 50).astype(np.float32)


def series(values=VALUES, missing=None):
    return Series("speeds", values, ("a", "b", "c"), np.zeros(values.shape, bool) if missing is None else missing)


def test_a_window_is_a_past_a_clock_and_a_future():
    windows = cut_windows(series(), past=4, horizons=3, minutes=60, validation=0.2, test=0.3)
    assert (windows.mean, windows.std) == pytest.approx((VALUES[:50].mean(), VALUES[:50].std()), rel=1e-5)
    assert [(part.start, part.size) for part in windows[:3]] == [(3, 44), (53, 14), (73, 24)]
    row = windows.test.read(np.array([5]))
    last = 73 + 5
    assert row["id"] == [last]
    np.testing.assert_allclose(row["series"][0] * windows.std + windows.mean, VALUES[last - 3 : last + 1], rtol=1e-5)
    np.testing.assert_array_equal(row["label"][0], VALUES[last + 1 : last + 4])
    angle = 2 * np.pi * (np.arange(last - 3, last + 1) % 24) / 24
    np.testing.assert_allclose(row["time"][0], np.stack([np.sin(angle), np.cos(angle)], 1), atol=1e-6)
    assert windows.train.task == "regression"
    batch = data.train_batches(windows.train, 8, seed=0)[0]
    assert batch["label"].shape == (8, 3, 3)


def test_no_part_depends_on_a_later_one():
    """Other values from a part's first step on leave all that comes before as it is."""
    options = {"past": 4, "horizons": 3, "minutes": 60, "validation": 0.2, "test": 0.3}
    windows = cut_windows(series(), **options)
    other = cut_windows(series(np.where(np.arange(100)[:, None] < 50, VALUES, -1)), **options)
    assert (other.mean, other.std) == (windows.mean, windows.std)
    rows = np.arange(windows.train.size)
    for field, values in windows.train.read(rows).items():
        np.testing.assert_array_equal(other.train.read(rows)[field], values)
    assert windows.train.ids[-1] + 3 < 50 <= windows.validation.ids[0] - 3
    assert windows.validation.ids[-1] + 3 < 70 <= windows.test.ids[0] - 3


def test_missing_values_are_no_targets_and_do_not_count_in_the_mean():
    gaps = np.zeros(VALUES.shape, bool)
    gaps[10:20, 1] = True
    values = np.where(gaps, 1000, VALUES).astype(np.float32)
    windows = cut_windows(series(values, gaps), past=4, horizons=3)
    assert windows.mean == pytest.approx(VALUES[:70][~gaps[:70]].mean(), rel=1e-5)
    assert np.isnan(windows.train.ignore)
    label = windows.train.read(np.array([12]))["label"][0]
    assert np.isnan(label).tolist() == [[False, True, False]] * 3
    assert cut_windows(series(), past=4, horizons=3).train.ignore is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.05}, "the part validation of speeds has 5 of its 100 steps, but a window has 7, 4 past ones"),
        ({"test": 0.95}, "give fractions that leave a part of the steps for training"),
        ({"validation": 0.0}, "validation is 0.0 and test 0.2"),
        ({"horizons": 0}, "horizons 0"),
        ({"minutes": 2000}, "minutes 2000"),
    ],
)
def test_other_parts_get_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        cut_windows(series(), **{"past": 4, "horizons": 3, **options})
    with pytest.raises(ValueError, match="same value everywhere"):
        cut_windows(series(np.ones((100, 3), np.float32)), past=4, horizons=3)
