"""The time that one answer takes, one example at a time, and the bytes of a network's parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxkd.data.checks import is_whole
from jaxkd.types import Batch, Model, Variables

Input = TypeVar("Input")

_WARM = 10
"""Calls before the first that is timed."""


class Latency(NamedTuple):
    """The time of one call.

    Attributes:
      p50: Median, in seconds.
      p99: Time that 99 % of the calls do not exceed, in seconds.
    """

    p50: float
    p99: float


def timed(call: Callable[[Input], Any], inputs: Sequence[Input], *, calls: int = 200) -> Latency:
    """Measures the time of one call of a function, over several inputs in turn.

    Each input is given once before anything is timed, so that what is compiled or loaded at a first call is ready.

    Args:
      call: The function; it returns when its answer is there.
      inputs: Its inputs, which are repeated until there are enough calls.
      calls: Number of timed calls.

    Returns:
      Median and 99th percentile of the calls.

    Raises:
      ValueError: If there is no input, or no call.
    """
    if not is_whole(calls) or calls < 1 or not len(inputs):
        raise ValueError(f"{calls} calls of {len(inputs)} inputs were asked for: give at least one of each.")
    for index in range(max(_WARM, len(inputs))):
        call(inputs[index % len(inputs)])
    seconds = []
    for index in range(calls):
        one = inputs[index % len(inputs)]
        began = time.perf_counter()
        call(one)
        seconds.append(time.perf_counter() - began)
    p50, p99 = np.percentile(seconds, (50, 99))
    return Latency(float(p50), float(p99))


def answering(model: Model, variables: Variables) -> Callable[[Batch], np.ndarray]:
    """Compiles a network for use: arrays on the host to logits on the host.

    Args:
      model: The network.
      variables: Its variables, of one network and not of a stack.

    Returns:
      Prepared batch [B, ...] -> logits [B, ...], in evaluation mode; each new shape of a batch is compiled once.
    """
    placed = jax.device_put(variables)
    answer = jax.jit(lambda variables, batch: model.apply(variables, batch, None, False)[0].logits)
    return lambda batch: np.asarray(answer(placed, batch))


def one_by_one(*batches: Batch) -> list[Batch]:
    """Examples of batches, each as a batch of one.

    Args:
      *batches: Batches [B, ...].

    Returns:
      Batches [1, ...], in order.
    """
    return [
        {name: np.asarray(values)[number : number + 1] for name, values in batch.items()}
        for batch in batches
        for number in range(len(next(iter(batch.values()))))
    ]


def latency(model: Model, variables: Variables, *batches: Batch, calls: int = 200) -> Latency:
    """Measures the time of one answer at batch 1 on the present device, from arrays on the host to logits on the host.

    The network is one compiled program for each shape of an example. Tokens are made before, and are not timed.

    Args:
      model: The network.
      variables: Its variables, of one network and not of a stack.
      *batches: Prepared batches [B, ...], whose examples are given one by one; batches of other lengths show how long
        texts of other lengths take.
      calls: Number of timed calls.

    Returns:
      Median and 99th percentile, in seconds.

    Raises:
      ValueError: If there is no example, or no call.
    """
    return timed(answering(model, variables), one_by_one(*batches), calls=calls)


def parameter_bytes(variables: Variables) -> int:
    """Bytes of a network's parameters and state, as its file holds them.

    Args:
      variables: Its variables, or their abstract shapes.

    Returns:
      Sum over all arrays; four bytes for each number in float32.
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
