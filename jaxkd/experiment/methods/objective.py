"""The training of a student by a method: its phases, its objective, the pairs that it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxkd import losses, objectives
from jaxkd.experiment.methods.makers import Method
from jaxkd.experiment.methods.pair import Pair
from jaxkd.experiment.methods.table import METHODS
from jaxkd.experiment.trainer import variables_of
from jaxkd.types import Term, Variables


def applies(name: str, pair: Pair) -> bool:
    """Tells if a method can compare the two networks.

    Args:
      name: The method.
      pair: The networks.

    Returns:
      False for a method that needs the same channels in all stages where they differ.
    """
    return pair.same_channels or name not in ("fsp", "kdsvd")


def objective(name: str, pair: Pair) -> Term:
    """Makes the objective of a student, in its last phase.

    Args:
      name: The method, or "alone" for the labels only.
      pair: The networks.

    Returns:
      The term.
    """
    on_labels = objectives.from_labels(losses.cross_entropy)
    if name == "alone" or METHODS[name].term_first:
        return on_labels
    method = METHODS[name]
    terms = {"label": (method.label, on_labels), name: (method.weight, method.make(pair))}
    if method.kd:
        terms["soft"] = (method.kd, METHODS["kd"].make(pair))
    return objectives.weighted(**terms)


def pretrain(
    method: Method, name: str, pair: Pair, train: Callable[..., Any], points: Any
) -> tuple[Pair, Variables | None]:
    """Runs the phase that a method has before its last one, if any.

    Args:
      method: The method.
      name: Its name; the phase is called `<name>-pretraining`.
      pair: The networks.
      train: (phase, *, term, pretrains, points) -> state; `pretrains` is "student" or "term".
      points: Points of the sweep of students.

    Returns:
      The pair with the parameters that were trained, and the variables that students start from, or None.
    """
    phase = f"{name}-pretraining"
    if method.term_first:
        return pair, variables_of(train(phase, term=method.make(pair), pretrains="student", points=points))
    if method.pretrain:
        state = train(phase, term=method.pretrain(pair), pretrains="term")
        return pair._replace(pretrained=state.params["term"]), None
    return pair, None
