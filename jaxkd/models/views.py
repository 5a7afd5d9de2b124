"""Models that see a batch, or give their classes, in another form: fields, channels, resolution, chosen classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import numerics
from jaxkd.augment.channels import to_channels
from jaxkd.models.adapters import read_inputs
from jaxkd.models.top_k import KEPT, keep_top_k
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables


def with_channels(model: Model, channels: int, *, field: str = "image") -> Model:
    """Model that sees its pictures in grey or in colour, whichever the batch has.

    Grey becomes three equal channels; colour becomes grey by its luminance, 0.299 R + 0.587 G + 0.114 B.

    Args:
      model: Such as a teacher that was trained on RGB.
      channels: Channels that it reads, 1 or 3.
      field: Field of the batch with the pictures [B, H, W, 1 or 3].

    Returns:
      A model with the same variables; pictures that have its channels are left as they are.

    Raises:
      ValueError: If `channels` is neither 1 nor 3; by the model, for pictures of another number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: give 1 for grey or 3 for RGB.")
    return _seeing(model, field, lambda image: to_channels(image, channels))


def at_resolution(
    model: Model, size: int | tuple[int, int], *, method: str = "linear", antialias: bool = True, field: str = "image"
) -> Model:
    """Model that sees its pictures at another resolution, to which they are resized inside the program.

    Args:
      model: Such as a teacher that reads larger pictures than its student, or a student of smaller ones.
      size: Height and width in pixels, or one number for both.
      method: Interpolation of `jax.image.resize`: "nearest", "linear", "cubic", "lanczos3" or "lanczos5".
      antialias: Whether pictures are smoothed before they are made smaller.
      field: Field of the batch with the pictures [B, H, W, C]; integers are rounded.

    Returns:
      A model with the same variables; pictures of that size are left as they are.

    Raises:
      ValueError: If the size is not positive or the method unknown; by the model, for a field that holds no pictures.
    """
    sides = (size, size) if isinstance(size, int | np.integer) else tuple(np.ravel(size))
    if len(sides) != 2 or not all(isinstance(x, int | np.integer) and x > 0 for x in sides):
        raise ValueError(f"size is {size}: give height and width in pixels, at least 1.")
    height, width = (int(x) for x in sides)
    known = [m.name.lower() for m in jax.image.ResizeMethod]
    if method not in (*known, "bilinear", "bicubic"):
        raise ValueError(f"method is {method!r}: choose one of {', '.join(known)}.")

    def resized(image: jax.Array) -> jax.Array:
        if image.ndim != 4:
            raise ValueError(
                f"{field!r} has shape {image.shape} instead of pictures [B, H, W, C]: name another `field=`."
            )
        if image.shape[1:3] == (height, width):
            return image
        floating = image if jnp.issubdtype(image.dtype, jnp.floating) else image.astype(jnp.float32)
        shape = (image.shape[0], height, width, image.shape[3])
        made = jax.image.resize(floating, shape, method, antialias=antialias)
        if made.dtype == image.dtype:
            return made
        limits = jnp.iinfo(image.dtype)
        return jnp.clip(jnp.round(made), limits.min, limits.max).astype(image.dtype)

    return _seeing(model, field, resized)


def reading(model: Model, **fields: str) -> Model:
    """Model that reads fields of the batch under other names, such as another view of the images.

    `models.reading(student, image="teacher_image")` is the student as a teacher that sees its own view.

    Args:
      model: Any model.
      **fields: Field that the model reads -> the batch's field in its place.

    Returns:
      A model with the same variables.

    Raises:
      ValueError: If no field is named; by the model, if the batch lacks one.
    """
    if not fields:
        raise ValueError(
            'reading() needs at least one field to read in another\'s place, such as image="teacher_image".'
        )

    def seen(batch: Batch) -> Batch:
        found = read_inputs(batch, list(fields.values()), "models.reading")
        return {**batch, **dict(zip(fields, found, strict=True))}

    def init(key: jax.Array, batch: Batch) -> Variables:
        return model.init(key, seen(batch))

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return model.apply(variables, seen(batch), key, train)

    return Model(init, apply, model.reads_teacher)


def _seeing(model: Model, field: str, change: Callable[[jax.Array], jax.Array]) -> Model:
    """The model of batches of which one field is changed."""

    def seen(batch: Batch) -> Batch:
        if field not in batch:
            raise ValueError(f"the batch has no field {field!r} but {', '.join(sorted(batch))}: name one by `field=`.")
        return {**batch, field: change(jnp.asarray(batch[field]))}

    def init(key: jax.Array, batch: Batch) -> Variables:
        return model.init(key, seen(batch))

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return model.apply(variables, seen(batch), key, train)

    return Model(init, apply)


