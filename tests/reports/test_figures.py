"""Figures hold the numbers that they were given."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import reports
from jaxkd.reports import canvas


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved, real = [], canvas.save

    def save(figure, path):
        saved.append(figure)
        real(figure, path)

    monkeypatch.setattr(canvas, "save", save)
    return saved


METRICS = [
    {"phase": phase, "split": split, "step": step, "loss": [1.0 / step, 3.0 / step], "accuracy": 0.5}
    for phase in ("alone", "distilled")
    for split in ("train", "test")
    for step in (1, 2, 4)
]


def test_curves_have_a_line_a_phase_and_split_with_the_mean_and_a_band(tmp_path, figures):
    path = tmp_path / "new" / "curves.png"
    reports.plot_curves(METRICS, path, y=["loss", "accuracy"], labels={"loss": "loss (nats)"}, title="Digits")
    assert path.read_bytes().startswith(b"\x89PNG")
    loss, accuracy = figures[0].axes
    assert [line.get_label() for line in loss.lines] == [
        "alone, train",
        "alone, test",
        "distilled, train",
        "distilled, test",
    ]
    np.testing.assert_allclose(loss.lines[3].get_xydata(), [[1, 2], [2, 1], [4, 0.5]])
    band = loss.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [(2 - 2**0.5) / 4, 2 + 2**0.5])
    assert not accuracy.collections
    assert (loss.get_ylabel(), accuracy.get_ylabel(), loss.get_xlabel()) == (
        "loss (nats)",
        "accuracy",
        "step (updates)",
    )
    colours = [line.get_color() for line in loss.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]


def test_curves_of_runs_without_phases_gaps_and_single_points(tmp_path, figures):
    rows = [
        {"split": "train", "step": 1, "loss": float("nan")},
        {"split": "train", "step": 2, "loss": 1.0},
        {"split": "test", "step": 2, "loss": [1.0, 2.0]},
    ]
    reports.plot_curves(rows, tmp_path / "c.svg", y="loss")
    assert [(line.get_label(), line.get_marker()) for line in figures[0].axes[0].lines] == [
        ("train", "None"),
        ("test", "o"),
    ]


def test_curves_of_a_missing_metric_list_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"'acuracy': choose among accuracy, loss"):
        reports.plot_curves(METRICS, tmp_path / "c.png", y="acuracy")
    with pytest.raises(ValueError, match="choose among none"):
        reports.plot_curves([], tmp_path / "c.png", y="loss")


def test_reliability_draws_full_bins_and_names_the_ece(tmp_path, figures):
    bins = {
        "teacher": {"count": [0, 30, 10], "confidence": [np.nan, 0.5, 0.9], "accuracy": [np.nan, 0.6, 0.7]},
        "student": {"count": jnp.array([1, 0, 0]), "confidence": jnp.zeros(3), "accuracy": jnp.zeros(3)},
    }
    reports.plot_reliability(bins, tmp_path / "r.png", title="Reliability")
    above, below = figures[0].axes[0], figures[0].axes[0].child_axes[0]
    teacher = above.lines[1]
    assert teacher.get_label() == "teacher (ECE 12.5 %)"  # 3/4 of 0.1 and 1/4 of 0.2
    np.testing.assert_allclose(teacher.get_xydata(), [[0.5, 0.6], [0.9, 0.7]])
    np.testing.assert_allclose(below.lines[0].get_ydata(), [75, 25])
    assert above.lines[2].get_label() == "student (ECE 0.0 %)"


def test_reliability_of_wrong_shapes_and_of_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"'t' have shapes \(2,\), \(1,\) and \(2,\)"):
        reports.plot_reliability({"t": {"count": [1, 1], "confidence": [1], "accuracy": [1, 1]}}, tmp_path / "r.png")
    with pytest.raises(ValueError, match="at least one"):
        reports.plot_reliability({}, tmp_path / "r.png")


def test_a_figure_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*c\.png \("):
        reports.plot_curves(METRICS, tmp_path / "file" / "c.png", y="loss")


def test_no_pyplot_and_its_global_figures(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    reports.plot_curves(METRICS, tmp_path / "c.png", y="loss")
    assert ("matplotlib.pyplot" in sys.modules) == before
