"""Networks that experiments choose by name: small ones of this library, and those with published weights."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxkd import models
from jaxkd.parallel import DATA
from jaxkd.pytorch import CIFAR100_BENCHMARK, TIMM, TORCHVISION, Published
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables


def _mlp(num_classes: int, axis_name: str | None = None) -> Model:
    """A perceptron with one hidden layer of 128 units, which has no norms to share between devices."""
    return models.mlp(num_classes, hidden=(128,))


def _tiny(num_classes: int, axis_name: str | None = None) -> Model:
    """Three stages of one convolution with 4 channels, for smoke runs: it is traced and compiled in a moment."""
    initialise, stages = jax.nn.initializers.he_normal(), ("stage1", "stage2", "stage3")

    def init(key: jax.Array, batch: Batch) -> Variables:
        keys = jax.random.split(key, 4)
        inputs = (batch["image"].shape[-1], 4, 4)
        params = {s: {"kernel": initialise(k, (3, 3, n, 4))} for s, k, n in zip(stages, keys[:3], inputs, strict=True)}
        head = {"kernel": initialise(keys[3], (4, num_classes)), "bias": jnp.zeros(num_classes)}
        return Variables({**params, "head": head}, {})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        x, features, params = batch["image"], {}, variables.params
        for stage in stages:
            x = jax.lax.conv_general_dilated(
                x, params[stage]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            features[stage] = x = jax.nn.relu(x)
        features["pooled"] = x = jnp.mean(x, axis=(1, 2))
        return Outputs(jnp.dot(x, params["head"]["kernel"]) + params["head"]["bias"][None], features), {}

    return Model(init, apply)


SIMPLE: Mapping[str, Published] = {
    "mlp": Published(_mlp, ()),
    "convnet": Published(models.convnet, ()),
    "tiny": Published(_tiny, ()),
}
"""A perceptron and two convolutional networks, without published weights; "tiny" is for smoke runs."""
SMALL_IMAGES: Mapping[str, Published] = {**SIMPLE, **CIFAR100_BENCHMARK}
"""Networks for small images: `SIMPLE`, and those of the CIFAR-100 benchmark."""
LARGE_IMAGES: Mapping[str, Published] = {**SMALL_IMAGES, **TIMM, **TORCHVISION}
"""All networks, where torchvision's name stands for its own network and not for timm's."""


def make_network(name: str, num_classes: int, networks: Mapping[str, Published] = SMALL_IMAGES) -> Model:
    """Makes a network that normalises over all devices and tells terms its last layer.

    Args:
      name: Its name.
      num_classes: K.
      networks: The table that has the name.

    Returns:
      A model whose outputs have a `head`.
    """
    return models.with_head(networks[name].make(num_classes, axis_name=DATA))