def select_classes(model: Model, classes: int | Sequence[int] | np.ndarray | Mapping[int, int]) -> Model:
    """Model of some of its classes, or of groups of them: its logits, and its last layer if it gives one.

    A teacher of 1000 classes for a student of ten of them, or of a vocabulary that is padded for another size:
    `select_classes(teacher, 18)` keeps the first 18 tokens. The softmax is then one over the classes that are left.
    A mapping joins classes, such as fine ones to coarse ones: the probability of a group is the sum of its members',

    z_c = log sum_{k in c} exp(z_k)

    of which a temperature takes the softmax at T; that is not the sum of the members' probabilities at T.
    Features stay as they are.

    Args:
      model: The teacher, or the student; `models.cached(...)` too.
      classes: The first so many classes, the numbers of the classes in the order of the labels, a mask [K] of bool, or
        the mapping of each class that is kept -> its class here, 0..C-1, of which each has at least one.

    Returns:
      A model with the same variables. The top k of its outputs, if it gives them, are those among these classes. It has
      no last layer if a class is made of several.

    Raises:
      ValueError: If no class is named, or one twice; if a mapping leaves a class empty; by the model, if it does not
        have one of them.
    """
    if isinstance(classes, Mapping):
        groups = _groups(classes)
        if max(len(group) for group in groups) > 1:
            return _regrouped(model, max(classes), groups)
        classes = [int(group[0]) for group in groups]
    chosen = _chosen(classes)
    first = np.array_equal(chosen, np.arange(len(chosen)))

    def cut(x: jax.Array) -> jax.Array:
        _check_has(x, int(chosen.max()))
        return x[..., : len(chosen)] if first else jnp.take(x, chosen, axis=-1)

    return _of_classes(model, cut, len(chosen), joined=False)


def _chosen(classes: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Numbers of the classes that are kept."""
    given = np.asarray(classes)
    if given.ndim == 0 and given.dtype.kind in "iu":
        chosen = np.arange(int(given))
    else:
        chosen = np.flatnonzero(given) if given.dtype == bool and given.ndim == 1 else given
    if chosen.ndim != 1 or not len(chosen) or chosen.dtype.kind not in "iu" or chosen.min() < 0:
        raise ValueError(
            f"classes is {classes}: give how many of the first ones, or the numbers of the classes, from 0."
        )
    if len(np.unique(chosen)) < len(chosen):
        raise ValueError(
            f"classes names a class twice, of {len(chosen)} {len(np.unique(chosen))} differ: name each once."
        )
    return chosen


def _groups(classes: Mapping[int, int]) -> list[np.ndarray]:
    """Members of each class of a mapping."""
    pairs = np.asarray([*classes.items()])
    if pairs.ndim != 2 or pairs.dtype.kind not in "iu" or pairs.min() < 0:
        raise ValueError(f"classes is {dict(classes)}: map numbers of classes to numbers of classes, both from 0.")
    groups = [np.sort(pairs[pairs[:, 1] == c, 0]) for c in range(pairs[:, 1].max() + 1)]
    if empty := [c for c, group in enumerate(groups) if not len(group)]:
        raise ValueError(
            f"classes maps no class to {empty} of 0..{len(groups) - 1}: give each a class, or number anew."
        )
    return groups


def _regrouped(model: Model, largest: int, groups: Sequence[np.ndarray]) -> Model:
    """The model whose classes are groups of its own."""
    most = max(len(group) for group in groups)
    member = np.asarray([np.pad(group, (0, most - len(group))) for group in groups])  # [C, most]
    real = np.asarray([np.arange(most) < len(group) for group in groups])

    def join(z: jax.Array) -> jax.Array:
        _check_has(z, largest)
        (z,) = numerics.promote(z)
        members = jnp.where(jnp.broadcast_to(real, (*z.shape[:-1], *real.shape)), z[..., member], -jnp.inf)
        some = jnp.any(members > -jnp.inf, axis=-1, keepdims=True)  # else all of them are masked
        sums = jax.nn.logsumexp(jnp.where(some, members, 0), axis=-1)
        return jnp.where(some[..., 0], sums, -jnp.inf)

    return _of_classes(model, join, len(groups), joined=True)


def _of_classes(model: Model, change: Callable[[jax.Array], jax.Array], count: int, *, joined: bool) -> Model:
    """The model with other classes in its logits, its top k, and its last layer."""

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        out, state = model.apply(variables, batch, key, train)
        logits, features = None if out.logits is None else change(out.logits), out.features
        if logits is not None and all(name in features for name in KEPT):
            kept = min(features[KEPT[0]].shape[-1], count)
            features = {**features, **keep_top_k(logits, kept)}
        cut = out.head is not None and not joined
        head: dict[str, Any] | None = {name: change(x) for name, x in (out.head or {}).items()} if cut else None
        return Outputs(logits, features, head), state

    return model._replace(apply=apply)


def _check_has(x: jax.Array, largest: int) -> None:
    """Refuses a class that the model does not have."""
    if largest >= x.shape[-1]:
        raise ValueError(f"class {largest} was asked for, but the model has {x.shape[-1]}: name 0..{x.shape[-1] - 1}.")
