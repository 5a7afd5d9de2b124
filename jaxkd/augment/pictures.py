"""Changes of single images: crops, flips, colours, RandAugment."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from jaxkd.augment.channels import to_channels
from jaxkd.augment.core import Augmentation, Example, box, image_of, on_image
from jaxkd.keys import typed_key


def to_float() -> Augmentation:
    """Turns a uint8 image of 0..255 into float32 in [0, 1]; a floating image, which is in its units already, stays.

    Returns:
      An augmentation, which uses no randomness.

    Raises:
      ValueError: By the augmentation, if the image holds other integers.
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        if jnp.issubdtype(image.dtype, jnp.floating):
            return image
        if image.dtype != jnp.uint8:
            raise ValueError(
                f"image has dtype {image.dtype}, but to_float() expects uint8 in 0..255 or floats: cast it."
            )
        return image.astype(jnp.float32) / 255

    return on_image(change)


def normalize(mean: ArrayLike, std: ArrayLike) -> Augmentation:
    """Shifts and scales each channel: (image - mean) / std.

    Args:
      mean: A number, or one for each channel [C], in the units of the image.
      std: A positive number, or one for each channel [C].

    Returns:
      An augmentation, which uses no randomness.

    Raises:
      ValueError: If std is not positive; by the augmentation, if the number of channels differs.
    """
    mean, std = np.asarray(mean), np.asarray(std)
    if not np.all(std > 0):
        raise ValueError(f"std is {std.tolist()} but must be positive: leave out channels that never vary.")

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        if {mean.size, std.size} - {1, image.shape[-1]}:
            have = f"mean and std have {mean.size} and {std.size} entries but image {image.shape}"
            raise ValueError(f"{have} has {image.shape[-1]} channels: give one number or one for each channel.")
        m, s = (jnp.asarray(v, image.dtype).reshape(1, 1, -1) for v in (mean, std))
        return (image - m) / s

    return on_image(change, floating=True)


def random_crop(padding: int) -> Augmentation:
    """Pads the image with zeros on every side and cuts out a window of its original size at a random place.

    Args:
      padding: Pixels added on each side; 0 leaves the image as it is.

    Returns:
      An augmentation, for images of any dtype.

    Raises:
      ValueError: If padding is negative.
    """
    if padding < 0:
        raise ValueError(f"padding is {padding} but must not be negative: give a number of pixels, 0 for no crop.")

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)

    return on_image(change)


def random_resized_crop(
    size: int, *, area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Augmentation:
    """Cuts out a window of random area, shape and place, and resizes it to a square, bilinear with antialiasing.

    A window that would be wider or higher than the image is cut at its border, where other libraries draw again. An
    example's field `aspect`, if there is one, is the width over the height of its image before it was stretched; the
    window's shape is then measured in the original image, and the field is dropped.

    Args:
      size: Height and width of the result.
      area: Least and greatest fraction of the image's area.
      ratio: Least and greatest width over height, drawn evenly in its logarithm.

    Returns:
      An augmentation, for floating images.

    Raises:
      ValueError: If the size is not positive, or a range is empty or outside its bounds.

    Reference:
      Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, https://arxiv.org/abs/1409.4842
    """
    if size < 1 or not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"size is {size}, area {area} and ratio {ratio}: give a positive size, fractions 0 < low <= high <= 1 and "
            "ratios 0 < low <= high."
        )

    def apply(key: jax.Array, example: Example) -> Example:
        image = image_of(example, floating=True)
        of_area, of_ratio, of_place = jax.random.split(typed_key(key), 3)
        sides = jnp.asarray(image.shape[:2], image.dtype)
        fraction = jax.random.uniform(of_area, (), image.dtype, *area)
        log = jax.random.uniform(of_ratio, (), image.dtype, *np.log(ratio))
        window = jnp.sqrt(fraction * jnp.prod(sides)) * jnp.exp(jnp.stack([-log, log]) / 2)
        if "aspect" in example:  # from the shape that the image had, with the same area, to the one that it has
            narrower = jnp.sqrt(sides[1] / sides[0] / example["aspect"].astype(image.dtype))
            window = window * jnp.stack([1 / narrower, narrower])
        window = jnp.minimum(window, sides)
        corner = jax.random.uniform(of_place, (2,), image.dtype) * (sides - window)
        scale = size / window
        shape = (size, size, image.shape[-1])
        cut = jax.image.scale_and_translate(image, shape, (0, 1), scale, -corner * scale, "linear")
        return {**{name: value for name, value in example.items() if name != "aspect"}, "image": cut}

    return apply


