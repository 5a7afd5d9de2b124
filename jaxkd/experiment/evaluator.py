"""The evaluation of a student, compiled once for use during and after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd import data, metrics, parallel, train
from jaxkd.experiment.context import NO_VARIABLES, Context
from jaxkd.runs.loop import evaluate
from jaxkd.train import students
from jaxkd.types import Batch, Model, TrainState, Variables


class Evaluator:
    """Compiles the evaluation of a student once, for use during and after training.

    Args:
      setting: What all trainings share.
      student: The model that is measured.
      chosen: Name -> metric.
      stacked: Whether states hold several students.
      teacher: The model that it is compared with, if any.
      teacher_variables: The teacher's variables.
    """

    def __init__(
        self,
        setting: Context,
        student: Model,
        chosen: Mapping[str, metrics.Metric],
        *,
        stacked: bool = False,
        teacher: Model | None = None,
        teacher_variables: Variables = NO_VARIABLES,
    ) -> None:
        plan = setting.plan
        taught, held = setting.training.teacher(teacher, teacher_variables)
        pair = (setting.training.student(student), taught)

        def compiled(ema: bool) -> Any:
            options: dict[str, Any] = {"prepare": setting.eval_prepare, "axis_name": plan.axis_name}
            step = train.make_eval_step(*pair, chosen, ema=ema, **options)
            form = students.FORMS["map" if setting.training.form == "fastest" else setting.training.form]
            return plan.compile(form(step) if stacked else step, donate_state=False)

        self._steps = {"": compiled(ema=False), "ema_": compiled(ema=True)}
        self._known, self._place = plan.put(held), plan.place
        self._size = 256 * plan.mesh.size

    def __call__(self, state: TrainState, source: data.Source) -> dict[str, Any]:
        """Metrics of a state over a whole split.

        Args:
          state: The state.
          source: The split.

        Returns:
          Name -> accumulator on the host; `metrics.values` turns them into numbers. Where the state carries a moving
          average of the student, its metrics stand beside the student's under `ema_<name>`.
        """
        batches = data.eval_batches(source, self._size)
        found: dict[str, Any] = {}
        for prefix in ("", "ema_") if state.ema is not None else ("",):
            sums = evaluate(self._steps[prefix], state, self._known, data.prefetch(batches, self._place))
            found |= {f"{prefix}{name}": value for name, value in sums.items()}
        return found


def predict(setting: Context, model: Model, variables: Variables, source: data.Source) -> tuple[Any, Any]:
    """A model's logits for every row of a source, in evaluation mode, as a teacher's soft labels.

    Args:
      setting: What all trainings share.
      model: The model.
      variables: Its variables.
      source: The rows.

    Returns:
      ids int32 [N] and logits [N, ..., K], NumPy arrays in the source's order.
    """

    def logits(state: Any, variables: Variables, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = model.apply(variables, setting.eval_prepare(batch), None, False)[0].logits
        return found, batch["id"], batch["mask"]

    plan = parallel.with_jit(setting.plan.mesh)
    step, known = plan.compile(logits, donate_state=False), plan.put(variables)
    rows = [
        jax.device_get(step(None, known, batch))
        for batch in data.prefetch(data.eval_batches(source, 256 * plan.mesh.size), plan.place)
    ]
    return (
        np.concatenate([ids[mask] for _, ids, mask in rows]),
        np.concatenate([values[mask] for values, _, mask in rows]),
    )
