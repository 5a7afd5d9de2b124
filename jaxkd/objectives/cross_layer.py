"""Terms of the methods on several layers of each side: AB, OFD, SemCKD, ReviewKD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd import losses, numerics
from jaxkd.losses.maps import ofd_margin
from jaxkd.objectives import networks
from jaxkd.objectives.networks.core import width_or
from jaxkd.objectives.paths import features_of
from jaxkd.objectives.projections import connector, matched
from jaxkd.objectives.terms import Result, stateful, trained
from jaxkd.types import PyTree, Term, Variables


def ab(*, students: Sequence[str], teachers: Sequence[str], where: str | None = None, **hyper: Any) -> Term:
    """Term of activation boundaries: a trained connector for each layer, then `losses.ab`; couples the batch.

    Args:
      students: Names of the student's maps before the ReLU, in order.
      teachers: Names of the teacher's maps before the ReLU; of each pair the larger is pooled.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.ab`.

    Returns:
      A term whose parameters are a list of `connector`'s.
    """
    project = connector()

    def call(params: PyTree, s: list[jax.Array], t: list[jax.Array], **hyper: Any) -> jax.Array:
        s, t = _match_all(s, t)
        return losses.ab([project.apply(p, x) for p, x in zip(params, s, strict=True)], t, **hyper)

    paths = (features_of("student", students), features_of("teacher", teachers))
    return trained(call, *paths, init=_connectors, hyper_of=losses.ab, where=where, couples=True, **hyper)


def ofd(
    *,
    students: Sequence[str],
    teachers: Sequence[str],
    norms: Sequence[tuple[ArrayLike, ArrayLike]],
    scale: float = 1e-3,
) -> Term:
    """Term of the overhaul of feature distillation: each layer counts twice as much as the one before it.

    scale * sum_i 2^-(n-1-i) ofd(connector_i(s_i), t_i, margin_i)

    Args:
      students: Names of the student's n maps before the ReLU, in order.
      teachers: Names of the teacher's maps before the ReLU; of each pair the larger is pooled.
      norms: Scale and bias [C] of the teacher's batch norm before each of those ReLUs, from which the margins follow.
      scale: Factor of the sum; the authors have 1/1000 on CIFAR-100 and 1/10000 on ImageNet.

    Returns:
      A term whose parameters are a list of `connector`'s and whose state holds `scale` and `margins`.
    """
    project, n = connector(), len(students)
    _check_counts(students, teachers, norms)

    def init(key: jax.Array, s: list[Any], t: list[Any]) -> Variables:
        margins = [ofd_margin(*norm) for norm in norms]
        return Variables(_connectors(key, s, t), {"margins": margins})

    def call(
        variables: Variables, key: jax.Array, s: list[jax.Array], t: list[jax.Array], *, scale: ArrayLike = 1e-3
    ) -> Result:
        params, state = variables
        layers = zip(params, *_match_all(s, t), state["margins"], strict=True)
        each = [losses.ofd(project.apply(p, a), b, m) * 2.0 ** (i + 1 - n) for i, (p, a, b, m) in enumerate(layers)]
        return jnp.asarray(scale, each[0].dtype) * jnp.sum(jnp.stack(each), axis=0), {}, {}

    paths = (features_of("student", students), features_of("teacher", teachers))
    return stateful(call, *paths, init=init, couples=True, scale=scale)


def semckd(*, students: Sequence[str], teachers: Sequence[str], where: str | None = None, **hyper: Any) -> Term:
    """Term of SemCKD: each student layer attends to the teacher's layers and is projected onto each of them.

    The queries and keys are made from similarities within the batch, so the batch size is fixed (and at least 4) and
    the term couples the batch.

    Args:
      students: Names of the student's maps.
      teachers: Names of the teacher's maps; of each pair the larger is pooled.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.semckd`.

    Returns:
      A term with parameters `queries`, `keys` (one per layer) and `projections` (one per pair of layers).
    """

    project = networks.bottleneck()

    def init(key: jax.Array, s: list[Any], t: list[Any]) -> PyTree:
        kq, kk, kp = jax.random.split(key, 3)
        pairs = [(a.shape, b.shape) for a in s for b in t]
        made = [project.init(k, *pair) for k, pair in zip(jax.random.split(kp, len(pairs)), pairs, strict=True)]
        return {
            "queries": _embeddings(kq, s),
            "keys": _embeddings(kk, t),
            "projections": [made[i * len(t) : (i + 1) * len(t)] for i in range(len(s))],
        }

    def call(params: PyTree, s: list[jax.Array], t: list[jax.Array], **hyper: Any) -> jax.Array:
        queries, keys = _embed(params["queries"], s), _embed(params["keys"], t)

        def pair(projection: PyTree, a: jax.Array, b: jax.Array) -> jax.Array:
            a, b = numerics.match_resolution(a, b)
            return losses.hint(project.apply(projection, a), b)

        rows = [
            jnp.stack([pair(p, a, b) for p, b in zip(row, t, strict=True)], axis=1)
            for row, a in zip(params["projections"], s, strict=True)
        ]
        return losses.semckd(queries, keys, jnp.stack(rows, axis=1), **hyper)

    paths = (features_of("student", students), features_of("teacher", teachers))
    return trained(call, *paths, init=init, hyper_of=losses.semckd, where=where, couples=True, **hyper)


def review(
    *,
    students: Sequence[str],
    teachers: Sequence[str],
    middle: int | None = None,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of ReviewKD: attention fuses each stage of the student with the deeper ones, the deepest first.

    sum_i review_hcl(fusion_i, t_i)

    Args:
      students: Names of the student's maps, shallow first; a vector [B, C], such as `pooled`, is a map of one pixel.
      teachers: Names of the teacher's maps, one for each of the student's; of each pair the larger is pooled.
      middle: Channels of the fusion; those of the student's deepest map, at most 512, if None.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.review_hcl`.

    Returns:
      A term whose parameters are a list of those of `networks.fusion`. Batch norm couples the batch.
    """

    def init(key: jax.Array, s: list[Any], t: list[Any]) -> PyTree:
        if len(s) != len(t):
            raise ValueError(f"review compares stages in pairs, not {len(s)} with {len(t)}: give as many of each.")
        width = width_or(middle, min(512, s[-1].shape[-1]), "middle")
        stages = zip(jax.random.split(key, len(s)), s, t, strict=True)
        return [
            networks.fusion(middle=width, attention=i < len(s) - 1).init(k, a.shape, b.shape)
            for i, (k, a, b) in enumerate(stages)
        ]

    def call(params: PyTree, s: list[jax.Array], t: list[jax.Array], **hyper: Any) -> jax.Array:
        fusion, total, residual = networks.fusion(), jnp.zeros(()), None
        s, t = ([x if x.ndim > 2 else x[:, None, None] for x in side] for side in (s, t))
        for own, a, b in reversed(list(zip(params, s, t, strict=True))):
            made, residual = fusion.apply(own, a, residual)
            total = total + losses.review_hcl(*numerics.match_resolution(made, b), **hyper)
        return total

    paths = (features_of("student", students), features_of("teacher", teachers))
    return trained(call, *paths, init=init, hyper_of=losses.review_hcl, where=where, couples=True, **hyper)


