"""Convolutional networks of timm by name: ResNets, MobileNets, EfficientNets, ConvNeXts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxkd import models
from jaxkd.pytorch import published
from jaxkd.pytorch.names import Rule
from jaxkd.pytorch.published import Published
from jaxkd.types import Model


def _family(make: Callable[..., Model], rules: Sequence[Rule], **sizes: Mapping[str, Any]) -> dict[str, Published]:
    return {name: Published(functools.partial(make, **options), rules) for name, options in sizes.items()}


def _second(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """ConvNeXt V2's networks of the same sizes."""
    return {name.replace("convnext", "convnextv2"): {"response_norm": True, **x} for name, x in sizes.items()}


_SMALL: Mapping[str, dict[str, Any]] = {
    f"convnext_{name}": {"blocks": (2, 2, third, 2), "widths": tuple(width * 2**i for i in range(4))}
    for name, width, third in (("atto", 40, 6), ("femto", 48, 6), ("pico", 64, 6), ("nano", 80, 8))
}
_SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1))
"""Factors on widths and depths of EfficientNet's B0 to B7; the first five are those of Lite0 to Lite4."""
_TEST = {"epsilon": 1e-5, "activation": functools.partial(jax.nn.gelu, approximate=True)}
_TESTS: Mapping[str, dict[str, Any]] = {
    "test_convnext": {"blocks": (1, 2, 4, 2), "widths": (24, 32, 48, 64), **_TEST},
    "test_convnext2": {"blocks": (1, 1, 1, 1), "widths": (32, 64, 96, 128), **_TEST},
}
_DEEP: Mapping[str, dict[str, Any]] = {
    **{f"resnet{depth}d": {"depth": depth, "deep": (32, 32)} for depth in (18, 26, 34, 50, 101, 152)},
    **{f"resnet{depth}t": {"depth": depth, "deep": (24, 32)} for depth in (10, 14, 26, 50)},
}
_EFFICIENT: Mapping[str, dict[str, Any]] = {
    **{f"efficientnet_b{i}": {"widen": w, "deepen": d} for i, (w, d) in enumerate(_SCALES)},
    **{f"efficientnet_lite{i}": {"widen": w, "deepen": d, "lite": True} for i, (w, d) in enumerate(_SCALES[:5])},
}
_MNASNET = {f"mnasnet_{percent:03}": {"widen": percent / 100} for percent in (50, 75, 100, 140)}


def _tensorflow(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same networks with TensorFlow's padding."""
    return {f"tf_{name}": {"tensorflow": True, **options} for name, options in sizes.items()}


def _mobilenet_v3(size: str) -> dict[str, Published]:
    """MobileNet V3, small or large."""
    widths = {"large_075": 0.75, "large_100": 1.0, "small_050": 0.5, "small_075": 0.75, "small_100": 1.0}
    own: dict[str, dict[str, Any]] = {
        f"mobilenetv3_{name}": {"widen": widen} for name, widen in widths.items() if name.startswith(size)
    }
    others: dict[str, dict[str, Any]] = {
        **{n: x for n, x in own.items() if x["widen"] > 0.5},
        f"mobilenetv3_{size}_minimal_100": {"minimal": True},
    }
    make = functools.partial(models.mobilenet_v3, small=size == "small")
    return _family(make, published.mobilenet_v3_timm(5 if size == "small" else 6), **own, **_tensorflow(others))


CONVOLUTIONAL: Mapping[str, Published] = {
    **_family(models.imagenet_resnet, published.RESNET, **published.RESNET_SIZES),
    **_family(models.imagenet_resnet, published.RESNET, resnet26={"depth": 26}),
    **_family(models.imagenet_resnet, published.RESNET_C, resnet50c={"depth": 50, "deep": (32, 32)}),
    **_family(functools.partial(models.imagenet_resnet, average=True), published.RESNET_D, **_DEEP),
    **_family(models.mobilenet_v1, published.MOBILENET_V1_TIMM, mobilenetv1_100={}, mobilenetv1_125={"widen": 1.25}),
    **_family(
        models.mobilenet_v2,
        published.MOBILENET_V2_TIMM,
        **{f"mobilenetv2_{round(100 * w):03}": {"widen": w} for w in (0.35, 0.5, 0.75, 1.0, 1.4)},
    ),
    **_family(models.efficientnet, published.EFFICIENTNET_TIMM, **_EFFICIENT, **_tensorflow(_EFFICIENT)),
    **_mobilenet_v3("small"),
    **_mobilenet_v3("large"),
    **_family(models.mnasnet, published.EFFICIENTNET_TIMM, **_MNASNET),
    **_family(models.convnext, published.CONVNEXT_TIMM, **published.CONVNEXT_SIZES, **_TESTS),
    **_family(models.convnext, published.CONVNEXT_TIMM_SMALL, **_SMALL),
    **_family(models.convnext, published.CONVNEXT_TIMM, **_second(published.CONVNEXT_SIZES)),
    **_family(models.convnext, published.CONVNEXT_TIMM_SMALL, **_second(_SMALL)),
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
