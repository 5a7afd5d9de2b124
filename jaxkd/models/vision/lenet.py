"""LeNet-5 with ReLU and max-pooling.

Features: `stage1`, `stage2`, each `stage*_preact` (before its ReLU), `hidden1`, and `pooled` (the last hidden layer).
"""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Conv, Dense, flatten
from jaxkd.types import Model, Outputs


class LeNet(nn.Module):
    """LeNet-5: two 5x5 convolutions, each followed by max-pooling, and three linear layers.

    Attributes:
      num_classes: K.
      padding: Padding of the first convolution.
    """

    num_classes: int
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> Outputs:
        """Images [B, H, W, C] -> Outputs with logits [B, K]."""
        features: dict[str, jax.Array] = {}
        for number, (width, padding) in enumerate(((6, self.padding), (16, 0)), 1):
            x = Conv(width, (5, 5), padding=padding, name=f"conv{number}")(x)
            features |= {f"stage{number}_preact": x, f"stage{number}": (x := nn.relu(x))}
            x = nn.max_pool(x, (2, 2), (2, 2))
        features["hidden1"] = x = nn.relu(Dense(120, name="dense1")(flatten(x)))
        features["pooled"] = x = nn.relu(Dense(84, name="dense2")(x))
        return Outputs(Dense(self.num_classes, name="head")(x), features)


def lenet(num_classes: int, *, padding: int = 0) -> Model:
    """LeNet-5 with ReLU and max-pooling.

    Args:
      num_classes: K.
      padding: Of the first convolution: 0 for images of 32 pixels, 2 for those of 28.

    Returns:
      A model that reads `image` [B, H, W, C] and returns logits [B, K].

    Reference:
      LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 1998,
      https://doi.org/10.1109/5.726791
    """
    return from_linen(LeNet(num_classes, padding))