def center_crop(size: int) -> Augmentation:
    """Cuts out a square in the middle of the image.

    Args:
      size: Height and width of the square.

    Returns:
      An augmentation, for images of any dtype that are at least as large.

    Raises:
      ValueError: If the size is not positive; by the augmentation, if an image is smaller.
    """
    if size < 1:
        raise ValueError(f"size is {size} but must be at least 1: give the side of the square in pixels.")

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        top, left = ((side - size) // 2 for side in image.shape[:2])
        if min(top, left) < 0:
            raise ValueError(f"image has shape {image.shape}, too small to cut out {size} x {size}: give less.")
        return image[top : top + size, left : left + size]

    return on_image(change)


def flip() -> Augmentation:
    """Mirrors the image left to right, half of the time.

    Returns:
      An augmentation, for images of any dtype.
    """
    return on_image(lambda key, image: jnp.where(jax.random.bernoulli(key), image[:, ::-1], image))


def cutout(size: int) -> Augmentation:
    """Sets a square around a random pixel to zero; the part of it beyond the border is lost.

    Args:
      size: Side of the square in pixels.

    Returns:
      An augmentation, for images of any dtype; after `normalize`, zero is the mean colour.

    Raises:
      ValueError: If size is not positive.

    Reference:
      DeVries, Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
      https://arxiv.org/abs/1708.04552
    """
    if size < 1:
        raise ValueError(f"size is {size} but must be at least 1: give the side of the square in pixels.")
    return on_image(lambda key, image: jnp.where(box(key, image.shape, size, size), jnp.zeros_like(image), image))


def color_jitter(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Augmentation:
    """Changes brightness, then contrast, then saturation, each by a factor drawn from [max(0, 1 - x), 1 + x].

    image <- clip(factor * image + (1 - factor) * anchor, 0, 1), where the anchor is black for brightness, the mean grey
    of the image for contrast, and each pixel's own grey for saturation (nothing, with one channel).

    Args:
      brightness: x >= 0 for brightness; 0 leaves it alone.
      contrast: x >= 0 for contrast.
      saturation: x >= 0 for saturation.

    Returns:
      An augmentation of float images in [0, 1] with one or three channels.

    Raises:
      ValueError: If a strength is negative; by the augmentation, for other dtypes and numbers of channels.
    """
    strengths = (brightness, contrast, saturation)
    if min(strengths) < 0:
        raise ValueError(f"color_jitter got {strengths}, but no strength may be negative: use 0 to leave one out.")

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        strength = jnp.asarray(strengths, image.dtype)
        low = jnp.maximum(1 - strength, 0)
        factors = low + (1 + strength - low) * jax.random.uniform(key, (3,), image.dtype)
        image = _blend(jnp.zeros_like(image), image, factors[0])
        image = _blend(jnp.mean(_grey(image)), image, factors[1])
        return _blend(_grey(image), image, factors[2])

    return on_image(change, floating=True)


def rand_augment(num_ops: int = 2, magnitude: float = 9.0) -> Augmentation:
    """RandAugment-lite: `num_ops` operations one after the other, drawn evenly from eleven, all of one magnitude.

    Identity; rotation up to 30 degrees, shear up to 0.3, translation up to 0.45 of the side, across or down;
    brightness, contrast, saturation by a factor of 1 +- 0.9; posterising down to 4 bits; solarising above 1 - M / 10.
    Signs are random, pixels from outside are black, and magnitude 0 is the identity on 8-bit pictures.

    Args:
      num_ops: N of the paper.
      magnitude: M of the paper, 0 to 10.

    Returns:
      An augmentation of float images in [0, 1] with one or three channels.

    Raises:
      ValueError: If num_ops or magnitude is out of range; by the augmentation, for other dtypes and channels.

    Reference:
      Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS 2020,
      https://arxiv.org/abs/1909.13719
    """
    if num_ops < 0 or not 0 <= magnitude <= 10:
        raise ValueError(f"num_ops is {num_ops} and magnitude {magnitude}: expected num_ops >= 0, magnitude 0 to 10.")

    def draw(key: jax.Array, image: jax.Array) -> jax.Array:
        op_key, sign_key = jax.random.split(key)
        op = jax.random.randint(op_key, (), 0, len(_WARPS) + len(_COLORS) - 1)
        m = magnitude / 10 * jnp.where(jax.random.bernoulli(sign_key), 1, -1).astype(image.dtype)
        # Under vmap a switch computes every branch, so all warps share one (costly) interpolation: either the warp or
        # the colour change is the identity, which stands at place 0 of both.
        warp = jax.lax.switch(jnp.where(op < len(_WARPS), op, 0), _WARPS, m)
        return jax.lax.switch(jnp.maximum(op - len(_WARPS) + 1, 0), _COLORS, _affine(image, warp), m)

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        for i in range(num_ops):
            image = draw(jax.random.fold_in(key, i), image)
        return image

    return on_image(change, floating=True)


def _grey(image: jax.Array) -> jax.Array:
    """Grey values [H, W, 1] (luma) of an image with one or three channels."""
    if image.shape[-1] not in (1, 3):
        raise ValueError(f"image has shape {image.shape}: colour changes need 1 or 3 channels, leave them out.")
    return to_channels(image, 1)


def _blend(anchor: ArrayLike, image: jax.Array, factor: ArrayLike) -> jax.Array:
    # Written as a difference from the image, so that factor 1 changes nothing, not even by rounding.
    return jnp.clip(image + (factor - 1) * (image - anchor), 0, 1)


def _posterize(image: jax.Array, m: jax.Array) -> jax.Array:
    step = 2 ** jnp.round(4 * jnp.abs(m))
    # The rounding keeps 16 / 255 from falling below level 16.
    return jnp.floor(jnp.round(image * 255) / step) * step / 255


def _solarize(image: jax.Array, m: jax.Array) -> jax.Array:
    return jnp.where(image > 1 - jnp.abs(m), 1 - image, image)


def _affine(image: jax.Array, warp: jax.Array) -> jax.Array:
    """Bilinear warp [[a, b, t], [c, d, u]] about the centre, from output to input; t and u in parts of a side."""
    size = image.shape[:2]
    y, x = (jnp.arange(n, dtype=image.dtype) - (n - 1) / 2 for n in size)
    rows, columns = (
        warp[i, 0] * y[:, None] + warp[i, 1] * x[None, :] + warp[i, 2] * n + (n - 1) / 2 for i, n in enumerate(size)
    )
    return jax.vmap(lambda plane: map_coordinates(plane, [rows, columns], order=1), in_axes=-1, out_axes=-1)(image)


def _warp(*entries: ArrayLike) -> jax.Array:
    return jnp.stack([jnp.asarray(v, jnp.float32) for v in entries]).reshape(2, 3)


def _rotation(m: jax.Array) -> jax.Array:
    angle = jnp.radians(30 * m)
    return _warp(jnp.cos(angle), -jnp.sin(angle), 0, jnp.sin(angle), jnp.cos(angle), 0)


# Operations that rand_augment draws from; m is the signed strength in [-1, 1], and place 0 of both is the identity.
_WARPS: tuple[Callable[[jax.Array], jax.Array], ...] = (
    lambda m: _warp(1, 0, 0, 0, 1, 0),
    _rotation,
    lambda m: _warp(1, 0, 0, 0.3 * m, 1, 0),
    lambda m: _warp(1, 0.3 * m, 0, 0, 1, 0),
    lambda m: _warp(1, 0, 0, 0, 1, 0.45 * m),
    lambda m: _warp(1, 0, 0.45 * m, 0, 1, 0),
)
_COLORS: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...] = (
    lambda image, m: image,
    lambda image, m: _blend(jnp.zeros_like(image), image, 1 + 0.9 * m),
    lambda image, m: _blend(jnp.mean(_grey(image)), image, 1 + 0.9 * m),
    lambda image, m: _blend(_grey(image), image, 1 + 0.9 * m),
    _posterize,
    _solarize,
)
