"""Students of a stack that a training has given up, so that no table shows them as a result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxkd.files import read_json, write_json
from jaxkd.parallel import processes


class LostStudents:
    """Students of a phase that were given up, with the step at which that was.

    They are kept in a file of the run: a training that resumes from a later checkpoint knows them.

    Args:
      file: JSON file of all phases; None keeps nothing.
      phase: Name of the phase.
    """

    def __init__(self, file: Path | None = None, phase: str = "") -> None:
        self._file, self._phase = file, phase
        kept = read_json(file).get(phase, {}) if file is not None and file.exists() else {}
        self._steps = {int(student): int(step) for student, step in kept.items()}

    @property
    def numbers(self) -> list[int]:
        """Numbers of the students, in order."""
        return sorted(self._steps)

    def resume(self, step: int) -> None:
        """Forgets the students that were given up after a step, from which the training goes on.

        Args:
          step: Number of steps done.
        """
        self._steps = {student: then for student, then in self._steps.items() if then <= step}

    def mask(self, count: int) -> np.ndarray:
        """Marks the students among all.

        Args:
          count: Number of all students S.

        Returns:
          Booleans [S].
        """
        return np.isin(np.arange(count), self.numbers)

    def add(self, students: Iterable[int], step: int) -> None:
        """Gives students up.

        Args:
          students: Their numbers.
          step: Number of the step at which they are lost.

        Raises:
          OSError: If the file cannot be written.
        """
        self._steps |= {int(student): step for student in students if student not in self._steps}
        if self._file is not None and processes.is_first():
            phases = read_json(self._file) if self._file.exists() else {}
            write_json(
                self._file, phases | {self._phase: {str(student): self._steps[student] for student in self.numbers}}
            )
