"""The golden cases have teeth: a loss with a planted mistake no longer gives its authors' numbers.

Planted in the source of each loss, one at a time: T^2 dropped, a sum over classes or elements turned into a mean; and
at its call: the sides swapped, the mask ignored.
"""

import functools
import inspect
import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.test_golden import METHODS, adapter, stored

from jaxkd import losses, testing

# (what, pattern in the source, replacement); the first match of each is mutated.
SOURCE_MUTANTS = (
    ("T^2 dropped", r"\b(?:T|temperature)\*\*2 \* ", ""),
    ("sum turned into a mean", r"jnp\.sum\(", "jnp.mean("),
)
# Mistakes that no golden case can see, and why.
UNSEEN = {
    "attention_transfer: sum turned into a mean": "the attention map is normalised right after it",
    "cc: sum turned into a mean": "it stands in the paper's squared form, which the authors' code does not have",
}
SYMMETRIC = {d.name for d in testing.declarations(losses) if testing.SYMMETRIC in d.properties}
MASKS = ("mask", "lengths", "valid", "student_len")


def evaluate(method, case, change=None):
    """The adapter's value in float32 for (changed) inputs, a scalar."""
    description, arrays = stored(method, case)
    inputs = {k: arrays[k] for k in description["inputs"]}
    inputs = {k: jnp.asarray(v, jnp.float32 if v.dtype.kind == "f" else None) for k, v in inputs.items()}
    inputs = change(inputs) if change else inputs
    return jax.jit(lambda given: adapter.value(method, description["hyperparameters"], given))(inputs)


def killed(method, change=None):
    """Whether a case notices, by another value or by an error."""
    for case in METHODS[method]["cases"]:
        try:
            value = evaluate(method, case, change)
        except (TypeError, ValueError):
            return True
        if not np.isclose(value, stored(method, case)[1]["value"], rtol=2e-4, atol=0):
            return True
    return False


def loss_modules():
    return [m for _, m in inspect.getmembers(losses, inspect.ismodule)]


def mutate(function, pattern, replacement):
    """The function with the first match in its body replaced, or None if there is no match."""
    source = textwrap.dedent(inspect.getsource(function))
    start = source.index('"""', source.index('"""') + 3)
    changed = source[:start] + re.sub(pattern, replacement, source[start:], count=1)
    if changed == source:
        return None
    space = dict(vars(inspect.getmodule(function)))
    exec(compile("from __future__ import annotations\n" + changed, "mutant", "exec"), space)
    return space[function.__name__]


def functions_of(method):
    """Public losses that a golden method calls, found by watching a call."""
    called = []

    def watch(function):
        @functools.wraps(function)
        def watched(*arguments, **options):
            called.append(function)
            return function(*arguments, **options)

        return watched

    with pytest.MonkeyPatch.context() as patch:
        for module in [*loss_modules(), losses, adapter]:
            for name, function in inspect.getmembers(module, inspect.isfunction):
                if name in losses.__all__ and function.__module__.startswith("jaxkd.losses."):
                    patch.setattr(module, name, watch(function))
        jax.eval_shape(lambda: evaluate(method, "case0"))
    return list(dict.fromkeys(called))


def survivors(method):
    """Planted mistakes that no case notices."""
    found = []
    for function in functions_of(method):
        for what, pattern, replacement in SOURCE_MUTANTS:
            mutant = mutate(function, pattern, replacement)
            if mutant is None:
                continue
            with pytest.MonkeyPatch.context() as patch:
                for module in [*loss_modules(), losses, adapter]:
                    if getattr(module, function.__name__, None) is function:
                        patch.setattr(module, function.__name__, mutant)
                if f"{function.__name__}: {what}" not in UNSEEN and not killed(method):
                    found.append(f"{function.__name__}: {what}")
    return found


def swapped(inputs):
    """Student and teacher exchanged wherever both have an input of that name and shape."""
    pairs = {k: k.replace("student", "teacher") for k in inputs if k.startswith("student")}
    pairs = {a: b for a, b in pairs.items() if b in inputs and inputs[a].shape == inputs[b].shape}
    return {**inputs, **{a: inputs[b] for a, b in pairs.items()}, **{b: inputs[a] for a, b in pairs.items()}}


def unmasked(inputs):
    """Every mask true, every length whole."""
    return {k: jnp.ones_like(v) if k in MASKS and v.ndim else v for k, v in inputs.items()}


@pytest.mark.parametrize("method", METHODS)
def test_planted_mistakes_are_noticed(method):
    assert not survivors(method)
    names = {f.__name__ for f in functions_of(method)}
    inputs = {k: v for k, v in stored(method, "case0")[1].items() if k in stored(method, "case0")[0]["inputs"]}
    if any(not np.array_equal(v, swapped(inputs)[k]) for k, v in inputs.items()) and not names & SYMMETRIC:
        assert killed(method, swapped), "swapped sides went unnoticed"
    if any(not np.array_equal(v, unmasked(inputs)[k]) for k, v in inputs.items()):
        assert killed(method, unmasked), "an ignored mask went unnoticed"
