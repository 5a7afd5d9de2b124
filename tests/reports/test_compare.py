"""Comparisons of students name each one's own values."""

import numpy as np
import pytest

from jaxkd import reports


def test_best_is_each_students_own():
    rows = [
        {"phase": "a", "split": split, "step": step, "accuracy": value}
        for split, step, value in (
            ("validation", 1, [0.1, 0.9]),
            ("train", 1, [1.0, 1.0]),
            ("validation", 2, [0.5, 0.8]),
            ("validation", 3, [0.4, 0.7]),
        )
    ]
    rows += [{"phase": "b", "split": "validation", "step": 4, "accuracy": 0.25}]
    found = reports.last_and_best(rows)
    assert found == {
        "a": {"last": [0.4, 0.7], "best": [0.5, 0.9], "best_step": [2, 1]},
        "b": {"last": 0.25, "best": 0.25, "best_step": 4},
    }


def test_one_student_has_no_standard_error():
    with pytest.raises(ValueError, match="have 1 and 2 students: give at least 2"):
        reports.gain([0.5], [0.5, 0.6])


def test_students_that_diverged_are_no_result():
    rows = [{"phase": p, "split": "validation", "step": 1, "accuracy": [0.5, 0.9]} for p in ("a", "b")]
    found = reports.last_and_best(rows, lost={"a": [1]})
    np.testing.assert_array_equal(found["a"]["last"], [0.5, np.nan])
    np.testing.assert_array_equal(found["a"]["best"], [0.5, np.nan])
    assert found["b"]["last"] == rows[0]["accuracy"] == [0.5, 0.9], "others, and what was logged, stay as they are"
    values = {"accuracy": np.array([0.5, 0.6, 0.7], np.float32), "kl": np.arange(3)}
    masked = reports.without_lost(values, [0, 2])
    np.testing.assert_allclose(masked["accuracy"], [np.nan, 0.6, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(masked["kl"], [np.nan, 1, np.nan])
    assert reports.without_lost(values, []) == values


def test_points_that_differ_in_the_seventh_digit_are_not_averaged_as_seeds():
    points = {"temperature": np.array([1.000001, 1.000002, 4], np.float32), "seed": np.zeros(3, np.int32)}
    labels = [label for label, _ in reports.by_point({"accuracy": np.arange(3)}, points)]
    assert labels == [" temperature=1.000001", " temperature=1.000002", " temperature=4"]


def test_a_gain_has_the_standard_error_of_a_difference_of_means():
    """Variances 2 of two and 4 of four, of the sample: sqrt(2 / 2 + 4 / 4)."""
    before, after = [1.0, 3.0], [3.0, 3.0, 7.0, 3.0]
    difference, error, said = reports.gain(before, after)
    assert (difference, error) == pytest.approx((2.0, np.sqrt(2)))
    assert said == "+2.00 points, NOT more than two standard errors (of 1.41)"
    _, error, said = reports.gain(before, np.array(after) + 1, unit="labels")
    assert error == pytest.approx(np.sqrt(2))
    assert said == "+3.00 labels, more than two standard errors (of 1.41)"


def test_students_are_grouped_by_their_points():
    points = {"temperature": [1.0, 1.0, 4.0, 4.0], "seed": [0, 1, 0, 1]}
    found = dict(reports.by_point({"accuracy": [0.1, 0.2, 0.3, 0.4]}, points))
    assert {label: values["accuracy"].tolist() for label, values in found.items()} == {
        " temperature=1": [0.1, 0.2],
        " temperature=4": [0.3, 0.4],
    }
