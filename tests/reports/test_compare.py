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
