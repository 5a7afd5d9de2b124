"""Train and evaluation steps: pure functions made from a student, a teacher, a term and an optax transformation."""

from jaxkd.train import attacks, gradients, multistep, optimizers, perturbations, students
from jaxkd.train.state import begin_state, check_parts, init_state
from jaxkd.train.step import Step, make_eval_step, make_train_step

__all__ = [
    "Step",
    "attacks",
    "begin_state",
    "check_parts",
    "gradients",
    "init_state",
    "make_eval_step",
    "make_train_step",
    "multistep",
    "optimizers",
    "perturbations",
    "students",
]
