"""Traffic on a network of roads: its configuration and data, forecasts without a network, and the tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import optax

from jaxkd import data, reports
from jaxkd.data.readers.series import Series, read_adjacency, read_series
from jaxkd.data.series import DAY, Windows, cut_windows
from jaxkd.experiment.conclusion import conclude
from jaxkd.experiment.config import Config, check_file
from jaxkd.experiment.domains import COUNT, FRACTION, NON_NEGATIVE, POSITIVE
from jaxkd.experiment.flags import DATA, flag
from jaxkd.experiment.trials import Column, Trials
from jaxkd.files import write_atomically

WAVES = "waves"
"""Value of `--series` and `--adjacency` that stands for a few sensors made in memory."""

RIDGE = (1.0, 10.0, 100.0, 1000.0)
"""Penalties of the autoregression, of which the best on the validation part is taken."""


@dataclasses.dataclass(frozen=True)
class TrafficConfig(Config):
    """Base configuration of an experiment on series of sensors and the graph between them."""

    series: str = flag("los_speed.csv.xz", "CSV file: a line of sensors' names, then one row a time step", DATA)
    adjacency: str = flag("los_adj.csv.xz", "CSV file of the weights between the sensors, a row for each", DATA)
    minutes: float = flag(5.0, "interval of the time steps, in minutes", DATA, POSITIVE)
    past: int = flag(12, "past time steps that a forecast sees", DATA, COUNT)
    horizons: tuple[int, ...] = flag((3, 6, 9, 12), "horizons of the tables, in time steps", DATA, COUNT)
    missing: Literal["refuse", "forward", "mask"] = flag(
        "refuse", "missing values: refuse, fill forward, or fill and mask as targets", DATA
    )
    missing_value: float | None = flag(
        None, "a number that stands for a missing value too, such as 0", DATA, NON_NEGATIVE
    )
    validation: float = flag(0.1, "fraction of the time before the test part, to tune on", DATA, FRACTION)
    test: float = flag(0.2, "fraction of the time at the end that is the test part", DATA, FRACTION)

    def check(self) -> None:
        """Checks values and files before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain, or a file is missing.
        """
        super().check()
        for name in ("series", "adjacency"):
            if getattr(self, name) != WAVES:
                check_file(self, name)
        if list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"--horizons is {list(self.horizons)}: give increasing numbers of time steps.")
        if self.minutes > DAY:
            raise ValueError(f"--minutes is {self.minutes:g}, longer than a day: give the interval of the time steps.")


def open_traffic(config: TrafficConfig) -> tuple[Series, np.ndarray, Windows]:
    """Opens the series and the graph of a configuration, and cuts the series into windows.

    Args:
      config: The configuration.

    Returns:
      The series, its adjacency [N, N], and the windows of its three parts.

    Raises:
      ValueError: As the readers say, or if the graph is not that of the series.
    """
    if WAVES in (config.series, config.adjacency):
        series, adjacency = waves()
    else:
        place = Path(config.series).expanduser()
        series = read_series(place, missing=config.missing, missing_value=config.missing_value)
        adjacency = read_adjacency(Path(config.adjacency).expanduser(), series.sensors)
    windows = cut_windows(
        series,
        past=config.past,
        horizons=config.horizons[-1],
        minutes=config.minutes,
        validation=config.validation,
        test=config.test,
    )
    return series, adjacency, windows


def waves(steps: int = 240, sensors: int = 4) -> tuple[Series, np.ndarray]:
    """Makes noisy waves that pass along a chain of sensors, always the same.

    Args:
      steps: Number of time steps T.
      sensors: Number of sensors N.

    Returns:
      The series [T, N], and the chain's adjacency.
    """
    random, place = np.random.RandomState(0), np.arange(sensors)
    values = 50 + 10 * np.sin(np.arange(steps)[:, None] / 9 - place) + random.normal(size=(steps, sensors))
    names = tuple(f"sensor{i}" for i in place)
    series = Series(WAVES, values.astype(np.float32), names, np.zeros(values.shape, bool))
    return series, (np.abs(place[:, None] - place) <= 1).astype(np.float32)


def clipped_adam(rate: float, updates: int) -> optax.GradientTransformation:
    """Adam whose rate falls along a cosine, of gradients whose norm is clipped to 5.

    Args:
      rate: First rate.
      updates: Updates.

    Returns:
      The optax transformation.
    """
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(rate, updates)))


class Truth(NamedTuple):
    """Labels of all windows of a source.

    Attributes:
      series: Past values in units of the data, [M, P, N].
      labels: Values to forecast, [M, H, N], NaN where one was missing.
      ids: Step of the last past value of each window, [M].
    """

    series: np.ndarray
    labels: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, source: data.Source, windows: Windows) -> Truth:
        """Reads all windows of a source."""
        rows = source.read(np.arange(source.size))
        return cls(windows.mean + windows.std * rows["series"].astype(np.float64), rows["label"], rows["id"])


def floors(series: Series, windows: Windows, minutes: float) -> dict[str, np.ndarray]:
    """Forecasts of the test part that need no network.

    Args:
      series: The series.
      windows: Its windows.
      minutes: Interval of the time steps, in minutes.

    Returns:
      Name -> forecasts [M, H, N]: the last value; the average of the training part at the same time of day; a linear
      autoregression of each sensor and horizon on its own past, by ridge regression, whose penalty is chosen on the
      validation part.
    """
    train, validation, test = (Truth.of(part, windows) for part in windows[:3])
    horizons = test.labels.shape[1]
    return {
        "last value": np.repeat(test.series[:, -1:], horizons, axis=1),
        "historical average": historical_average(series, windows, test.ids, horizons, minutes),
        "linear autoregression": autoregression(train, validation, test),
    }


def historical_average(series: Series, windows: Windows, ids: np.ndarray, horizons: int, minutes: float) -> np.ndarray:
    """Average of the training part at the same time of day.

    Args:
      series: The series.
      windows: Its windows.
      ids: Step of the last past value of each window, [M].
      horizons: Number of steps H to forecast.
      minutes: Interval of the time steps, in minutes.

    Returns:
      [M, H, N]; of a time of day that the training part does not have, the average of all its values.
    """
    train = windows.train
    steps = int(train.start + train.size + horizons)  # all steps of the training part, labels included
    day = max(1, round(DAY / minutes))
    known = np.where(series.missing[:steps], np.nan, series.values[:steps].astype(np.float64))
    overall = np.nan_to_num(np.nanmean(known), nan=windows.mean)
    profile = np.full((day, known.shape[1]), overall)
    for time in range(min(day, steps)):
        each = known[time::day]
        count = np.sum(~np.isnan(each), axis=0)
        profile[time] = np.where(count > 0, np.nansum(each, axis=0) / np.maximum(count, 1), overall)
    return profile[(ids[:, None] + np.arange(1, horizons + 1)) % day]


def autoregression(train: Truth, validation: Truth, test: Truth) -> np.ndarray:
    """Linear autoregression of each sensor on its own past, one for each horizon, by ridge regression.

    Args:
      train: Windows to fit.
      validation: Windows to choose the penalty on, one of `RIDGE`, by the mean absolute error.
      test: Windows to forecast.

    Returns:
      Forecasts [M, H, N] of the test windows.
    """

    def design(truth: Truth) -> np.ndarray:
        """Rows [N, M, P + 1] of each sensor: the last value's differences from the others, the last one, and 1."""
        x = truth.series.transpose(2, 0, 1)
        return np.concatenate([x[..., :-1] - x[..., -1:], x[..., -1:] - centre, np.ones_like(x[..., :1])], axis=-1)

    centre = train.series.mean()
    rows, change = design(train), (train.labels - train.series[:, -1:]).transpose(2, 0, 1)
    weight = np.isfinite(change).all(axis=-1)[..., None]  # windows without a missing label
    rows, change = rows * weight, np.where(weight, change, 0)
    gram, moment = rows.swapaxes(1, 2) @ rows, rows.swapaxes(1, 2) @ change
    penalty = np.diag([*[1.0] * (gram.shape[-1] - 1), 1e-6])  # not of the constant

    def forecast(strength: float, truth: Truth) -> np.ndarray:
        found = design(truth) @ np.linalg.solve(gram + strength * penalty, moment)
        return truth.series[:, -1:] + found.transpose(1, 2, 0)

    errors = [np.nanmean(np.abs(forecast(strength, validation) - validation.labels)) for strength in RIDGE]
    return forecast(RIDGE[int(np.argmin(errors))], test)


