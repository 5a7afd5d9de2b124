"""Span F1: named entities of which first word, last word and type are all right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.data.tags import Tags, read_tags
from jaxkd.labels import check_labels, label_field
from jaxkd.metrics.accumulators import module_of, ratio, weights_of
from jaxkd.types import Batch, Metric, Outputs


class SpanF1(NamedTuple):
    """Accumulator of the span F1: three counts for each type of entity.

    Attributes:
      hits: Number of predicted entities that the labels have too, [..., T].
      predicted: Number of predicted entities, [..., T].
      labelled: Number of entities in the labels, [..., T].
    """

    hits: jax.Array
    predicted: jax.Array
    labelled: jax.Array

    def value(self) -> Any:
        """F1 of all entities together (micro), 2 hits / (predicted + labelled); 0 if there is none.

        Returns:
          Scalar in 0..1, or [S] for stacked students.
        """
        hits, predicted, labelled = self._totals()
        return ratio(2 * hits, predicted + labelled)

    def precision(self) -> Any:
        """Fraction of the predicted entities that are right, a scalar in 0..1, or [S] for stacked students."""
        hits, predicted, _ = self._totals()
        return ratio(hits, predicted)

    def recall(self) -> Any:
        """Fraction of the labelled entities that are found, a scalar in 0..1, or [S] for stacked students."""
        hits, _, labelled = self._totals()
        return ratio(hits, labelled)

    def per_type(self) -> Any:
        """F1 of each type of entity, [..., T] in 0..1; 0 for types that do not occur."""
        hits, predicted, labelled = map(module_of(*self).asarray, self)
        return ratio(2 * hits, predicted + labelled)

    def _totals(self) -> tuple[Any, ...]:
        return tuple(module_of(*self).sum(x, axis=-1) for x in self)


def span_f1(tags: Sequence[str]) -> Metric:
    """Metric of named entities: F1 of those that are right in first word, last word and type.

    Words are the positions that the mask keeps: what it leaves out, such as the further tokens of a word, lies
    within or between entities without ending them. Sequences that no scheme allows are read by the rule of
    `data.entities_of`.

    `metrics.ignoring({"span_f1": metrics.span_f1(tags)}, -100)`

    Args:
      tags: Name of each class of the logits, such as `data.tag_names` gives, [K].

    Returns:
      A metric of logits [B, L, K] and the field `label`, integers [B, L]: the counts of each type, in the order of
      `data.read_tags(tags).types`.

    Raises:
      ValueError: If a name is no tag.

    Reference:
      Tjong Kim Sang, De Meulder, "Introduction to the CoNLL-2003 Shared Task: Language-Independent Named Entity
      Recognition", CoNLL 2003, https://aclanthology.org/W03-0419
    """
    parts = read_tags(tags)

    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> SpanF1:
        z = jnp.asarray(student.logits)
        if z.ndim != 3 or z.shape[-1] != len(tags):
            raise ValueError(
                f"logits have shape {z.shape} but there are {len(tags)} tags: give logits [B, L, {len(tags)}], one row "
                "for each token."
            )
        label = check_labels(z, label_field(batch))
        counts = weights_of(label.values.astype(jnp.float32), batch) > 0
        said, true = (_spans(tag, counts, parts) for tag in (jnp.argmax(z, axis=-1), label.values))
        hit = said.starts & true.starts & (said.kind == true.kind) & (said.end == true.end)
        unknown = jnp.any(counts & ~label.valid)

        def count(starts: jax.Array, kind: jax.Array) -> jax.Array:
            of_types = jax.nn.one_hot(jnp.where(starts, kind, -1), len(parts.types))
            return jnp.where(unknown, jnp.nan, of_types.sum(axis=(0, 1)))

        return SpanF1(count(hit, said.kind), count(said.starts, said.kind), count(true.starts, true.kind))

    return measure


class _Spans(NamedTuple):
    """Where entities start, and of what begins there its type and the position of its last word, each [B, L]."""

    starts: jax.Array
    kind: jax.Array
    end: jax.Array


def _spans(tag: jax.Array, counts: jax.Array, parts: Tags) -> _Spans:
    """Entities of tags [B, L], of which those count that `counts` says."""
    length = tag.shape[-1]
    place = jnp.broadcast_to(jnp.arange(length), tag.shape)
    kind = jnp.where(counts, jnp.asarray(parts.kind)[tag], -1)
    begins, ends = (jnp.asarray(flags)[tag] for flags in (parts.begins, parts.ends))

    def beside(values: jax.Array, places: jax.Array, outside: Any) -> jax.Array:
        found = jnp.take_along_axis(values, jnp.clip(places, 0, length - 1), axis=-1)
        return jnp.where((places >= 0) & (places < length), found, outside)

    # The word before and the one after each position, past what does not count; -1 and `length` if there is none.
    before = jax.lax.cummax(jnp.where(counts, place, -1), axis=1)
    before = jnp.concatenate([jnp.full_like(before[:, :1], -1), before[:, :-1]], axis=1)
    after = jax.lax.cummin(jnp.where(counts, place, length), axis=1, reverse=True)
    after = jnp.concatenate([after[:, 1:], jnp.full_like(after[:, :1], length)], axis=1)
    starts = (kind >= 0) & (begins | (beside(kind, before, -1) != kind) | beside(ends, before, False))
    goes_on = (beside(kind, after, -1) >= 0) & ~beside(starts, after, True)
    last = (kind >= 0) & ~goes_on
    return _Spans(starts, kind, jax.lax.cummin(jnp.where(last, place, length), axis=1, reverse=True))
