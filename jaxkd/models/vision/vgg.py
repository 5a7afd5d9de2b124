"""VGG networks for small images, with batch norm and one linear layer on the mean over space.

Features: `stem` (the first stage), `stage1..4`, each `stage*_preact` (before its last ReLU), `last` and `pooled`, its
mean over the positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models.adapters import from_linen, rematerialised
from jaxkd.models.layers import Dense, conv_norms
from jaxkd.types import Model, Outputs

_WIDTHS = (64, 128, 256, 512, 512)
_DEPTHS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""Depth as it is called -> convolutions of each stage."""


class VGG(nn.Module):
    """VGG: five stages of 3x3 convolutions with max-pooling between the first four.

    Attributes:
      num_classes: K.
      convolutions: Convolutions of each stage.
      axis_name: Axis over which batch norm takes its statistics together.
      remat: Whether the backward pass computes each stage again.
    """

    num_classes: int
    convolutions: Sequence[int]
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        conv_norm = conv_norms(train, self.axis_name)
        features: dict[str, jax.Array] = {}
        # Images of 64 pixels are downsampled once more, as in the CIFAR-100 benchmark.
        halved = (1, 2, 3, 4) if x.shape[1] == 64 else (1, 2, 3)
        for number, (count, width) in enumerate(zip(self.convolutions, _WIDTHS, strict=True)):
            if number in halved:
                x = nn.max_pool(x, (2, 2), (2, 2))

            def stage(
                self: VGG, x: jax.Array, number: int = number, count: int = count, width: int = width
            ) -> tuple[jax.Array, jax.Array]:
                for i in range(1, count + 1):
                    before = conv_norm(x, width, f"stage{number}_{{}}{i}", bias=True)
                    x = nn.relu(before)
                return x, before

            x, before = rematerialised(stage, self.remat)(self, x)
            features |= {f"stage{number}": x, f"stage{number}_preact": before} if number else {"stem": x}
        features["last"] = x
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return Outputs(Dense(self.num_classes, name="head")(x), features)


def vgg(num_classes: int, *, depth: int = 16, axis_name: str | None = None, remat: bool = False) -> Model:
    """VGG for small images, as the CIFAR-100 distillation benchmark defines it.

    Args:
      num_classes: K.
      depth: 8, 11, 13, 16 or 19. One fully connected layer stands for the three that the number counts.
      axis_name: `parallel.DATA` for batch norm over all devices under `pmap`; under `jit` it is so anyway.
      remat: Whether the backward pass computes each stage again instead of keeping its activations.

    Returns:
      A model that reads `image` [B, H, W, C], 16 pixels or more, and returns logits [B, K].

    Raises:
      ValueError: If the depth is another.

    Reference:
      Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
      https://arxiv.org/abs/1409.1556
    """
    if depth not in _DEPTHS:
        raise ValueError(f"a VGG has depth {', '.join(map(str, _DEPTHS))} but depth is {depth}: choose one of them.")
    return from_linen(VGG(num_classes, _DEPTHS[depth], axis_name, remat))
