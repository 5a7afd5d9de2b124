"""Metrics of recommenders: places of held-out items in the full ranking of all items but those of the training.

A batch has `label`, int [B] or [B, H]: the numbers of each user's held-out items, -1 where there are fewer; and `seen`,
[B, I], 1 for the items of the user that were trained on, which are ranked nowhere; without it all items are ranked.
The place of a held-out item is counted pessimistically: an item with an equal score that is not held out stands above
it, so that a constant score earns nothing. Of equal held-out items the first stands above. Users without a held-out
item are left out; a number of no item gives NaN. Full rankings are meant: places among sampled items are another,
inconsistent measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.metrics.accumulators import Mean, weights_of
from jaxkd.types import Batch, Metric, Outputs


class _Placed(NamedTuple):
    """Places of held-out items in a ranking, from 0, and which there are, [B, H]; users with a wrong item, [B]."""

    place: jax.Array
    real: jax.Array
    wrong: jax.Array

    @property
    def number(self) -> jax.Array:
        """Number of held-out items of each user, [B]."""
        return jnp.sum(self.real, axis=-1)


def hit_rate(k: int) -> Metric:
    """HR@k: fraction of the users of whom at least one held-out item is among the first k.

    Args:
      k: Number of places that count.

    Returns:
      A metric, Mean in 0..1.

    Raises:
      ValueError: If k is not at least 1.
    """
    _check_places(k)
    return _metric(lambda at: jnp.any(_within(at, k), axis=-1))


def recall(k: int) -> Metric:
    """Recall@k: fraction of a user's held-out items that are among the first k, averaged over the users.

    hits / H, not hits / min(H, k); with one held-out item it is HR@k.

    Args:
      k: Number of places that count.

    Returns:
      A metric, Mean in 0..1.

    Raises:
      ValueError: If k is not at least 1.
    """
    _check_places(k)
    return _metric(lambda at: jnp.sum(_within(at, k), axis=-1) / jnp.maximum(at.number, 1))


def ndcg(k: int) -> Metric:
    """NDCG@k: gains of held-out items, discounted by their places, over those of the best order.

    sum_{hits} 1 / log2(place + 2) / sum_{i=0..min(H, k)-1} 1 / log2(i + 2),  places counted from 0

    Args:
      k: Number of places that count.

    Returns:
      A metric, Mean in 0..1.

    Raises:
      ValueError: If k is not at least 1.

    Reference:
      Järvelin, Kekäläinen, "Cumulated Gain-based Evaluation of IR Techniques", ACM TOIS 2002,
      https://doi.org/10.1145/582415.582418
    """
    _check_places(k)

    def value(at: _Placed) -> jax.Array:
        gained = jnp.sum(jnp.where(_within(at, k), _gain(at.place), 0), axis=-1)
        order = jnp.arange(min(k, at.place.shape[-1]))[None]
        best = jnp.sum(jnp.where(order < at.number[:, None], _gain(order), 0), axis=-1)
        return gained / jnp.where(best > 0, best, 1)

    return _metric(value)


def mrr(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Mean reciprocal rank of a user's first held-out item in the whole ranking.

    Args:
      student: Outputs with logits [B, I].
      teacher: Not used.
      batch: See the module.

    Returns:
      Mean in 0..1.
    """
    return _metric(lambda at: 1 / (1 + jnp.min(jnp.where(at.real, at.place, jnp.inf), axis=-1)))(
        student, teacher, batch
    )


def _metric(value: Callable[[_Placed], jax.Array]) -> Metric:
    """Metric of a value of each user, [B], averaged over those with a held-out item; NaN where logits or items are."""

    def measure(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
        (z,) = numerics.promote(student.logits)
        at = _places(z, batch)
        counts = jnp.where((at.number > 0) | at.wrong, weights_of(at.number.astype(jnp.float32), batch), 0)
        each = jnp.where(jnp.any(jnp.isnan(z), axis=-1) | at.wrong, jnp.nan, value(at).astype(jnp.float32))
        return Mean(jnp.sum(jnp.where(counts > 0, each, 0) * counts), jnp.sum(counts))

    return measure


def _places(z: jax.Array, batch: Batch) -> _Placed:
    """Places of the held-out items in the ranking of the items that were not seen."""
    if "label" not in batch:
        raise ValueError(f"the batch has no 'label', only {sorted(batch)}: give the numbers of held-out items.")
    held = jnp.asarray(batch["label"])
    held = held[:, None] if held.ndim == 1 else held
    if z.ndim != 2 or held.shape[:1] != z.shape[:1] or not jnp.issubdtype(held.dtype, jnp.integer):
        raise ValueError(
            f"held-out items have shape {jnp.shape(batch['label'])} and dtype {held.dtype} but logits {z.shape}: give "
            "logits [B, I] and integers [B] or [B, H]."
        )
    seen = jnp.zeros(z.shape, bool) if "seen" not in batch else jnp.asarray(batch["seen"]).astype(bool)
    if seen.shape != z.shape:
        raise ValueError(f"`seen` has shape {seen.shape} but logits {z.shape}: give one value for each item.")
    real = (held >= 0) & (held < z.shape[-1])
    at = jnp.where(real, held, 0)
    own = jnp.take_along_axis(z, at, axis=-1)
    ranked = real & ~jnp.take_along_axis(seen, at, axis=-1)
    nowhere = jnp.where(real, held, z.shape[-1])
    others = ~jnp.put_along_axis(seen, nowhere, True, axis=-1, inplace=False, mode="drop")
    above = jnp.sum(others[:, None] & (z[:, None] >= own[..., None]), axis=-1)
    first = jnp.arange(held.shape[-1])[:, None] > jnp.arange(held.shape[-1])[None]
    better = (own[:, None] > own[..., None]) | (first[None] & (own[:, None] == own[..., None]))
    above += jnp.sum(better & ranked[:, None], axis=-1)
    wrong = jnp.any((held < -1) | (held >= z.shape[-1]), axis=-1)
    return _Placed(jnp.where(ranked, above.astype(jnp.float32), jnp.inf), real, wrong)


def _within(at: _Placed, k: int) -> jax.Array:
    """Booleans [B, H], true for held-out items among the first k."""
    return at.real & (at.place < k)


def _check_places(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"the first {k!r} places were asked for: give an integer of at least 1.")


def _gain(place: jax.Array) -> jax.Array:
    return 1 / jnp.log2(place.astype(jnp.float32) + 2)


RANKING: Mapping[str, Metric] = {"hit_rate": hit_rate(10), "ndcg": ndcg(10), "mrr": mrr}
"""Metrics of a recommender: HR@10, NDCG@10, MRR."""
