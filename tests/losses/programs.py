"""Losses as programs that tests share: op by op, or compiled anew for each call, they would take most of the time."""

import functools

import jax
import numpy as np


@functools.cache
def compiled(loss, **options):
    """The loss, compiled once for each shape; options are bound as they are, not traced."""
    return jax.jit(functools.partial(loss, **options))


def run(loss, *arrays, **options):
    """Its value, as NumPy array; options that are arrays go into a program of their own."""
    try:
        program = compiled(loss, **options)
    except TypeError:  # not hashable
        program = jax.jit(functools.partial(loss, **options))
    return np.asarray(program(*arrays))


@functools.cache
def differentiated(loss, *sides, **options):
    """(arrays) -> the sum of the values, and its gradients in the arrays of these numbers."""
    return jax.jit(jax.value_and_grad(lambda *arrays: loss(*arrays, **options).sum(), argnums=sides))
