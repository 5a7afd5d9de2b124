"""Plots of results hold the numbers that they were given, and refuse what does not fit."""

import numpy as np
import pytest

from jaxkd import reports
from jaxkd.reports import canvas

TIMES = np.arange("2024-01-01T00", "2024-01-01T04", dtype="datetime64[h]")
PICTURES = np.linspace(0, 1, 2 * 6 * 8).reshape(2, 6, 8, 1)
BOXES = [([[1, 1, 4, 5]], [1], [0.9]), ([], [], [])]


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be saved; drawing one to a file is what costs time."""
    saved = []
    monkeypatch.setattr(canvas, "save", lambda figure, path: saved.append(figure))
    return saved


def test_lines_are_means_with_bands(tmp_path):
    path = tmp_path / "new" / "snr.png"
    found = []
    real = canvas.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save", lambda figure, path: (found.append(figure), real(figure, path)))
        lines = {"teacher": [1, 2, 3], "student": [[1, 2, np.nan], [3, 2, 1]]}
        reports.plot_lines(path, [20, 10, 0], lines, "SNR (dB)", "accuracy (%)", "Noise")
    assert path.read_bytes().startswith(b"\x89PNG")
    axes = found[0].axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[20, 2], [10, 2], [0, np.nan]])
    assert len(axes.collections) == 1  # the student's band; the teacher has none
    assert axes.get_xlabel() == "SNR (dB)"


def test_roc_curves_name_their_area(figures):
    reports.plot_roc("r.png", {"net": ([0, 0.5, 1], [0, 1, 1]), "rule": ([0, 1], [0, 1])})
    assert [line.get_label() for line in figures[0].axes[0].lines] == ["chance", "net (AUC 0.750)", "rule (AUC 0.500)"]


def test_forecasts_stand_beside_the_truth(figures):
    reports.plot_forecasts("f.png", TIMES, [1, np.nan, 3, 4], {"last value": [np.nan, 1, np.nan, 3]}, y_label="mph")
    truth, forecast = figures[0].axes[0].lines
    np.testing.assert_array_equal(forecast.get_ydata(), [np.nan, 1, np.nan, 3])
    assert truth.get_label() == "truth"


def test_confusion_shows_counts_and_fractions_of_true_classes(figures):
    reports.plot_confusion("c.png", [[3, 1], [0, 0]], ["a", "b"])
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_boxes_on_pictures(figures):
    truth = [([[0, 0, 2, 2], [1, 1, 3, 3]], [0, 1]), (np.zeros((0, 4)), [])]
    reports.plot_boxes("b.png", PICTURES, BOXES, ["red", "white"], truth)
    first, second = figures[0].axes
    bounds = [patch.get_bbox().bounds for patch in first.patches]
    np.testing.assert_array_equal(bounds, [(0, 0, 2, 2), (1, 1, 2, 2), (1, 1, 3, 4)])
    assert [patch.get_linestyle() for patch in first.patches] == ["--", "--", "solid"]
    assert [text.get_text() for text in first.texts] == ["0.90"]
    assert not second.patches
    assert first.images[0].get_array().shape == (6, 8, 3)


def test_masks_paint_all_but_the_background(figures):
    mask = np.zeros((2, 6, 8), int)
    mask[0, 0], mask[0, 1] = 1, 255
    reports.plot_masks("m.png", (255 * PICTURES).astype(np.uint8), {"truth": mask, "student": mask}, ["none", "cell"])
    figure = figures[0]
    plain, painted = (axes.images[0].get_array() for axes in figure.axes[:2])
    np.testing.assert_array_equal(plain[2:], painted[2:])
    assert np.all(np.any(plain[:2] != painted[:2], axis=-1))
    assert np.ptp(painted[1], axis=-1).max() < 1e-9  # grey
    assert [axes.get_title() for axes in figure.axes] == ["picture", "truth", "student", "", "", ""]
    assert [text.get_text() for text in figure.legends[0].texts] == ["cell"]


@pytest.mark.parametrize(
    ("draw", "args", "sentence"),
    [
        (reports.plot_lines, ([1, 2], {}, "x", "y"), "no line to draw"),
        (reports.plot_lines, ([1, 2], {"net": [1, 2, 3]}, "x", "y"), r"'net' has shape \(3,\) but x has 2"),
        (reports.plot_lines, ([[1]], {"net": [1]}, "x", "y"), r"x has shape \(1, 1\): give \[N\]"),
        (reports.plot_roc, ({"net": ([0, 1], [0, 1, 1])},), "2 false and 3 true positive rates"),
        (reports.plot_roc, ({"net": ([1, 0], [0, 1])},), "'net' falls or lies outside"),
        (reports.plot_roc, ({"net": ([0, 1], [0, 1.5])},), "'net' falls or lies outside"),
        (reports.plot_forecasts, (TIMES, [1, 2], {"net": [1, 2, 3, 4]}), r"truth has shape \(2,\).*4 times"),
        (reports.plot_confusion, ([[1, 2]], ["a", "b"]), r"shape \(1, 2\) and there are 2 names"),
        (reports.plot_confusion, ([[-1]], ["a"]), "not negative"),
        (reports.plot_boxes, (PICTURES, BOXES[:1], ["a", "b"]), "2 pictures but found boxes of 1"),
        (reports.plot_boxes, (PICTURES, BOXES, ["a", "b"], []), "2 pictures but true boxes of 0"),
        (reports.plot_boxes, (PICTURES, BOXES, ["a"]), r"lie in 1..1, but there are names for 1"),
        (reports.plot_boxes, (PICTURES, [([[1, 2]], [0], [1]), BOXES[1]], ["a"]), r"shapes \(1, 2\), \(1,\)"),
        (reports.plot_masks, (PICTURES, {}), "no mask to draw"),
        (reports.plot_masks, (PICTURES, {"net": np.zeros((2, 3, 4))}), r"'net' has shape \(2, 3, 4\)"),
        (reports.plot_masks, (PICTURES, {"net": np.full((2, 6, 8), 3)}, ["a"]), "classes 3..3, but .* names for 1"),
        (reports.plot_masks, (PICTURES[0], {"net": np.zeros((6, 8))}), r"pictures have shape \(6, 8, 1\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(figures, draw, args, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw("p.png", *args)
    assert not figures
