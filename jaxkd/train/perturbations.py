"""Perturbations that an attack is allowed: norms, the ball around an image, the range of valid pixels.

Perturbations are in units of [0, 1] pixels, whatever numbers the network reads. Epsilon may be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.keys import typed_key


class Norm(NamedTuple):
    """A norm of perturbations.

    Attributes:
      direction: Gradients [B, ...] -> steepest ascent of size 1, 0 where the gradient is.
      project: (perturbations [B, ...], epsilon) -> the nearest of norm epsilon or less.
      draw: (key, shape, dtype) -> random perturbations of norm 1 or less.
    """

    direction: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, jax.Array], jax.Array]
    draw: Callable[[jax.Array, Sequence[int], Any], jax.Array]


def _sizes(x: jax.Array) -> jax.Array:
    """Euclidean norm of each example, with axes of length one."""
    return numerics.safe_norm(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _shorten(x: jax.Array, epsilon: jax.Array) -> jax.Array:
    size = _sizes(x)
    return jnp.where(size > epsilon, x * (epsilon / jnp.where(size > 0, size, 1)), x)


def _unit(x: jax.Array) -> jax.Array:
    size = _sizes(x)
    return x / jnp.where(size > 0, size, 1)


def _in_sphere(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Uniform in the Euclidean ball: a direction, times the D-th root of a uniform number."""
    directions, radii = jax.random.split(key)
    uniform = jax.random.uniform(radii, (shape[0], *(1 for _ in shape[1:])), dtype)
    return _unit(jax.random.normal(directions, shape, dtype)) * uniform ** (1 / int(np.prod(shape[1:])))


LINF = Norm(
    jnp.sign,
    lambda x, epsilon: jnp.clip(x, -epsilon, epsilon),
    lambda key, shape, dtype: jax.random.uniform(key, tuple(shape), dtype, -1, 1),
)
"""Largest change of a pixel."""
L2 = Norm(_unit, _shorten, _in_sphere)
"""Euclidean norm of the change of an image."""


class Ball(NamedTuple):
    """The perturbations that are allowed: of norm epsilon or less, and to valid pixels.

    Attributes:
      norm: The norm, `LINF` or `L2`.
      epsilon: Its bound, a scalar in units of [0, 1] pixels.
      low: Least perturbations [B, ...] that keep pixels at 0 or more; not above 0.
      high: Greatest ones that keep them at 1 or less; not below 0.
    """

    norm: Norm
    epsilon: jax.Array
    low: jax.Array
    high: jax.Array

    def project(self, x: jax.Array) -> jax.Array:
        """Perturbations [B, ...] brought into the ball. Cutting to valid pixels only makes a norm smaller."""
        return jnp.clip(self.norm.project(x, self.epsilon), self.low, self.high)

    def start(self, key: jax.Array) -> jax.Array:
        """Random perturbations [B, ...], uniform in the norm's ball before they are cut to valid pixels."""
        return self.project(self.epsilon * self.norm.draw(typed_key(key), self.low.shape, self.low.dtype))

    def noise(self, key: jax.Array, scale: ArrayLike = 1e-3) -> jax.Array:
        """Gaussian perturbations [B, ...] of a small scale: the first step of TRADES leaves a point without slope."""
        drawn = jax.random.normal(typed_key(key), self.low.shape, self.low.dtype)
        return self.project(jnp.asarray(scale, self.low.dtype) * drawn)

    def clean(self) -> jax.Array:
        """No perturbation, [B, ...]."""
        return jnp.zeros_like(self.low)


class Range(NamedTuple):
    """Values that a network reads where a pixel is black, and where it is white.

    An image in [0, 1] that is normalised by (x - mean) / std has black = -mean / std and white = (1 - mean) / std.

    Attributes:
      black: A number, or one [C] for each channel.
      white: Greater ones.
    """

    black: ArrayLike = 0.0
    white: ArrayLike = 1.0

    def ball(self, image: jax.Array, epsilon: ArrayLike, norm: Norm = LINF) -> Ball:
        """Perturbations that are allowed of prepared images.

        Args:
          image: [B, ..., C] floating, as the network reads it.
          epsilon: Radius in units of [0, 1] pixels, 0 or more; may be traced.
          norm: `LINF` or `L2`.

        Returns:
          The ball around each image.

        Raises:
          ValueError: If the images are no floats, or epsilon is negative or no scalar.
        """
        check_radius("epsilon", epsilon)
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(f"images to attack have dtype {image.dtype}: give floats, as the network reads them.")
        pixels, radius = self.to_unit(image), jnp.asarray(epsilon, image.dtype)
        return Ball(norm, radius, jnp.minimum(-pixels, 0), jnp.maximum(1 - pixels, 0))

    def to_unit(self, image: jax.Array) -> jax.Array:
        """Pixels in [0, 1] of prepared images [B, ..., C]."""
        black, span = self._of(image)
        return (image - black) / span

    def move(self, image: jax.Array, perturbation: jax.Array) -> jax.Array:
        """Prepared images [B, ..., C] moved by perturbations [B, ..., C] of pixels; bit for bit the same if by 0."""
        return image + self._of(image)[1] * perturbation

    def _of(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Black, and white minus black, with the axes of the images."""
        ends = [jnp.asarray(x, image.dtype) for x in (self.black, self.white)]
        if any(x.ndim > 1 or x.size not in (1, image.shape[-1]) for x in ends):
            raise ValueError(
                f"the range of pixels has shapes {[x.shape for x in ends]} but images have shape {image.shape}: give "
                "a number, or one for each channel."
            )
        black, white = (x.reshape((1,) * (image.ndim - 1) + (x.size,)) for x in ends)
        return black, white - black


UNIT = Range()
"""Images that the network reads as they are, in [0, 1]."""


def check_radius(name: str, value: ArrayLike) -> None:
    """Raises ValueError unless a number is finite and 0 or more; traced ones pass if they are scalars."""
    known = not isinstance(value, jax.core.Tracer)
    if jnp.ndim(value) or (known and not 0 <= float(np.asarray(value)) < np.inf):
        raise ValueError(f"{name} of an attack is {value}: give one number from 0, in units of [0, 1] pixels.")


def check_steps(steps: int) -> None:
    """Raises ValueError unless an attack has a whole number of steps, from 1."""
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"an attack has {steps!r} steps: give a whole number from 1.")
