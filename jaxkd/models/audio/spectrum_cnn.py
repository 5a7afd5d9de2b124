"""CNN on log-mel spectra as pictures; features `stage1..`, each [B, F', M', C], and `pooled`."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense, conv_norms
from jaxkd.types import Model, Outputs


class SpectrumCNN(nn.Module):
    """Stages of two convolutions, of which the first halves frames and bands; mean over frames and bands; linear layer.

    Attributes:
      num_classes: K.
      widths: Channels of each stage.
      dropout: Rate of dropout on the last layer's input.
      axis_name: Axis over which batch norm takes its statistics together.
    """

    num_classes: int
    widths: Sequence[int]
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, log_mel: jax.Array, frames: jax.Array, train: bool) -> Outputs:
        """Frames [B, F, M] and how many of each row are real -> Outputs with logits [B, K]."""
        conv_norm, features = conv_norms(train, self.axis_name), {}
        x, real = _only_real(log_mel[..., None], frames), frames
        for number, width in enumerate(self.widths, 1):
            x = nn.relu(conv_norm(x, width, f"stage{number}_{{}}1", stride=2))
            real = (real + 1) // 2
            x = _only_real(nn.relu(conv_norm(x, width, f"stage{number}_{{}}2")), real)
            features[f"stage{number}"] = x
        # Mean over real frames, and the highest value over them: where in the word a sound stands does not matter.
        by_frame = jnp.mean(x, axis=2)
        mean = jnp.sum(by_frame, axis=1) / jnp.maximum(real, 1).astype(x.dtype)[:, None]
        features["pooled"] = pooled = jnp.concatenate([mean, jnp.max(by_frame, axis=1)], axis=-1)
        y = nn.Dropout(self.dropout, deterministic=not train)(pooled)
        return Outputs(Dense(self.num_classes, name="head")(y), features)


def _only_real(x: jax.Array, frames: jax.Array) -> jax.Array:
    """[B, F, M, C] with 0 past each row's real frames."""
    real = jnp.arange(x.shape[1])[None] < frames[:, None]
    return jnp.where(real[:, :, None, None], x, 0)


def spectrum_cnn(
    num_classes: int,
    *,
    widths: Sequence[int] = (24, 48, 96),
    dropout: float = 0.2,
    axis_name: str | None = None,
) -> Model:
    """CNN that sees a whole spectrum at once: stages of two 3 x 3 convolutions, mean and maximum over the frames.

    Args:
      num_classes: K.
      widths: Channels of each stage; each halves frames and bands.
      dropout: Rate of dropout on the last layer's input, 0..1.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.

    Returns:
      A model that reads `log_mel` [B, F, M] and `frames` [B], the number of real ones, and returns logits [B, K].

    Raises:
      ValueError: If there is no stage, or one has no channel.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"the widths are {tuple(widths)}: give at least one stage, of at least 1 channel each.")
    return from_linen(SpectrumCNN(num_classes, tuple(widths), dropout, axis_name), inputs=("log_mel", "frames"))
