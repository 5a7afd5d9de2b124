"""Outputs of a teacher reduced to the top k classes and the mass of the others, as a cache keeps them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables

KEPT = ("top_ids", "top_logprobs", "top_tail")
"""Names of the reduced outputs, as features of a teacher and as fields of a batch."""


def keep_top_k(logits: ArrayLike, k: int) -> dict[str, jax.Array]:
    """Top k classes, their log-probabilities over all classes, and the exact mass of the others.

    l = log softmax(z),  tail = log sum_{i not kept} exp l_i, summed over the classes themselves, not as a complement

    Args:
      logits: [..., K] floating.
      k: How many are kept, 1..K.

    Returns:
      `top_ids` int32 [..., k], `top_logprobs` [..., k] in descending order and `top_tail` [...], -inf if k = K, in at
      least float32, as `losses.topk_kl_tail_bucket` takes them.

    Raises:
      ValueError: If there are fewer than k classes.
    """
    (z,) = numerics.promote(logits)
    if not 1 <= k <= z.shape[-1]:
        raise ValueError(f"the top {k} of {z.shape[-1]} classes were asked for: give 1..{z.shape[-1]}.")
    log_p = numerics.log_softmax(z)
    kept, ids = jax.lax.top_k(log_p, k)
    others = jnp.put_along_axis(log_p, ids, -jnp.inf, axis=-1, inplace=False)
    return dict(zip(KEPT, (ids, kept, jax.nn.logsumexp(others, axis=-1)), strict=True))


def spread_tail(kept: Mapping[str, ArrayLike], num_classes: int) -> jax.Array:
    """Logits of all classes, in which the mass of the tail is spread evenly over the classes that were not kept.

    Args:
      kept: Result of `keep_top_k`; the log-probabilities may have been rounded. An entry of -inf is padding, whatever
        its id, as in `losses.top_k`.
      num_classes: K.

    Returns:
      [..., K], at least float32: log-probabilities up to rounding; NaN in rows with a class outside 0..K-1, which are
      those of a teacher with more classes.

    Raises:
      ValueError: If more classes are kept than there are, or the entries have different shapes.
    """
    kinds = {name: jnp.shape(kept[name]) for name in KEPT}
    if kinds["top_ids"] != kinds["top_logprobs"] or kinds["top_ids"][-1] > num_classes:
        raise ValueError(
            f"the top k have shapes {kinds} but {num_classes} classes were given: give the number of classes of the "
            "teacher whose outputs they are."
        )
    given, (logprobs, tail) = (
        jnp.asarray(kept["top_ids"]).astype(jnp.int32),
        numerics.promote(kept["top_logprobs"], kept["top_tail"]),
    )
    present = ~jnp.isneginf(logprobs)
    ids = jnp.where(present, given, num_classes)  # padding stays in the tail
    others = jnp.maximum(1, num_classes - jnp.sum(present, axis=-1, dtype=jnp.int32)).astype(tail.dtype)
    spread = jnp.broadcast_to((tail - jnp.log(others))[..., None], (*tail.shape, num_classes))
    spread = jnp.put_along_axis(spread, ids, logprobs, axis=-1, inplace=False, mode="drop")
    fits = jnp.all(~present | ((given >= 0) & (given < num_classes)), axis=-1, keepdims=True)
    return jnp.where(fits, spread, jnp.nan)


def top_k(model: Model, k: int) -> Model:
    """Model whose logits are reduced to the top k and the mass of the others, in float32.

    A cache holds the same with l rounded to float16, which changes each by at most 2^-11 |l| + 2^-25.

    Args:
      model: A teacher.
      k: How many classes are kept, 1..K.

    Returns:
      A model with the same variables, whose logits are those of `spread_tail`, and whose features hold the reduced
      outputs under their names as well.
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key, train)
        kept = keep_top_k(outputs.logits, k)
        logits = spread_tail(kept, outputs.logits.shape[-1])
        return Outputs(logits, {**outputs.features, **kept}, outputs.head), state

    return Model(model.init, apply)
