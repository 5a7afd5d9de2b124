"""Importance of channels: by the norms of their weights, or by their activations on a few batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.models.axes import Axes, channel_counts, leaves_of
from jaxkd.models.layers import Conv, Dense
from jaxkd.types import Batch, Model, Variables

_READERS: Any = (Dense.func, Conv.func)
"""Layers of Linen whose inputs and outputs are looked at."""


def weight_norms(variables: Variables, axes: Axes, *, order: int = 1) -> dict[str, np.ndarray]:
    """Norms of all weights that read or make a channel.

    s_c = (sum |w|^p)^(1/p)  over the weights w of kernels and embeddings at channel c

    Args:
      variables: The network's variables.
      axes: Its axes.
      order: p, 1 or 2.

    Returns:
      Name of channels -> norms, float64 [N].

    Raises:
      ValueError: If p is another, or the axes are not the network's.

    Reference:
      Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, https://arxiv.org/abs/1608.08710
    """
    if order not in (1, 2):
        raise ValueError(f"order={order} should be 1 or 2.")
    sums = {name: np.zeros(count) for name, count in channel_counts(variables, axes).items()}
    for path, leaf in leaves_of(variables).items():
        if path.startswith("params/") and jnp.ndim(leaf) > 1:
            powers = np.abs(np.asarray(leaf, np.float64)) ** order
            for axis, name in enumerate(axes.names[path]):
                if name is not None:
                    sums[name] += powers.sum(axis=tuple(i for i in range(powers.ndim) if i != axis))
    return {name: np.power(total, 1 / order) for name, total in sums.items()}


def mean_activations(model: Model, variables: Variables, axes: Axes, batches: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Mean absolute activations of channels, as the layers that read them see them.

    s_c = mean |x_c|  over examples and positions, summed over the dense layers and convolutions that read channel c

    These are outputs of the activation inside perceptrons, outputs of the norms along the shortcuts of transformers
    with norms first, and mixed values of attentions, so that `by_importance` ranks heads by the norm of their outputs.
    Queries and keys are read by no layer: their channels have the L2 norm of their weights.

    Args:
      model: A network of Linen modules.
      variables: Its variables.
      axes: Its axes.
      batches: Prepared batches for calibration; a few hundred examples.

    Returns:
      Name of channels -> means, float64 [N].

    Raises:
      ValueError: If there is no batch, or no layer of Linen is found that reads channels.

    Reference:
      Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), NeurIPS 2024,
      https://arxiv.org/abs/2407.14679; it takes MLP neurons before their activation, and L2 norms over the batch
    """

    def measure(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        read = captured(model, variables, batch)[0]
        means = {path: jnp.mean(jnp.abs(x.reshape(-1, x.shape[-1])), axis=0) for path, x in read.items()}
        sums: dict[str, jax.Array] = {}
        for path, mean in means.items():
            name = axes.names[path][-2] if path in axes.names else None
            if name is not None:
                sums[name] = sums.get(name, 0) + mean
        return sums

    counts, program = channel_counts(variables, axes), jax.jit(measure)
    found = [jax.device_get(program(variables, dict(batch))) for batch in batches]
    if not found or not found[0]:
        why = "there is no batch" if not found else "no dense layer or convolution of Linen reads channels of `axes`"
        raise ValueError(f"{why}: give batches and a network of Linen modules.")
    norms = weight_norms(variables, axes, order=2)
    means = {name: np.stack([one[name] for one in found]).astype(np.float64).mean(axis=0) for name in found[0]}
    return {name: means.get(name, norms[name]) for name in counts}


def captured(
    model: Model, variables: Variables, batch: Batch
) -> tuple[Mapping[str, jax.Array], Mapping[str, jax.Array]]:
    """Inputs and outputs of the dense layers and convolutions of a network of Linen modules, in evaluation mode.

    Args:
      model: The network, without rematerialised stages.
      variables: Its variables.
      batch: A prepared batch.

    Returns:
      Path of the kernel -> inputs [B, ..., C], and -> outputs [B, ..., D].
    """
    read: dict[str, Any] = {}
    made: dict[str, Any] = {}

    def note(inside: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        result = inside(*arguments, **keywords)
        if isinstance(context.module, _READERS) and context.method_name == "__call__":
            path = "/".join(("params", *context.module.path, "kernel"))
            read[path], made[path] = arguments[0], result
        return result

    with nn.intercept_methods(note):
        model.apply(variables, batch, None, False)
    return read, made
