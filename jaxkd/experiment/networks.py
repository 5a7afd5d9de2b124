"""Networks that experiments choose by name: small ones of this library, and those with published weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import models, pytorch
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
    "convnet_8_16": Published(functools.partial(models.convnet, widths=(8, 16)), ()),
    "lenet": Published(models.lenet, ()),
    "tiny": Published(_tiny, ()),
}
"""A perceptron and four convolutional networks, without published weights; "tiny" is for smoke runs."""
SMALL_IMAGES: Mapping[str, Published] = {**SIMPLE, **CIFAR100_BENCHMARK}
"""Networks for small images: `SIMPLE`, and those of the CIFAR-100 benchmark."""
LARGE_IMAGES: Mapping[str, Published] = {**SMALL_IMAGES, **TIMM, **TORCHVISION}
"""All networks, where torchvision's name stands for its own network and not for timm's."""


def make_network(name: str, num_classes: int, networks: Mapping[str, Published] = SMALL_IMAGES) -> Model:
    """Makes a network that normalises over all devices, if over a batch at all, and tells terms its last layer.

    Args:
      name: Its name.
      num_classes: K.
      networks: The table that has the name.

    Returns:
      A model whose outputs have a `head`.
    """
    make = networks[name].make
    norms = {"axis_name": DATA} if "axis_name" in inspect.signature(make).parameters else {}  # transformers need none
    return models.with_head(make(num_classes, **norms))


def read_teacher(config: Any, model: Model, example: Batch) -> Variables:
    """Reads a teacher's variables from a file of PyTorch weights.

    Args:
      config: The configuration, an `ImageConfig` with the field `teacher_file`.
      model: The teacher.
      example: Prepared images.

    Returns:
      The variables.

    Raises:
      ValueError: If the file cannot be read, or its tensors do not fit the teacher.
    """
    tensors, rules = pytorch.read_tensors(config.teacher_file), config.networks[config.teacher].rules
    if not rules:
        known = ", ".join(name for name, network in config.networks.items() if network.rules)
        raise ValueError(
            f"--teacher-file is given but there are no published weights of {config.teacher}: leave it out, or choose "
            f"one of {known} for --teacher."
        )
    try:
        return pytorch.import_weights(model, rules, tensors, example)
    except ValueError as error:
        raise ValueError(
            f"--teacher-file {config.teacher_file} is not of --teacher {config.teacher}: {error}"
        ) from error
