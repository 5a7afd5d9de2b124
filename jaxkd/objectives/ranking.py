"""Terms of recommenders: distillation experts on vectors, and rankings of which a part is drawn in each step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses, numerics
from jaxkd.keys import fold_name
from jaxkd.objectives.hyper import Number
from jaxkd.objectives.networks.experts import experts
from jaxkd.objectives.terms import stateful
from jaxkd.types import Term, Variables


def distillation_experts(
    *, student: str = "user", teacher: str = "user", count: int = 5, tau: Number = 1.0, where: str | None = None
) -> Term:
    """Term of DE: experts rebuild the teacher's vectors from the student's, each of them those of a kind.

    || h_t - sum_m s_m E_m(h_s) ||^2, a sum over the elements

    Experts and selector are trained with the student, and left behind after the training. The paper's tau falls from
    1 to 1e-10 over the training as tau_0 (tau_P / tau_0)^(p / P): give a schedule.

    Args:
      student: Name of the student's feature [B, Ds].
      teacher: Name of the teacher's feature [B, Dt].
      count: Number of experts.
      tau: Temperature of the selection, > 0, a number or a schedule of the step; smaller, and one expert has a row
        alone.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.

    Returns:
      A term whose parameters are those of `objectives.networks.experts`.

    Raises:
      ValueError: If there is no expert.

    Reference:
      Kang, Hwang, Kweon, Yu, "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020,
      https://arxiv.org/abs/2012.04357
    """
    network = experts(count)

    def init(key: jax.Array, s: Any, t: Any) -> Variables:
        if len(s.shape) != 2 or len(t.shape) != 2:
            raise ValueError(
                f"the features {student!r} and {teacher!r} have shapes {s.shape} and {t.shape}: give vectors [B, D]."
            )
        return Variables(network.init(key, s.shape, t.shape), {})

    def call(
        variables: Variables, key: jax.Array, s: jax.Array, t: jax.Array, *, tau: jax.Array
    ) -> tuple[jax.Array, dict, dict]:
        (wanted,) = numerics.promote(t)
        rebuilt = network.apply(variables.params, s, t, tau, key)
        return jnp.sum(jnp.square(rebuilt - wanted), axis=-1), {}, {}

    paths = (f"student.{student}", f"teacher.{teacher}")
    return stateful(call, *paths, init=init, where=where, tau=tau)


def rrd(
    *, ranking: str = "ranking", seen: str = "seen", keep: int = 30, decay: Number = 10.0, where: str | None = None
) -> Term:
    """Term of RRD: in each step some of a teacher's best items in its order, above all others in no order.

    The interesting items are drawn without replacement, an item at place r with probability in proportion to
    exp(-r / decay). All other items that were not seen are uninteresting; the paper draws a sample of those too.

    Args:
      ranking: Field of the batch with the teacher's best items among those not seen, integers [B, R], -1 for none.
      seen: Field of the batch with the items that are no candidates, [B, I], 1 for those.
      keep: K, interesting items that are drawn; at most R.
      decay: T of the paper, > 0, a number or a schedule: larger, and later places are drawn more often.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.

    Returns:
      A term without parameters.

    Raises:
      ValueError: When it is made or first used, if fewer than one item or more than there are is to be drawn.

    Reference:
      Kang, Hwang, Kweon, Yu, "DE-RRD: A Knowledge Distillation Framework for Recommender System", CIKM 2020,
      https://arxiv.org/abs/2012.04357
    """

    def init(key: jax.Array, logits: Any, ids: Any, seen: Any) -> Variables:
        if not 1 <= keep <= ids.shape[-1]:
            raise ValueError(f"{keep} items of rankings of {ids.shape[-1]} are to be drawn: give 1..{ids.shape[-1]}.")
        return Variables({}, {})

    def call(
        variables: Variables, key: jax.Array, logits: jax.Array, ids: jax.Array, seen: jax.Array, *, decay: jax.Array
    ) -> tuple[jax.Array, dict, dict]:
        drawn = draw_places(fold_name(key, "interesting"), ids, keep, decay)
        unranked = ~jnp.asarray(seen).astype(bool)
        return losses.relaxed_ranking_distillation(logits, drawn, unranked), {}, {}

    paths = ("student.logits", f"batch.{ranking}", f"batch.{seen}")
    return stateful(call, *paths, init=init, where=where, decay=decay)


def draw_places(key: jax.Array, ranking: jax.Array, keep: int, decay: jax.Array | float) -> jax.Array:
    """Items drawn from rankings without replacement, in the order of the rankings.

    Args:
      key: Typed PRNG key [].
      ranking: Numbers of items, the best first, integers [B, R]; -1 for none.
      keep: K, how many are drawn, at most R.
      decay: Place r is drawn in proportion to exp(-r / decay).

    Returns:
      [B, K], -1 where a ranking has fewer.
    """
    places = jnp.arange(ranking.shape[-1], dtype=jnp.float32)[None]
    scores = -places / jnp.asarray(decay, jnp.float32) + jax.random.gumbel(key, ranking.shape)
    _, chosen = jax.lax.top_k(jnp.where(ranking >= 0, scores, -jnp.inf), keep)
    return jnp.take_along_axis(ranking, jnp.sort(chosen, axis=-1), axis=-1)
