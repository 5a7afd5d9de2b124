"""Augmentations: pure `(key, example) -> example`, run on the device, one key for each example.

An example is a dict without a batch axis; `image` [H, W, C] is changed, everything else passes through untouched.
Pictures are uint8 until `to_float()`, then floats in [0, 1] until `normalize(mean, std)`, which comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from jaxkd.types import Batch

Example: TypeAlias = Mapping[str, Any]
"""One element of a batch: `image` [H, W, C], `label`, `id`, `view`, and whatever else the batch has."""

Augmentation: TypeAlias = Callable[[jax.Array, Example], Example]
"""(key, example) -> example."""

Mix: TypeAlias = Callable[[jax.Array, Example, Example], Example]
"""(key, example, partner) -> example with a soft label [K]."""

_MIX = 0x6D6978  # "mix" in ASCII: a fold of the example's key that no stage of `compose` will reach


def compose(*augmentations: Augmentation) -> Augmentation:
    """One augmentation out of several, applied in the order given; stage i gets `fold_in(key, i)`.

    Args:
      *augmentations: Any number of augmentations; none is the identity.

    Returns:
      An augmentation.
    """

    def apply(key: jax.Array, example: Example) -> Example:
        for i, augmentation in enumerate(augmentations):
            example = augmentation(jax.random.fold_in(key, i), example)
        return example

    return apply


def augment_batch(
    augmentation: Augmentation, *, seed: ArrayLike, mix: Mix | None = None
) -> Callable[[Batch], dict[str, Any]]:
    """An augmentation of whole batches in which an example's randomness depends on (seed, id, view) alone.

    key = fold_in(fold_in(key(seed), id), view)

    Neither the position in the batch nor its size nor its sharding matters. With `mix`, the partner of an example is
    the next one of the batch (the last one's is the first), augmented with its own key.

    Args:
      augmentation: What is done to each example.
      seed: An integer, which may be traced.
      mix: `mixup(...)` or `cutmix(...)`, applied after `augmentation`.

    Returns:
      Batch -> batch; `image` [B, H, W, C], and integers `id` [B] and `view` [B] must be there.

    Raises:
      ValueError: By the returned function, if a field is missing or has another rank or dtype.
    """

    def apply(batch: Batch) -> dict[str, Any]:
        _check_batch(batch)
        root = jax.random.key(seed)
        keys = jax.vmap(lambda i, v: jax.random.fold_in(jax.random.fold_in(root, i), v))(batch["id"], batch["view"])
        augmented = jax.vmap(augmentation)(keys, dict(batch))
        if mix is None:
            return dict(augmented)
        partners = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), augmented)
        mix_keys = jax.vmap(lambda key: jax.random.fold_in(key, _MIX))(keys)
        return dict(jax.vmap(mix)(mix_keys, augmented, partners))

    return apply


def to_float() -> Augmentation:
    """Turns a uint8 image of 0..255 into float32 in [0, 1].

    Returns:
      An augmentation, which uses no randomness.
    """

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        if image.dtype != jnp.uint8:
            raise ValueError(f"image has dtype {image.dtype}, but to_float() expects uint8: leave it out for floats.")
        return image.astype(jnp.float32) / 255

    return _on_image(change)


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

    return _on_image(change, floating=True)


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

    return _on_image(change)


def flip() -> Augmentation:
    """Mirrors the image left to right, half of the time.

    Returns:
      An augmentation, for images of any dtype.
    """
    return _on_image(lambda key, image: jnp.where(jax.random.bernoulli(key), image[:, ::-1], image))


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
    return _on_image(lambda key, image: jnp.where(_box(key, image.shape, size, size), jnp.zeros_like(image), image))


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

    return _on_image(change, floating=True)


def rand_augment(num_ops: int = 2, magnitude: float = 9.0) -> Augmentation:
    """RandAugment-lite: `num_ops` changes in a row, each drawn evenly from eleven, all of one magnitude.

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

    return _on_image(change, floating=True)


def mixup(num_classes: int, *, alpha: float = 0.2) -> Mix:
    """Blends an example with its partner, images and labels alike.

    x = lambda x_1 + (1 - lambda) x_2,  y = lambda y_1 + (1 - lambda) y_2,  lambda ~ Beta(alpha, alpha)

    Args:
      num_classes: K.
      alpha: Positive; small values keep lambda near 0 or 1.

    Returns:
      A mix of float images; labels (integers, or probabilities [K]) become probabilities [K].

    Raises:
      ValueError: If alpha is not positive; by the mix, if images or labels do not fit.

    Reference:
      Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, https://arxiv.org/abs/1710.09412
    """
    _check_alpha(alpha)

    def apply(key: jax.Array, example: Example, partner: Example) -> Example:
        image, other = _image(example, floating=True), _image(partner, floating=True)
        label, other_label = _soft_labels(example, partner, num_classes)
        share = _draw_share(key, alpha, image.dtype)
        mixed = {"image": share * image + (1 - share) * other, "label": share * label + (1 - share) * other_label}
        return {**example, **mixed}

    return apply


def cutmix(num_classes: int, *, alpha: float = 1.0) -> Mix:
    """Replaces a random box of the image by the partner's, and as much of the label as of the area.

    The box has sides sqrt(1 - lambda) of the image's, lambda ~ Beta(alpha, alpha), around a random pixel; what lies
    beyond the border is lost, and the label follows the area that was really replaced.

    Args:
      num_classes: K.
      alpha: Positive; 1 makes lambda uniform.

    Returns:
      A mix of images of any dtype; labels (integers, or probabilities [K]) become probabilities [K].

    Raises:
      ValueError: If alpha is not positive; by the mix, if images or labels do not fit.

    Reference:
      Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
      https://arxiv.org/abs/1905.04899
    """
    _check_alpha(alpha)

    def apply(key: jax.Array, example: Example, partner: Example) -> Example:
        image, other = _image(example), _image(partner)
        label, other_label = _soft_labels(example, partner, num_classes)
        share_key, box_key = jax.random.split(key)
        side = jnp.sqrt(1 - _draw_share(share_key, alpha, jnp.float32))
        height, width = (jnp.round(side * n).astype(jnp.int32) for n in image.shape[:2])
        inside = _box(box_key, image.shape, height, width)
        share = 1 - jnp.mean(inside.astype(label.dtype))
        mixed = {"image": jnp.where(inside, other, image), "label": share * label + (1 - share) * other_label}
        return {**example, **mixed}

    return apply


def _check_batch(batch: Batch) -> None:
    for field in ("image", "id", "view"):
        if field not in batch:
            raise ValueError(f"batch has no field {field!r}, only {sorted(batch)}: augmentation needs it, add it.")
    image = np.shape(batch["image"])
    if len(image) != 4:
        raise ValueError(f"batch image has shape {image}, expected [B, H, W, C]: add the missing axis.")
    for field in ("id", "view"):
        value = batch[field]
        if np.shape(value) != image[:1] or not jnp.issubdtype(value.dtype, jnp.integer):
            have = f"shape {np.shape(value)} and dtype {value.dtype}"
            raise ValueError(f"batch {field} has {have}: expected one integer for each of the {image[0]} images.")


def _on_image(change: Callable[[jax.Array, jax.Array], jax.Array], *, floating: bool = False) -> Augmentation:
    """The augmentation that puts `change(key, image)` in the image's place."""
    return lambda key, example: {**example, "image": change(key, _image(example, floating=floating))}


def _image(example: Example, *, floating: bool = False) -> jax.Array:
    """The image of an example, once it is known to be [H, W, C] and, if asked, of floats."""
    if "image" not in example:
        raise ValueError(f"example has no field 'image', only {sorted(example)}: add it, or leave augmentation out.")
    image = jnp.asarray(example["image"])
    if image.ndim != 3:
        raise ValueError(
            f"image has shape {image.shape}, expected [H, W, C] of one example: add a channel axis to grey images, and "
            "use augment_batch for batches."
        )
    if floating and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image has dtype {image.dtype}, expected floats in [0, 1]: put to_float() before this stage.")
    return image


def _check_alpha(alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha} but must be positive: leave the mix out instead of setting it to 0.")


def _draw_share(key: jax.Array, alpha: float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Beta(alpha, alpha), as G_1 / (G_1 + G_2) of two Gamma(alpha), in logarithms since small alpha underflows."""
    first, second = jax.random.loggamma(key, alpha, (2,), dtype)
    return jax.nn.sigmoid(first - second)


def _box(key: jax.Array, shape: tuple[int, ...], height: ArrayLike, width: ArrayLike) -> jax.Array:
    """Booleans [H, W, 1], true in a box around a random pixel."""
    centers = jax.random.randint(key, (2,), 0, jnp.asarray(shape[:2]))
    spans = []
    for axis, length in enumerate((height, width)):
        offset = jnp.arange(shape[axis]) - (centers[axis] - jnp.asarray(length) // 2)
        spans.append((offset >= 0) & (offset < length))
    return (spans[0][:, None] & spans[1][None, :])[:, :, None]


def _soft_labels(example: Example, partner: Example, num_classes: int) -> list[jax.Array]:
    """The labels of both as probabilities [K]."""
    labels = []
    for side in (example, partner):
        if "label" not in side:
            raise ValueError(f"example has no field 'label', only {sorted(side)}: mixing needs labels, add them.")
        label = jnp.asarray(side["label"])
        if label.ndim == 0 and jnp.issubdtype(label.dtype, jnp.integer):
            label = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
        elif label.shape != (num_classes,) or not jnp.issubdtype(label.dtype, jnp.floating):
            wanted = f"an integer or {num_classes} probabilities"
            raise ValueError(f"label has shape {label.shape} and dtype {label.dtype}: expected {wanted}.")
        labels.append(label)
    return labels


def _grey(image: jax.Array) -> jax.Array:
    """Luma [H, W, 1] of an image with one or three channels."""
    if image.shape[-1] == 1:
        return image
    if image.shape[-1] != 3:
        raise ValueError(f"image has shape {image.shape}: colour changes need 1 or 3 channels, leave them out.")
    return jnp.sum(image * jnp.asarray([0.299, 0.587, 0.114], image.dtype).reshape(1, 1, 3), axis=-1, keepdims=True)


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


# What rand_augment draws from; m is the signed strength in [-1, 1], and place 0 of both is the identity.
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
