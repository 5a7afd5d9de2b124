"""Network of adversarial distillation: a score of one feature, also given a class."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import of_classes
from jaxkd.objectives.networks.core import Network, Shape, check_channels, conv_kernel, dense_params
from jaxkd.types import PyTree

_SLOPE = 0.2


def discriminator(hidden: Sequence[int] = (64, 64), *, num_classes: int | None = None) -> Network:
    """Perceptron, or on maps a stack of 3x3 convolutions, with one score for each example.

    h <- LeakyReLU_0.2(h W_i + b_i) for each i;  score = mean over positions of v h + c, and given a class + e_y h

    There is no batch norm: an example's score does not depend on the others. The classes' vectors e start at 0.

    Args:
      hidden: Widths of the layers; on maps [B, H, W, C] each halves height and width.
      num_classes: K, if the score is one given the example's class; None if it is not.

    Returns:
      A network with parameters `layers` (a list), `score` and, given classes, `classes` [K, width]. It is called as
      apply(params, x [B, ..., C], labels [B] or None) -> [B], and raises ValueError if they do not fit.

    Raises:
      ValueError: If there is no layer or one without width.

    Reference:
      Miyato, Koyama, "cGANs with Projection Discriminator", ICLR 2018, https://arxiv.org/abs/1802.05637
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"the layers of a discriminator are {tuple(hidden)}: give at least one width of 1 or more.")

    def init(key: jax.Array, own: Shape, other: Shape) -> PyTree:
        widths, keys = (own[-1], *hidden), jax.random.split(key, len(hidden) + 1)
        layers = []
        for k, *pair in zip(keys[:-1], widths[:-1], widths[1:], strict=True):
            dense = dense_params(k, *pair)
            layers.append({**dense, "kernel": conv_kernel(k, 3, *pair)} if len(own) == 4 else dense)
        params = {"layers": layers, "score": dense_params(keys[-1], widths[-1], 1)}
        return params if num_classes is None else {**params, "classes": jnp.zeros((num_classes, widths[-1]))}

    def apply(params: PyTree, x: ArrayLike, labels: ArrayLike | None = None) -> jax.Array:
        (h,) = numerics.promote(x)
        for layer in params["layers"]:
            kernel, bias = (layer[name].astype(h.dtype) for name in ("kernel", "bias"))
            if kernel.ndim == 4:
                check_channels(h, kernel)
                h = numerics.conv2d(h, kernel, bias, stride=2, padding=1)
            else:
                h = jnp.matmul(h, kernel) + jnp.broadcast_to(bias, (*h.shape[:-1], bias.size))
            h = jax.nn.leaky_relu(h, _SLOPE)
        h = jnp.mean(h, axis=tuple(range(1, h.ndim - 1)))
        score = jnp.matmul(h, params["score"]["kernel"].astype(h.dtype))[:, 0] + params["score"]["bias"].astype(h.dtype)
        if num_classes is None:
            return score
        if labels is None:
            raise ValueError("this discriminator is one given the class: give it labels.")
        y = of_classes(jnp.asarray(labels), num_classes)
        return y.mark(score + jnp.sum(h * params["classes"].astype(h.dtype)[y.values], axis=-1))

    return Network(init, apply)
