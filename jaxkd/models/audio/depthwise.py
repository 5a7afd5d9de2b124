"""Causal depthwise-separable network over the frames of a log-mel spectrum, offline and frame by frame.

Features: `stem`, `block1..`, each [B, F, C], 0 past a recording's end, and `pooled`, the mean of the last over a
recording's frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense, batch_norm
from jaxkd.models.misfits import check_sizes
from jaxkd.types import Model, Outputs, Variables, as_variables

State: TypeAlias = Mapping[str, jax.Array]
"""What a stream keeps: name of a layer -> the last frames that it read, [B, span, C]; and `sum` and `count`, of which
the mean over frames is made."""


class Stream(NamedTuple):
    """A network that hears frame after frame.

    Attributes:
      start: Number of streams B -> the state before the first frame.
      stream: (variables, state, log-mel frames [B, F, M]) -> (logits, state): the logits [B, K] that the offline
        network gives for all frames since the start, or those of the new frames [B, F, K] if it has some for each.
    """

    start: Callable[[int], State]
    stream: Callable[[Variables, State, jax.Array], tuple[jax.Array, State]]


class DepthwiseNet(nn.Module):
    """Causal convolution, residual blocks of a depthwise and a pointwise one, mean over frames, linear layer.

    Attributes:
      num_classes: K.
      width: Channels C.
      blocks: Number of blocks.
      kernel: Frames under each kernel.
      per_frame: Whether each frame has logits of its own.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    num_classes: int
    width: int
    blocks: int
    kernel: int
    per_frame: bool = False
    axis_name: str | None = None

    def spans(self, bands: int) -> dict[str, tuple[int, int]]:
        """Layer -> (frames that it looks back, channels that it reads)."""
        back = self.kernel - 1
        return {"stem": (back // 2, bands), **{f"block{i + 1}": (back, self.width) for i in range(self.blocks)}}

    @nn.compact
    def __call__(self, log_mel: jax.Array, frames: jax.Array, train: bool, state: State | None = None) -> Any:
        """Frames [B, F, M] and how many of each row are real -> Outputs; and the new state if one was given."""
        real = (jnp.arange(log_mel.shape[1])[None] < frames[:, None])[..., None]
        spans, after = self.spans(log_mel.shape[-1]), dict[str, jax.Array]()

        def norm(x: jax.Array, name: str) -> jax.Array:
            known = real if train else None  # padding is no part of the statistics
            return batch_norm(x, name, train=train, axis_name=self.axis_name, mask=known)

        def seen(x: jax.Array, layer: str) -> jax.Array:
            back, channels = spans[layer]
            before = jnp.zeros((len(x), back, channels), x.dtype) if state is None else state[layer].astype(x.dtype)
            whole = jnp.concatenate([before, x], axis=1)
            after[layer] = whole[:, whole.shape[1] - back :]
            return whole

        # Products of matrices and sums of shifts, not convolutions: fast on CPUs, and several students batch well.
        x = jnp.where(real, log_mel, 0)
        windows = _shifts(seen(x, "stem"), spans["stem"][0] + 1)
        x = nn.relu(norm(Dense(self.width, use_bias=False, name="stem")(jnp.concatenate(windows, -1)), "stem_norm"))
        features = {"stem": (x := jnp.where(real, x, 0))}
        for layer in list(spans)[1:]:
            taps = self.param(f"{layer}_depthwise", nn.initializers.lecun_normal(), (self.kernel, self.width))
            shifts = _shifts(seen(x, layer), self.kernel)
            y = sum(tap[None, None] * shift for tap, shift in zip(taps.astype(x.dtype), shifts, strict=True))
            y = nn.relu(norm(y, f"{layer}_depthwise_norm"))
            y = norm(Dense(self.width, use_bias=False, name=f"{layer}_pointwise")(y), f"{layer}_norm")
            x = jnp.where(real, nn.relu(x + y), 0)
            features[layer] = x
        total, count = jnp.sum(x, axis=1), frames.astype(x.dtype)[:, None]
        if state is not None:
            total, count = total + state["sum"], count + state["count"]
        features["pooled"] = pooled = total / jnp.maximum(count, 1)
        out = Outputs(Dense(self.num_classes, name="head")(x if self.per_frame else pooled), features)
        return out if state is None else (out.logits, {**after, "sum": total, "count": count})


def _shifts(x: jax.Array, size: int) -> list[jax.Array]:
    """The frames [B, F + size - 1, C] as `size` shifted views [B, F, C], the earliest first."""
    count = x.shape[1] - size + 1
    return [x[:, i : i + count] for i in range(size)]


def depthwise_net(
    num_classes: int,
    *,
    width: int = 64,
    blocks: int = 5,
    kernel: int = 9,
    per_frame: bool = False,
    axis_name: str | None = None,
) -> Model:
    """Small causal network for keywords in a log-mel spectrum: with 40 bands and the defaults 39,434 parameters.

    A frame's features depend on earlier frames alone, so that `depthwise_stream` answers after each frame.

    Args:
      num_classes: K.
      width: Channels C.
      blocks: Number of residual blocks.
      kernel: Frames under each depthwise kernel; the first layer has (kernel + 1) // 2.
      per_frame: Whether each frame has logits of its own, such as for CTC.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.

    Returns:
      A model that reads `log_mel` [B, F, M] and `frames` [B], the number of real ones, and returns logits [B, K], or
      [B, F, K] per frame. Frames past a recording's end never change a value.

    Raises:
      ValueError: If a size is not positive.

    Reference:
      Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", 2017, https://arxiv.org/abs/1711.07128
    """
    check_sizes(num_classes=num_classes, width=width, blocks=blocks, kernel=kernel)
    net = DepthwiseNet(num_classes, width, blocks, kernel, per_frame, axis_name)
    return from_linen(net, inputs=("log_mel", "frames"))


def depthwise_stream(
    num_classes: int,
    *,
    bands: int = 40,
    width: int = 64,
    blocks: int = 5,
    kernel: int = 9,
    per_frame: bool = False,
) -> Stream:
    """The network of `depthwise_net` with the same variables, which hears frame after frame.

    Args:
      num_classes: K.
      bands: Mel bands M.
      width: As for `depthwise_net`.
      blocks: As for `depthwise_net`.
      kernel: As for `depthwise_net`.
      per_frame: As for `depthwise_net`.

    Returns:
      Its start and its step, pure functions that may be compiled.

    Raises:
      ValueError: If a size is not positive.
    """
    check_sizes(num_classes=num_classes, bands=bands, width=width, blocks=blocks, kernel=kernel)
    net = DepthwiseNet(num_classes, width, blocks, kernel, per_frame)

    def start(streams: int) -> State:
        kept = {layer: jnp.zeros((streams, back, channels)) for layer, (back, channels) in net.spans(bands).items()}
        return {**kept, "sum": jnp.zeros((streams, width)), "count": jnp.zeros((streams, 1))}

    def stream(variables: Variables, state: State, frames: jax.Array) -> tuple[jax.Array, State]:
        if frames.ndim != 3 or frames.shape[-1] != bands:
            raise ValueError(f"frames have shape {frames.shape}: give log-mel frames [B, F, {bands}] of B streams.")
        variables, real = as_variables(variables), jnp.full(len(frames), frames.shape[1])
        collections = {"params": variables.params, **variables.state}
        logits, after = net.apply(collections, frames, real, False, state)
        return jnp.asarray(logits), dict(after)

    return Stream(start, stream)
