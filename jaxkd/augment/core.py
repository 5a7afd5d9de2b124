"""Type of augmentations, their composition, and their application to batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.keys import is_key, typed_key
from jaxkd.types import Batch, Prepare

Example: TypeAlias = Mapping[str, Any]
"""One element of a batch: `image` [H, W, C], `label`, `id`, `view`, and whatever else the batch has."""

Augmentation: TypeAlias = Callable[[jax.Array, Example], Example]
"""(key, example) -> example."""

Mix: TypeAlias = Callable[[jax.Array, Example, Example], Example]
"""(key, example, partner) -> example with a soft label [K]."""

_MIX = 0x6D6978  # "mix" in ASCII: a fold of the example's key that no place in `compose` reaches

_FAR = 2**30
"""Distance of the views of `two_views`, which is more than the epochs of any training."""


def compose(*augmentations: Augmentation) -> Augmentation:
    """Composition of augmentations, applied in the order given; number i gets `fold_in(key, i)`.

    Args:
      *augmentations: Any number of augmentations; none is the identity.

    Returns:
      An augmentation.
    """

    def apply(key: jax.Array, example: Example) -> Example:
        key = typed_key(key)
        for i, augmentation in enumerate(augmentations):
            example = augmentation(jax.random.fold_in(key, i), example)
        return example

    return apply


def augment_batch(
    augmentation: Augmentation, *, seed: ArrayLike, mix: Mix | None = None, field: str = "image"
) -> Callable[[Batch], dict[str, Any]]:
    """Augmentation of whole batches, in which an example's randomness depends on (seed, id, view) alone.

    key = fold_in(fold_in(key(seed), id), view)

    Neither the position in the batch nor its size nor its sharding matters. With `mix`, the partner of an example is
    the next one of the batch (the last one's is the first), augmented with its own key.

    Args:
      augmentation: Augmentation of each example.
      seed: An integer, which may be traced, or a PRNG key.
      mix: `mixup(...)` or `cutmix(...)`, applied after `augmentation`.
      field: Field that the augmentation changes, such as `audio`.

    Returns:
      Batch -> batch; `image` [B, H, W, C], or another field [B, ...], and integers `id` [B] and `view` [B] must be
      there.

    Raises:
      ValueError: By the returned function, if a field is missing or has another rank or dtype.
    """

    def apply(batch: Batch) -> dict[str, Any]:
        _check_batch(batch, field)
        root = _root(seed)
        keys = jax.vmap(lambda i, v: jax.random.fold_in(jax.random.fold_in(root, i), v))(batch["id"], batch["view"])
        augmented = jax.vmap(augmentation)(keys, dict(batch))
        if mix is None:
            return dict(augmented)
        partners = jax.tree.map(lambda x: jnp.roll(x, -1, axis=0), augmented)
        mix_keys = jax.vmap(lambda key: jax.random.fold_in(key, _MIX))(keys)
        return dict(jax.vmap(mix)(mix_keys, augmented, partners))

    return apply


def two_views(prepare: Prepare, other: Prepare | None = None, **fields: str) -> Prepare:
    """Preparation of two views of each example at once, such as one for a student and one for its mean teacher.

    `two_views(noisy, teacher_image="image")` prepares as `noisy` does, and adds the images of another draw of it as
    `teacher_image`, which `models.reading(student, image="teacher_image")` reads.

    Args:
      prepare: Preparation whose fields keep their names, such as `augment_batch(augmentation, seed=0)`.
      other: Preparation of the other view; if None the same one, drawn as of a view that no epoch reaches.
      **fields: New field -> the field of the other view that it holds.

    Returns:
      Batch -> batch.

    Raises:
      ValueError: By the returned function, if the other view has no such field, or a batch has no `view` to draw anew.
    """

    def apply(batch: Batch) -> dict[str, Any]:
        if other is None and "view" not in batch:
            raise ValueError(f"batch has no field 'view', only {sorted(batch)}: another view needs it, add it.")
        found = prepare({**batch, "view": batch["view"] + _FAR}) if other is None else other(batch)
        if missing := [name for name in fields.values() if name not in found]:
            raise ValueError(f"the other view has no field {missing[0]!r}, only {sorted(found)}: name one of these.")
        return {**prepare(batch), **{new: found[name] for new, name in fields.items()}}

    return apply


def _root(seed: Any) -> jax.Array:
    """Key of a seed, or the key itself."""
    if isinstance(seed, int) or (np.shape(seed) == () and jnp.issubdtype(getattr(seed, "dtype", bool), jnp.integer)):
        return jax.random.key(seed)
    if is_key(seed) or np.ndim(seed):
        return typed_key(seed)
    raise TypeError(f"the seed of the augmentation is {seed!r}: give an integer.")


def on_image(change: Callable[[jax.Array, jax.Array], jax.Array], *, floating: bool = False) -> Augmentation:
    """Augmentation that replaces the image by `change(key, image)`."""

    def apply(key: jax.Array | None, example: Example) -> Example:
        typed: Any = None if key is None else typed_key(key)  # stages without chance need none
        return {**example, "image": change(typed, image_of(example, floating=floating))}

    return apply


def image_of(example: Example, *, floating: bool = False) -> jax.Array:
    """Image of an example, after a check that it is [H, W, C] and, if asked, of floats."""
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


def _check_batch(batch: Batch, changed: str) -> None:
    for field in (changed, "id", "view"):
        if field not in batch:
            raise ValueError(f"batch has no field {field!r}, only {sorted(batch)}: augmentation needs it, add it.")
    shape = np.shape(batch[changed])
    if changed == "image" and len(shape) != 4:
        raise ValueError(f"batch image has shape {shape}, expected [B, H, W, C]: add the missing axis.")
    for field in ("id", "view"):
        value = batch[field]
        if np.shape(value) != shape[:1] or not jnp.issubdtype(value.dtype, jnp.integer):
            have = f"shape {np.shape(value)} and dtype {value.dtype}"
            what = "images" if changed == "image" else "examples"
            raise ValueError(f"batch {field} has {have}: expected one integer for each of the {shape[0]} {what}.")


def box(key: jax.Array, shape: tuple[int, ...], height: ArrayLike, width: ArrayLike) -> jax.Array:
    """Mask [H, W, 1] that is true in a box around a random pixel."""
    centers = jax.random.randint(key, (2,), 0, jnp.asarray(shape[:2]))
    spans = []
    for axis, length in enumerate((height, width)):
        offset = jnp.arange(shape[axis]) - (centers[axis] - jnp.asarray(length) // 2)
        spans.append((offset >= 0) & (offset < length))
    return (spans[0][:, None] & spans[1][None, :])[:, :, None]
