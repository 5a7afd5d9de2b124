"""Changes of pictures together with the boxes of objects in them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.augment.core import Augmentation, Example, image_of
from jaxkd.keys import typed_key


def flip_with_boxes(*, horizontal: bool = True, vertical: bool = True) -> Augmentation:
    """Mirrors the image and its boxes left to right, half of the time, and top to bottom, half of the time.

    Args:
      horizontal: Whether it is mirrored left to right at all.
      vertical: Whether it is mirrored top to bottom at all.

    Returns:
      An augmentation of examples with `image` [H, W, C], `boxes` [M, 4], (x1, y1, x2, y2) in pixels, and `label` [M],
      -1 where a box only pads: those stay.

    Raises:
      ValueError: By the augmentation, if the example has no boxes.
    """

    def apply(key: jax.Array, example: Example) -> Example:
        image = image_of(example)
        if "boxes" not in example or "label" not in example:
            raise ValueError(f"example has no boxes with labels, only {sorted(example)}: use flip() for images alone.")
        height, width = image.shape[:2]
        boxes, real = example["boxes"], (example["label"] >= 0)[:, None]
        one, two = jax.random.bernoulli(typed_key(key), shape=(2,))
        if horizontal:
            image = jnp.where(one, image[:, ::-1], image)
            x1, y1, x2, y2 = jnp.split(boxes, 4, axis=1)
            boxes = jnp.where(real & one, jnp.concatenate([width - x2, y1, width - x1, y2], axis=1), boxes)
        if vertical:
            image = jnp.where(two, image[::-1], image)
            x1, y1, x2, y2 = jnp.split(boxes, 4, axis=1)
            boxes = jnp.where(real & two, jnp.concatenate([x1, height - y2, x2, height - y1], axis=1), boxes)
        return {**example, "image": image, "boxes": boxes}

    return apply
