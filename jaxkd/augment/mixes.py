"""Blends of two examples, images and labels alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd.augment.core import Example, Mix, box, image_of


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
        image, other = image_of(example, floating=True), image_of(partner, floating=True)
        label, other_label = _soft_labels(example, partner, num_classes)
        weight = _draw_weight(key, alpha, image.dtype)
        mixed = {"image": weight * image + (1 - weight) * other, "label": weight * label + (1 - weight) * other_label}
        return {**example, **mixed}

    return apply


def cutmix(num_classes: int, *, alpha: float = 1.0) -> Mix:
    """Replaces a random box of the image by the partner's, and the same fraction of the label.

    The box has sides sqrt(1 - lambda) of the image's, lambda ~ Beta(alpha, alpha), around a random pixel; the
    part beyond the border is lost, and the label follows the area that was really replaced.

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
        image, other = image_of(example), image_of(partner)
        label, other_label = _soft_labels(example, partner, num_classes)
        weight_key, box_key = jax.random.split(key)
        side = jnp.sqrt(1 - _draw_weight(weight_key, alpha, jnp.float32))
        height, width = (jnp.round(side * n).astype(jnp.int32) for n in image.shape[:2])
        inside = box(box_key, image.shape, height, width)
        weight = 1 - jnp.mean(inside.astype(label.dtype))
        mixed = {"image": jnp.where(inside, other, image), "label": weight * label + (1 - weight) * other_label}
        return {**example, **mixed}

    return apply


def _check_alpha(alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha} but must be positive: leave the mix out instead of setting it to 0.")


def _draw_weight(key: jax.Array, alpha: float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Draw from Beta(alpha, alpha), G_1 / (G_1 + G_2) of two Gamma(alpha), in logarithms: small alpha underflows."""
    first, second = jax.random.loggamma(key, alpha, (2,), dtype)
    return jax.nn.sigmoid(first - second)


def _soft_labels(example: Example, partner: Example, num_classes: int) -> list[jax.Array]:
    """Labels of both as probabilities [K]."""
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
