"""Forecasts of traffic: errors against scikit-learn's, floors against plain loops, flags that contradict."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error

from jaxkd.data.readers.series import Series
from jaxkd.data.series import cut_windows
from jaxkd.experiment.fields import traffic

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("seed", range(3))
def test_errors_equal_those_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    labels, forecasts = random.standard_normal((2, 7, 4, 3)) * 10
    labels[random.random(labels.shape) < 0.2] = np.nan
    found = traffic.scores(forecasts, labels, (2, 4))
    for h in (2, 4):
        for kind, part in (("mean", slice(h)), ("at", slice(h - 1, h))):
            y, z = labels[:, part].ravel(), forecasts[:, part].ravel()
            known = ~np.isnan(y)
            assert found[f"{kind}-mae-{h}"] == pytest.approx(mean_absolute_error(y[known], z[known]))
            assert found[f"{kind}-rmse-{h}"] == pytest.approx(np.sqrt(mean_squared_error(y[known], z[known])))


def test_the_floors_are_what_they_are_called():
    values = (RNG.standard_normal((120, 2)).cumsum(0) + 50).astype(np.float32)
    series = Series("walk", values, ("a", "b"), np.zeros(values.shape, bool))
    windows = cut_windows(series, past=3, horizons=2, minutes=60)
    found = traffic.floors(series, windows, 60)
    test = traffic.Truth.of(windows.test, windows)
    for name, forecasts in found.items():
        assert forecasts.shape == test.labels.shape, name
    np.testing.assert_allclose(found["last value"][:, 1], values[test.ids], rtol=1e-5)
    row, step = 4, test.ids[4] + 2
    same_hour = [values[t, 1] for t in range(84) if t % 24 == step % 24]
    assert found["historical average"][row, 1, 1] == pytest.approx(np.mean(same_hour), rel=1e-5)
    train = traffic.Truth.of(windows.train, windows)

    def design(truth):
        return np.concatenate([truth.series[:, :-1, 1] - truth.series[:, -1:, 1], truth.series[:, -1:, 1]], axis=1)

    forecasts = []
    for strength in traffic.RIDGE:  # the same regression on the same features, by scikit-learn
        model = Ridge(alpha=strength).fit(design(train), train.labels[:, :, 1] - train.series[:, -1:, 1])
        forecasts.append(test.series[:, -1:, 1] + model.predict(design(test)))
    closest = min(np.abs(found["linear autoregression"][..., 1] - one).max() for one in forecasts)
    assert closest < 1e-3


def test_missing_labels_do_not_spoil_the_floors():
    values = (RNG.standard_normal((120, 2)).cumsum(0) + 50).astype(np.float32)
    gaps = RNG.random(values.shape) < 0.05
    series = Series("walk", values, ("a", "b"), gaps)
    windows = cut_windows(series, past=3, horizons=2, minutes=60)
    test = traffic.Truth.of(windows.test, windows)
    assert np.isnan(test.labels).any()
    for forecasts in traffic.floors(series, windows, 60).values():
        assert np.isfinite(forecasts).all()
        assert all(np.isfinite(x) for x in traffic.scores(forecasts, test.labels, (1, 2)).values())


def test_a_teacher_that_does_not_beat_the_floors_is_said_to_be_none():
    scored = {"last value": {"mae": 3.0}, "linear": {"mae": 2.0}}
    assert traffic.verdict(scored, {"mae": 1.9}, "mae").endswith("the best floor, linear, 2.000. It beats the floors.")
    assert traffic.verdict(scored, {"mae": 2.1}, "mae").endswith("does NOT beat the floors, so that it is no teacher.")


def test_flags_that_contradict_each_other_get_a_sentence():
    config = traffic.TrafficConfig(series="waves", adjacency="waves")
    config.check()
    for values, message in (
        ({"horizons": (6, 3)}, r"--horizons is \[6, 3\]: give increasing numbers"),
        ({"minutes": 3000.0}, "--minutes is 3000, longer than a day"),
        ({"series": "nowhere.csv"}, "--series is nowhere.csv, which does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **values).check()
    assert list(traffic.columns((3,), 5.0)) == ["mean-mae-3", "mean-rmse-3", "at-mae-3", "at-rmse-3"]
    assert traffic.columns((3,), 5.0)["at-rmse-3"].header == "15 min"
