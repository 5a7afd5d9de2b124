"""Comparisons of students name each one's own values."""

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
