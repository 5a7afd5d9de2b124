"""What an answer of a text classifier costs, what it is worth, and the row of the table with both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd import data, deploy, metrics, models, reports
from jaxkd.types import Batch, Model, Outputs, Variables

COLUMNS = {"network": "network", "accuracy": "accuracy %", "agreement": "agrees %", "parameters": "params"}
COLUMNS |= {"bytes": "MB", "p50": "p50 ms", "p99": "p99 ms"}
"""Column -> header of the table."""

MEASURES = {"accuracy": metrics.accuracy, "agreement": metrics.agreement}
"""Measures of a student beside its teacher."""


def compared(logits: np.ndarray, teacher_logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Measures one network against labels and teacher.

    Args:
      logits: [N, K].
      teacher_logits: [N, K].
      labels: Classes [N].

    Returns:
      `accuracy` and `agreement`, in 0..1.
    """
    both, batch = (Outputs(logits), Outputs(teacher_logits)), {"label": labels}
    return metrics.values({name: measure(*both, batch) for name, measure in MEASURES.items()})


def costs(call: Callable[[Any], Any], examples: Sequence[Any], parameters: int, size: int) -> dict[str, float]:
    """Measures what an answer costs.

    Args:
      call: One example -> its answer.
      examples: Examples.
      parameters: Trained scalars of the network.
      size: Bytes of the network.

    Returns:
      `parameters`, `bytes`, and the median and 99th percentile `p50` and `p99` of a call, in seconds.
    """
    found = deploy.timed(call, examples)
    return {"parameters": parameters, "bytes": size, "p50": found.p50, "p99": found.p99}


def network_costs(model: Model, variables: Variables, source: data.Source) -> dict[str, float]:
    """Measures what an answer of a network costs.

    Args:
      model: The network.
      variables: Its variables; frozen params count as others do.
      source: Tokens of texts to answer.

    Returns:
      As for `costs`.
    """
    size = models.count_parameters(models.thaw(variables)), deploy.parameter_bytes(variables)
    return costs(deploy.answering(model, variables), typical_examples(source), *size)


def typical_examples(source: data.Source, count: int = 64) -> list[Batch]:
    """Examples of the length that most rows are cut to, each as a batch of one, to measure the time of an answer.

    Args:
      source: Tokens.
      count: Number of examples at most.

    Returns:
      Batches [1, ...] of the fields that networks read.
    """
    length, rows = source.buckets[-1], np.arange(source.size)
    if source.lengths is not None:
        bucket = np.searchsorted(source.buckets, source.lengths)
        most = int(np.bincount(bucket).argmax())
        length, rows = source.buckets[most], np.flatnonzero(bucket == most)
    batch = source.read(rows[:count])
    return deploy.one_by_one({name: batch[name][:, :length] for name in source.per_token})


def row(network: str, found: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, str]:
    """Row of the table, with the columns `COLUMNS`.

    Args:
      network: Name of the network.
      found: `accuracy` and `agreement` with the teacher, in 0..1, of one network or of several [S].
      costs: As `costs` gives them.

    Returns:
      Column -> text.
    """
    percent = {name: reports.mean_std(found[name], scale=100) for name in ("accuracy", "agreement") if name in found}
    times = {name: f"{1e3 * float(costs[name]):.2f}" for name in ("p50", "p99")}
    size = {"parameters": f"{int(costs['parameters']):,}", "bytes": f"{float(costs['bytes']) / 1e6:.1f}"}
    return {"network": network, **percent, **size, **times}