def columns(horizons: tuple[int, ...], minutes: float) -> dict[str, Column]:
    """Columns of the tables: MAE and RMSE of each horizon, of all steps up to it, and at it.

    Args:
      horizons: Steps.
      minutes: Interval of the steps, in minutes.

    Returns:
      Key such as "mean-mae-3" -> its column.
    """
    return {
        f"{kind}-{measure}-{horizon}": Column(f"{horizon * minutes:g} min", digits=digits)
        for kind in ("mean", "at")
        for horizon in horizons
        for measure, digits in (("mae", 3), ("rmse", 3))
    }


def scores(forecasts: np.ndarray, labels: np.ndarray, horizons: tuple[int, ...]) -> dict[str, float]:
    """Errors of forecasts, in units of the data.

    Args:
      forecasts: [M, H, N].
      labels: [M, H, N], NaN where there is none.
      horizons: Steps h in 1..H.

    Returns:
      For each h: `mean-mae-h` and `mean-rmse-h` of all steps 1..h together, `at-mae-h` and `at-rmse-h` of step h alone.
    """
    error = np.asarray(forecasts, np.float64) - labels
    found = {}
    for h in horizons:
        for kind, part in (("mean", error[:, :h]), ("at", error[:, h - 1])):
            found[f"{kind}-mae-{h}"] = float(np.nanmean(np.abs(part)))
            found[f"{kind}-rmse-{h}"] = float(np.sqrt(np.nanmean(np.square(part))))
    return found


