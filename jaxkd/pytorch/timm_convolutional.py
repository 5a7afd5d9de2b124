"""Convolutional networks of timm by name: ResNets, MobileNets, ConvNeXts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxkd import models
from jaxkd.pytorch import published
from jaxkd.pytorch.names import Rule
from jaxkd.pytorch.published import Published
from jaxkd.types import Model


def _family(make: Callable[..., Model], rules: Sequence[Rule], **sizes: Mapping[str, Any]) -> dict[str, Published]:
    return {name: Published(functools.partial(make, **options), rules) for name, options in sizes.items()}


CONVOLUTIONAL: Mapping[str, Published] = {
    **_family(models.imagenet_resnet, published.RESNET, **published.RESNET_SIZES),
    **_family(models.mobilenet_v1, published.MOBILENET_V1_TIMM, mobilenetv1_100={}, mobilenetv1_125={"widen": 1.25}),
    **_family(
        models.mobilenet_v2,
        published.MOBILENET_V2_TIMM,
        **{f"mobilenetv2_{round(100 * w):03}": {"widen": w} for w in (0.35, 0.5, 0.75, 1.0, 1.4)},
    ),
    **_family(models.convnext, published.CONVNEXT_TIMM, **published.CONVNEXT_SIZES),
}
_IGNORED = ("img_size", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last")
"""Arguments that the images decide, or that act on a training alone."""


def convolutional(name: str, arguments: Mapping[str, Any]) -> Published:
    """Convolutional network with the arguments of timm's maker.

    Args:
      name: A name of `CONVOLUTIONAL`.
      arguments: Arguments of timm's `create_model`.

    Returns:
      Its maker and rules.

    Raises:
      ValueError: If there is an argument that it is not known for.
    """
    unknown = {k: v for k, v in arguments.items() if k not in _IGNORED and (k, v) != ("global_pool", "avg")}
    if unknown:
        raise ValueError(f"{name} is given {unknown}: arguments known here are {', '.join(_IGNORED)}.")
    return CONVOLUTIONAL[name]
