"""Comparisons of students name each one's own values."""

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
