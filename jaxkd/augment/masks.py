"""Changes of pictures together with the class of each pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.augment.core import Augmentation, Example, image_of
from jaxkd.keys import typed_key


def flip_with_mask(
    *, horizontal: bool = True, vertical: bool = True, fields: tuple[str, ...] = ("label",)
) -> Augmentation:
    """Mirrors the image and its mask left to right, half of the time, and top to bottom, half of the time.

    Args:
      horizontal: Whether it is mirrored left to right at all.
      vertical: Whether it is mirrored top to bottom at all.
      fields: Fields [H, W, ...] of the example that are mirrored with the image, such as a teacher's logits of pixels.

    Returns:
      An augmentation of examples with `image` [H, W, C] and those fields.

    Raises:
      ValueError: By the augmentation, if the example has no such field, or one of another height or width.
    """

    def apply(key: jax.Array, example: Example) -> Example:
        image = image_of(example)
        for field in fields:
            if field not in example or example[field].shape[:2] != image.shape[:2]:
                have = f"of shape {example[field].shape}" if field in example else "missing"
                raise ValueError(f"`{field}` is {have} but image has shape {image.shape}: give a mask of its size.")
        one, two = jax.random.bernoulli(typed_key(key), shape=(2,))
        changed = {field: example[field] for field in ("image", *fields)}
        if horizontal:
            changed = {field: jnp.where(one, x[:, ::-1], x) for field, x in changed.items()}
        if vertical:
            changed = {field: jnp.where(two, x[::-1], x) for field, x in changed.items()}
        return {**example, **changed}

    return apply