def verdict(scored: Mapping[str, Mapping[str, float]], teacher: Mapping[str, float], key: str) -> str:
    """Sentence that says if a teacher is one: better than every floor.

    Args:
      scored: Floor -> its scores.
      teacher: Scores of the teacher.
      key: Score that is compared, of which small values are better.

    Returns:
      The sentence.
    """
    name = min(scored, key=lambda floor: scored[floor][key])
    better = teacher[key] < scored[name][key]
    said = "It beats the floors." if better else "It does NOT beat the floors, so that it is no teacher."
    return f"{key}: the teacher has {teacher[key]:.3f}, the best floor, {name}, {scored[name][key]:.3f}. {said}"


def plot(path: Path, series: Series, test: Truth, forecasts: Mapping[str, np.ndarray], config: TrafficConfig) -> None:
    """Draws forecasts of the farthest horizon beside the truth, for the sensor that varies most in the test part.

    Args:
      path: Path of the image.
      series: The series.
      test: The test part.
      forecasts: Network -> [M, H, N].
      config: The configuration.
    """
    horizon = config.horizons[-1]
    labels = test.labels[:, horizon - 1]
    sensor = int(np.nanargmax(np.nanstd(labels, axis=0)))
    hours = (test.ids + horizon) * config.minutes / 60
    shown = {name: values[:, horizon - 1, sensor] for name, values in forecasts.items()}
    title = f"sensor {series.sensors[sensor]}, {horizon * config.minutes:g} minutes ahead"
    reports.plot_forecasts(path, hours, labels[:, sensor], shown, "hours since the beginning", "value", title)


def finish(trials: Trials, *, title: str, caption: str) -> None:
    """Prints the four tables, writes them as `table.md`, and finishes the run.

    Args:
      trials: The trainings.
      title: What the figures are of.
      caption: Below the tables.
    """
    shared, tables = {"network": "network", "parameters": "params"}, dict[str, dict[str, str]]()
    for kind, what in (("mean", "of all steps up to the horizon"), ("at", "at the horizon")):
        for measure in ("mae", "rmse"):
            keys = [key for key in trials.columns if key.startswith(f"{kind}-{measure}-")]
            own = {key: trials.columns[key].header for key in keys}
            tables[f"{title}: {measure.upper()} {what}"] = shared | own
    markdown = [f"{name}\n\n{reports.markdown(trials.rows, headers)}" for name, headers in tables.items()]
    write_atomically(trials.context.run.path / "table.md", "\n".join([*markdown, f"{caption}\n"]))
    *first, (title, last) = tables.items()
    for name, headers in first:
        reports.show(reports.table(trials.rows, headers, title=name))
    conclude(trials.context.run, trials.rows, last, title=title, caption=caption)
