"""Trials: trainings of students that differ in their seeds, and the rows of the table that they end in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import optax

from jaxkd import data, models, reports
from jaxkd.experiment.conclusion import conclude
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.experiment.trainer import train_phase, variables_of
from jaxkd.train import students
from jaxkd.types import Model, Term, TrainState, Variables

Scores: TypeAlias = Mapping[str, float]
"""Name -> figure of one network on the test split."""


class Column(NamedTuple):
    """A column of a table of trials.

    Attributes:
      header: Its header, with the unit.
      scale: Factor that figures are multiplied by; 100 shows a fraction in percent.
      digits: Number of decimals.
    """

    header: str
    scale: float = 1.0
    digits: int = 2


PERCENT = 100.0
"""Scale of a column in percent."""

CACHED: Mapping[str, Any] = {"teacher": models.cached(), "teacher_variables": NO_VARIABLES}
"""Options of `train_phase` for students whose batches hold the teacher's answers."""

QUIET: Mapping[str, Any] = {"best": None, "measured": {}}
"""Options of `train_phase` for trainings whose metrics on batches say little."""


def train_seeds(
    context: Context,
    name: str,
    source: data.Source,
    model: Model,
    term: Term,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    seeds: int | None = None,
    **options: Any,
) -> TrainState:
    """Trains one network, or one for each seed together.

    Args:
      context: The context of the trainings.
      name: The phase's name.
      source: Training data.
      model: The network.
      term: The objective.
      optimizer: The optax transformation.
      steps: Updates.
      seeds: Number of students, whose variables are stacked; None for a single network, such as a teacher.
      **options: Further ones of `train_phase`.

    Returns:
      The state after the last step.
    """
    objective = term, optimizer
    return train_phase(
        context,
        name,
        source,
        student=model,
        objective=objective if seeds is None else lambda: objective,
        points=None if seeds is None else students.grid(seed=range(seeds)),
        steps=steps,
        **{"every": steps, "key": jax.random.key(context.seed), **options},
    )


class Trials(NamedTuple):
    """Trainings of one experiment, and the table that they end in.

    Attributes:
      context: The context of the trainings.
      seeds: Number of students of each kind.
      columns: Name of a figure -> its column.
      rows: Rows of the table so far.
    """

    context: Context
    seeds: int
    columns: Mapping[str, Column]
    rows: list[Mapping[str, Any]]

    def fit(self, name: str, *args: Any, **options: Any) -> Variables:
        """Trains a single network, such as a teacher.

        Args:
          name: The phase's name.
          *args: As for `train_seeds`: source, model, term, optimizer, steps.
          **options: As for `train_seeds`; by default no metric is computed during the training, and no checkpoint is
            kept for its metric.

        Returns:
          Its variables.
        """
        return variables_of(train_seeds(self.context, name, *args, **{**QUIET, **options}))

    def teach(
        self,
        name: str,
        source: data.Source,
        model: Model,
        term: Term,
        optimizer: optax.GradientTransformation,
        steps: int,
        score: Callable[[Variables], Scores],
        **options: Any,
    ) -> Variables:
        """Trains students that differ in their seeds, scores each of them, and adds their row to the table.

        Args:
          name: Name of the phase and of the row.
          source: Training data.
          model: The network.
          term: The objective.
          optimizer: The optax transformation.
          steps: Updates.
          score: Variables of one student -> its figures on the test split.
          **options: As for `fit`.

        Returns:
          The students' variables, stacked.
        """
        given = source, model, term, optimizer, steps
        variables = self.fit(name, *given, seeds=self.seeds, **options)
        lost = self.context.run.lost[name]
        nothing = dict.fromkeys(self.columns, float("nan"))
        each = [students.pick_student(variables, seed) for seed in range(self.seeds)]
        found = [nothing if seed in lost else score(one) for seed, one in enumerate(each)]
        self.add(name, found, parameters=models.count_parameters(each[0]))
        return variables

    def add(
        self, name: str, found: Scores | Sequence[Scores], *, parameters: int | str | None = None, **cells: str
    ) -> None:
        """Adds a row to the table.

        Args:
          name: Name of the row.
          found: Figures of one network or rule, such as a floor; or of each of several students.
          parameters: Number of parameters of one of them, or what else it is made of.
          **cells: Texts of further columns.
        """
        each = [found] if isinstance(found, Mapping) else list(found)
        figures = {
            key: reports.mean_std(
                np.asarray([x[key] for x in each if key in x]), scale=column.scale, digits=column.digits
            )
            for key, column in self.columns.items()
        }
        count = f"{parameters:,}" if isinstance(parameters, int) else parameters
        size = {} if count is None else {"parameters": count}
        self.rows.append({"network": name, **size, **figures, **cells})

    def conclude(self, *, title: str, headers: Mapping[str, str] | None = None, **options: Any) -> None:
        """Prints the table, writes it as `table.md` too, and finishes the run.

        Args:
          title: Above the table.
          headers: Key -> header of further columns.
          **options: Further ones of `jaxkd.experiment.conclude`.
        """
        columns = {"network": "network", "parameters": "parameters"}
        columns |= {key: column.header for key, column in self.columns.items()} | dict(headers or {})
        conclude(self.context.run, self.rows, columns, title=title, markdown=True, **options)
