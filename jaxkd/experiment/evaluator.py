"""The evaluation of a student, compiled once for use during and after training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from jaxkd import data, parallel, train
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.experiment.measures import evaluation_metrics
from jaxkd.runs.loop import evaluate
from jaxkd.train import students
from jaxkd.types import Batch, Metric, Model, TrainState, Variables

PER_DEVICE = 256
"""Examples of a batch that each device evaluates."""

Predict: TypeAlias = Callable[[data.Source], tuple[Any, Any]]
"""Source -> ids and logits of its rows."""


class Evaluator:
    """The evaluation of a student, compiled once for use during and after training.

    Args:
      context: The context of the experiment's trainings.
      student: The model that is evaluated.
      metrics: Name -> metric; those of each split's task if None, such as MAE and RMSE of a regression.
      stacked: Whether states hold several students.
      teacher: The model that the student is compared with, if any.
      teacher_variables: The teacher's variables.
    """

    def __init__(
        self,
        context: Context,
        student: Model,
        metrics: Mapping[str, Metric] | None = None,
        *,
        stacked: bool = False,
        teacher: Model | None = None,
        teacher_variables: Variables = NO_VARIABLES,
    ) -> None:
        plan, options = context.plan, context.step_options
        teacher, teacher_variables = options.cast_teacher(teacher, teacher_variables)
        networks = (options.cast_student(student), teacher)

        def compiled(measures: Mapping[str, Metric], ema: bool) -> Any:
            step = train.make_eval_step(
                *networks, measures, ema=ema, prepare=context.eval_prepare, axis_name=plan.axis_name
            )
            form = students.FORMS["map" if options.form == "fastest" else options.form]
            return plan.compile(form(step) if stacked else step, donate_state=False)

        self._metrics, self._compiled = metrics, compiled
        self._steps: dict[tuple[Any, ...], Any] = {}
        self._teacher_variables, self._place = plan.put(teacher_variables), plan.place
        self._batch_size = PER_DEVICE * plan.mesh.size

    def __call__(self, state: TrainState, source: data.Source) -> dict[str, Any]:
        """Computes the metrics of a state over a whole split.

        Args:
          state: The state.
          source: The split.

        Returns:
          Name -> accumulator on the host; `metrics.values` turns them into numbers. A state with a moving average of
          the student has its metrics too, under `ema_<name>`.
        """
        batches = data.eval_batches(source, self._batch_size)
        found: dict[str, Any] = {}
        for prefix in ("", "ema_") if state.ema is not None else ("",):
            stream = data.prefetch(batches, self._place)
            sums = evaluate(self._step(source, prefix == "ema_"), state, self._teacher_variables, stream)
            found |= {f"{prefix}{name}": value for name, value in sums.items()}
        return found

    def _step(self, source: data.Source, ema: bool) -> Any:
        """The compiled step of a split: one for all, or for each task."""
        kind = () if self._metrics is not None else (source.task, str(source.ignore))
        if (*kind, ema) not in self._steps:
            measures = evaluation_metrics(source) if self._metrics is None else self._metrics
            self._steps[(*kind, ema)] = self._compiled(measures, ema)
        return self._steps[(*kind, ema)]


def predict(context: Context, model: Model, variables: Variables, source: data.Source) -> tuple[Any, Any]:
    """Computes a model's logits for every row of a source, in evaluation mode, for instance as soft labels.

    Args:
      context: The context of the experiment's trainings.
      model: The model.
      variables: Its variables.
      source: The rows.

    Returns:
      ids int32 [N] and logits [N, ..., K], NumPy arrays in the source's order; those of tokens, [N, L, K], are 0 beyond
      the length that a row was padded to.
    """
    return predictor(context, model)(variables)(source)


def predictor(context: Context, model: Model) -> Callable[[Variables], Predict]:
    """Makes `predict` of several variables and sources, whose programs are compiled once.

    Args:
      context: The context of the experiment's trainings.
      model: The model.

    Returns:
      Variables -> a function from a source to ids and logits, as `predict` gives them.
    """

    def logits(state: Any, variables: Variables, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        outputs, _ = model.apply(variables, context.eval_prepare(batch), None, False)
        return outputs.logits, batch["id"], batch["mask"]

    plan = parallel.with_jit(context.plan.mesh)
    step = plan.compile(logits, donate_state=False)

    def with_variables(variables: Variables) -> Predict:
        placed = plan.put(variables)

        def of(source: data.Source) -> tuple[Any, Any]:
            rows = [
                jax.device_get(step(None, placed, batch))
                for batch in data.prefetch(data.eval_batches(source, PER_DEVICE * plan.mesh.size), plan.place)
            ]
            ids = np.concatenate([ids[mask] for _, ids, mask in rows])
            order = np.argsort(ids)  # length buckets come one after the other
            return ids[order], _joined([values[mask] for values, _, mask in rows])[order]

        return of

    return with_variables


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Logits of all batches; those of tokens, whose number differs between batches, are filled up with zeros."""
    if parts[0].ndim < 3:
        return np.concatenate(parts)
    length = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, [(0, 0), (0, length - part.shape[1])] + [(0, 0)] * (part.ndim - 2)) for part in parts]
    )
