"""Knowledge distillation and transfer learning in JAX.

Losses are pure functions of arrays, terms and models are pairs of pure functions, and a train step is made from them.
What touches disks and data sets (`jaxkd.data`, `jaxkd.checkpoint`, `jaxkd.loop`, `jaxkd.stage`, `jaxkd.pytorch`) is
imported by name.
"""

from jaxkd import (
    augment,
    gradients,
    losses,
    metrics,
    models,
    numerics,
    objectives,
    optimizers,
    parallel,
    testing,
    train,
)
from jaxkd.objectives import from_features, from_labels, from_logits, from_outputs, weighted
from jaxkd.train import init_state, make_eval_step, make_train_step
from jaxkd.types import Batch, EvalFn, Metrics, Model, Outputs, PyTree, Schedule, StepFn, Term, TrainState, Variables

__all__ = [
    "Batch",
    "EvalFn",
    "Metrics",
    "Model",
    "Outputs",
    "PyTree",
    "Schedule",
    "StepFn",
    "Term",
    "TrainState",
    "Variables",
    "augment",
    "from_features",
    "from_labels",
    "from_logits",
    "from_outputs",
    "gradients",
    "init_state",
    "losses",
    "make_eval_step",
    "make_train_step",
    "metrics",
    "models",
    "numerics",
    "objectives",
    "optimizers",
    "parallel",
    "testing",
    "train",
    "weighted",
]
