"""Terms that leave out of their mean what has the label to ignore, such as 255, -100 or -1."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.labels import is_label, with_mask
from jaxkd.objectives.paths import read_field, read_paths
from jaxkd.types import WHOLE, Batch, Metrics, Outputs, PyTree, Term, Variables


def ignoring_loss(loss: Callable[..., jax.Array], ignore: float | None) -> Callable[..., jax.Array]:
    """The loss with the label to ignore bound, if it takes one.

    Args:
      loss: (*arguments, **hyper) -> values.
      ignore: The label; none if None.

    Returns:
      The loss, or a partial application of it.
    """
    takes = ignore is not None and "ignore" in inspect.signature(loss).parameters
    return functools.partial(loss, ignore=ignore) if takes else loss


def ignoring(
    term: Term,
    loss: Callable[..., jax.Array],
    paths: Sequence[str | Sequence[str]],
    ignore: float,
    hyper: Mapping[str, Any],
) -> Term:
    """Leaves out of a term's mean what has the label to ignore; an example counts as long as one of its labels does.

    Args:
      term: The term of the loss, with the label bound.
      loss: The loss without it: (*arguments, **hyper) -> [B, ...], or a scalar if it couples the batch.
      paths: Where each of its arguments comes from.
      ignore: The label to ignore.
      hyper: Its hyper-parameters, or schedules of them.

    Returns:
      A term like it.

    Raises:
      ValueError: If the paths do not tell which field holds the labels.
    """
    field = _field_of_labels(loss, paths)
    numbers = {name: 1.0 if callable(value) else value for name, value in hyper.items()}
    bound = ignoring_loss(loss, ignore)

    def apply(
        variables: Variables, student: Outputs, teacher: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, Metrics]:
        arguments = read_paths(paths, student, teacher, batch)
        rank = len(jax.eval_shape(functools.partial(bound, **numbers), *arguments).shape)
        if rank or bound is loss:
            batch = without_label(batch, field, ignore, rank, fill=bound is loss)
        return term.apply(variables, student, teacher, batch, key, step)

    return term._replace(apply=apply)


def without_label(batch: Batch, field: str, ignore: float, rank: int, *, fill: bool) -> Batch:
    """A batch, and the one that it is a part of, whose mask leaves out what has the label to ignore.

    Args:
      batch: The batch.
      field: Field with the labels.
      ignore: The label to ignore.
      rank: Number of axes of the loss's values, and of the mask.
      fill: Whether the label to ignore becomes 0, for a loss that knows of none to ignore.

    Returns:
      The batch with another `mask`.
    """
    label = jnp.asarray(read_field(batch, field))
    counts = ~is_label(label, ignore)
    counts = jnp.any(counts, axis=tuple(range(max(rank, 1), counts.ndim)))
    changed = with_mask(batch, counts)
    if fill:
        changed[field] = jnp.where(is_label(label, ignore), 0, label).astype(label.dtype)
    if WHOLE in batch:
        whole = batch[WHOLE]
        changed[WHOLE] = whole.replace(batch=without_label(whole.batch, field, ignore, rank, fill=fill))
    return changed


def _field_of_labels(loss: Callable[..., jax.Array], paths: Sequence[str | Sequence[str]]) -> str:
    """The one field of the batch among the paths, or that of the argument `labels`."""
    fields = {i: p.removeprefix("batch.") for i, p in enumerate(paths) if isinstance(p, str) and p.startswith("batch.")}
    names = [*inspect.signature(loss).parameters]
    place = names.index("labels") if "labels" in names else -1
    if place in fields:
        return fields[place]
    if len(fields) == 1:
        return next(iter(fields.values()))
    raise ValueError(
        f"ignore= leaves out the examples with one label, but the paths {list(paths)} read {len(fields)} fields of the "
        "batch: name the argument of the loss that takes the labels `labels`, or mask with `where=`."
    )
