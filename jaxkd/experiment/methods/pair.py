"""Two networks as methods see them: their stages, the teacher's last layer, their data."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Pair(NamedTuple):
    """What methods may ask about two networks and their data."""

    names: tuple[str, str]  # of teacher and student
    students: Sequence[str]  # the student's stages, shallow first
    teachers: Sequence[str]  # as many of the teacher's
    alike: bool  # whether both have the same channels in each stage
    classifier: tuple[Any, Any]  # kernel and bias of the teacher's last layer
    size: tuple[int, int]  # height and width of the teacher's last map
    norms: Callable[[], Sequence[Any]]  # deviation and mean [C] of the teacher's stages before their ReLUs
    examples: int  # that are trained on
    labels: Callable[[], Any]  # [N] of all of them, or None
    steps: int  # updates
    begun: Any = None  # params of a term that was trained before this one


def preacts(stages):
    """The stages' features before their last ReLU."""
    return [f"{name}_preact" for name in stages]


def alike(student, teacher):
    """Names of as many stages on both sides, the deepest ones; whether these have the same channels."""
    sides = [sorted(n for n in side if n.startswith("stage") and n[5:].isdecimal()) for side in (student, teacher)]
    number = min(map(len, sides))
    own, other = (names[-number:] for names in sides)
    channels = ([side[n].shape[-1] for n in names] for side, names in ((student, own), (teacher, other)))
    return own, other, len({*map(tuple, channels)}) == 1


def describe(names, networks, variables, batch, *, examples, steps, labels=lambda: None, seen=None):
    """The pair of a teacher and a student, in this order; norms are of the batch, or of features `seen` before."""

    def features(model, variables):
        return model.apply(variables, batch, None, False)[0].features

    def shapes(model):
        return jax.eval_shape(lambda key: features(model, model.init(key, batch)), jax.random.key(0))

    def norms():
        wanted = preacts(other)
        found = seen or jax.jit(lambda known: {n: features(networks[0], known)[n] for n in wanted})(variables)
        return [(jnp.std(found[n], (0, 1, 2)), jnp.mean(found[n], (0, 1, 2))) for n in wanted]

    sides = [shapes(model) for model in reversed(networks)]
    own, other, same = alike(*sides)
    head, size = variables.params["head"], sides[1]["last"].shape[1:3]
    return Pair(names, own, other, same, (head["kernel"], head["bias"]), size, norms, examples, labels, steps)