def _embeddings(key: jax.Array, layers: Sequence[Any]) -> list[PyTree]:
    """Parameters of one `networks.embedding` for each layer."""
    keys = jax.random.split(key, len(layers))
    return [networks.embedding().init(k, x.shape, x.shape) for k, x in zip(keys, layers, strict=True)]


def _embed(params: Sequence[PyTree], features: Sequence[jax.Array]) -> jax.Array:
    """Queries or keys of all layers, [B, layers, d]."""
    each = [networks.embedding().apply(p, x) for p, x in zip(params, features, strict=True)]
    return jnp.stack(each, axis=1)


def _connectors(key: jax.Array, students: Sequence[Any], teachers: Sequence[Any]) -> list[PyTree]:
    """Parameters of a connector for each pair of layers."""
    _check_counts(students, teachers)
    pairs = zip(jax.random.split(key, len(students)), students, teachers, strict=True)
    return [connector().init(k, *matched(s, t)) for k, s, t in pairs]


def _match_all(students: Sequence[jax.Array], teachers: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    """The maps after `match_resolution`, pair by pair."""
    pairs = [numerics.match_resolution(s, t) for s, t in zip(students, teachers, strict=True)]
    return [s for s, _ in pairs], [t for _, t in pairs]


def _check_counts(students: Sequence[Any], teachers: Sequence[Any], *others: Sequence[Any]) -> None:
    counts = [len(x) for x in (students, teachers, *others)]
    if len(set(counts)) > 1 or not counts[0]:
        raise ValueError(
            f"this term compares layers in pairs but was given {counts[0]} of the student and {counts[1:]} of the "
            "rest: give as many of each, at least one."
        )
