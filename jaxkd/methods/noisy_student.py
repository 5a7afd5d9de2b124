"""Noisy student: a teacher labels what has no labels, a noised student learns from it, and is the next teacher.

    generation 0      the teacher, trained on the labels alone
    generation g + 1  a student of the same size or a larger one, trained with noise (augmentation, dropout) on the
                      labels and on the rows of whose class generation g, without noise, is certain

    answer = lambda model, variables: predict(context, model, variables, unlabelled)[1]
    for one in noisy_student.generations((teacher, variables), [student, larger], answer=answer, learn=learn):
        ...

`learn` is one training, such as `experiment.train_phase` under a name of the generation's number, so that an
interrupted run goes on with the generation that it was in. The labels are hard, as in the paper's ImageNet results
they may be as well as soft.

Reference:
  Xie, Luong, Hovy, Le, "Self-training with Noisy Student improves ImageNet classification", CVPR 2020,
  https://arxiv.org/abs/1911.04252
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxkd import data
from jaxkd.data.pseudo import Balance
from jaxkd.types import Model, Variables

Answer: TypeAlias = Callable[[Model, Variables], np.ndarray]
"""(network, its variables) -> logits [N, K] of the rows without labels, in evaluation mode: without noise."""

Learn: TypeAlias = Callable[[int, Model, np.ndarray, np.ndarray], Variables]
"""(number of the generation, its network, numbers of rows [M], their pseudo-labels [M]) -> trained variables."""

_NO_ROWS = np.zeros(0, np.int64)


class Generation(NamedTuple):
    """A network of the chain.

    Attributes:
      number: 0 for the teacher.
      model: The network.
      variables: Its variables.
      rows: Numbers of the rows without labels that it has learned from, some perhaps several times.
      labels: The labels that the generation before gave them.
    """

    number: int
    model: Model
    variables: Variables
    rows: np.ndarray
    labels: np.ndarray


def generations(
    teacher: tuple[Model, Variables],
    students: Sequence[Model],
    *,
    answer: Answer,
    learn: Learn,
    threshold: float = 0.3,
    per_class: int | None = None,
    balance: Balance = "repeat",
) -> Iterator[Generation]:
    """Trains students one after the other, each on the pseudo-labels of the one before.

    Args:
      teacher: The first teacher and its variables.
      students: The network of each further generation.
      answer: Labels rows by a generation.
      learn: Trains a generation.
      threshold: Least probability of the class of a pseudo-label; 0.3 in the paper.
      per_class: As for `data.pseudo_labels`.
      balance: As for `data.pseudo_labels`; the paper's classes have exactly as many rows each.

    Yields:
      The teacher as generation 0, then each student as soon as it is trained.

    Raises:
      data.UncertainError: If a generation is certain of no row of a class.
      ValueError: As `data.pseudo_labels` says.
    """
    last = Generation(0, *teacher, _NO_ROWS, _NO_ROWS.astype(np.int32))
    yield last
    for number, model in enumerate(students, 1):
        logits = answer(last.model, last.variables)
        try:
            rows, labels = data.pseudo_labels(logits, threshold=threshold, per_class=per_class, balance=balance)
        except data.UncertainError as error:
            raise data.UncertainError(f"generation {number} has nothing to learn from: {error}") from error
        last = Generation(number, model, learn(number, model, rows, labels), rows, labels)
        yield last
