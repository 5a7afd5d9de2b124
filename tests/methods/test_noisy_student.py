"""Noisy students: generation 0 is the teacher, and each one learns what the one before answers."""

import numpy as np
import pytest

from jaxkd import models
from jaxkd.methods import noisy_student
from jaxkd.types import Variables

TEACHER = models.no_teacher(), Variables({"k": 0}, {})
STUDENTS = [models.cached(), models.cached(logits="other")]
LOGITS = np.array([[2.0, 0.0], [0.0, 4.0], [3.0, 0.0], [0.1, 0.0]])


def answer(model, variables):
    """Each generation answers the other class for the last row."""
    return LOGITS if variables.params["k"] % 2 == 0 else np.concatenate([LOGITS[:3], LOGITS[3:, ::-1]])


def test_generations_learn_from_the_one_before():
    learned = []

    def learn(number, model, rows, labels):
        learned.append((number, model, rows.tolist(), labels.tolist()))
        return Variables({"k": number}, {})

    chain = noisy_student.generations(TEACHER, STUDENTS, answer=answer, learn=learn, threshold=0.0, balance="none")
    first = next(chain)
    assert (first.number, first.model, first.variables, len(first.rows)) == (0, *TEACHER, 0)
    assert not learned  # nothing is trained before it is asked for
    second, third = chain
    assert learned == [(1, STUDENTS[0], [0, 1, 2, 3], [0, 1, 0, 0]), (2, STUDENTS[1], [0, 1, 2, 3], [0, 1, 0, 1])]
    assert (second.variables.params["k"], third.variables.params["k"]) == (1, 2)
    assert third.labels.tolist() == [0, 1, 0, 1]


def test_classes_are_balanced_and_a_threshold_that_keeps_none_is_said():
    def learn(number, model, rows, labels):
        return Variables({"k": 0}, {})

    _, student = noisy_student.generations(TEACHER, STUDENTS[:1], answer=answer, learn=learn, threshold=0.6)
    assert (student.rows.tolist(), student.labels.tolist()) == ([0, 1, 1, 2], [0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"generation 1 has nothing to learn from: .* \[0, 1\] .* at least 1\.0"):
        list(noisy_student.generations(TEACHER, STUDENTS, answer=answer, learn=learn, threshold=1.0))
