"""Terms across layers: SemCKD's attention over all pairs of them, ReviewKD's fusion of deeper into shallower ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses, numerics
from jaxkd.objectives import networks
from jaxkd.objectives.maps import bottleneck
from jaxkd.objectives.projections import conv_kernel, dense_params, norm_params
from jaxkd.objectives.terms import features_of, trained
from jaxkd.types import PyTree, Term

_EMBEDDING = ("kernel1", "bias1", "kernel2", "bias2")


def semckd(*, students: Sequence[str], teachers: Sequence[str], where: str | None = None, **hyper: Any) -> Term:
    """Term of SemCKD: each student layer attends to the teacher's layers and follows them through projections.

    The queries and keys are made from similarities within the batch, so the batch size is fixed (and at least 4) and
    the term couples the batch.

    Args:
      students: Names of the student's maps.
      teachers: Names of the teacher's maps; of each pair the larger is pooled.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.semckd`.

    Returns:
      A term with parameters `queries`, `keys` (one a layer) and `projections` (one a pair of layers).
    """

    def init(key: jax.Array, s: list[Any], t: list[Any]) -> PyTree:
        kq, kk, kp = jax.random.split(key, 3)
        size = len(s[0])
        pairs = [(a.shape[-1], b.shape[-1]) for a in s for b in t]
        made = [bottleneck(k, a, 2 * b, b) for k, (a, b) in zip(jax.random.split(kp, len(pairs)), pairs, strict=True)]
        return {
            "queries": [_embedding(k, size) for k in jax.random.split(kq, len(s))],
            "keys": [_embedding(k, size) for k in jax.random.split(kk, len(t))],
            "projections": [made[i * len(t) : (i + 1) * len(t)] for i in range(len(s))],
        }

    def call(params: PyTree, s: list[jax.Array], t: list[jax.Array], **hyper: Any) -> jax.Array:
        queries, keys = _embed(params["queries"], s), _embed(params["keys"], t)

        def pair(projection: PyTree, a: jax.Array, b: jax.Array) -> jax.Array:
            a, b = numerics.match_resolution(a, b)
            return losses.hint(networks.semckd_regressor(a, **projection), b)

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
    """Term of ReviewKD: from the deepest stage to the shallowest, attention fuses each with what the deeper ones left.

    sum_i review_hcl(fusion_i, t_i)

    Args:
      students: Names of the student's maps, shallow first; a vector [B, C], such as `pooled`, is a map of one pixel.
      teachers: Names of the teacher's maps, one for each of the student's; of each pair the larger is pooled.
      middle: Channels of the fusion; those of the student's deepest map, at most 512, if None.
      where: Field of the batch [B] with the examples' weights; all of them if None.
      **hyper: Hyper-parameters of `losses.review_hcl`.

    Returns:
      A term whose parameters are a list of fusions. Batch norm couples the batch.
    """

    def init(key: jax.Array, s: list[Any], t: list[Any]) -> PyTree:
        if len(s) != len(t):
            raise ValueError(f"review compares stages in pairs, not {len(s)} with {len(t)}: give as many of each.")
        width = middle or min(512, s[-1].shape[-1])
        keys = jax.random.split(key, len(s))
        last = len(s) - 1
        sizes = [(a.shape[-1], width, b.shape[-1], i < last) for i, (a, b) in enumerate(zip(s, t, strict=True))]
        return [_fusion(k, *size) for k, size in zip(keys, sizes, strict=True)]

    def call(params: PyTree, s: list[jax.Array], t: list[jax.Array], **hyper: Any) -> jax.Array:
        total, residual = jnp.zeros(()), None
        s, t = ([x if x.ndim > 2 else x[:, None, None] for x in side] for side in (s, t))
        for fusion, a, b in reversed(list(zip(params, s, t, strict=True))):
            made, residual = networks.review_fusion(a, residual, **fusion)
            total = total + losses.review_hcl(*numerics.match_resolution(made, b), **hyper)
        return total

    paths = (features_of("student", students), features_of("teacher", teachers))
    return trained(call, *paths, init=init, hyper_of=losses.review_hcl, where=where, couples=True, **hyper)


def _embedding(key: jax.Array, batch: int) -> PyTree:
    """Parameters of SemCKD's queries and keys: from the B similarities of a row through B/2 to B/4."""
    if batch < 4:
        raise ValueError(f"SemCKD makes its attention from similarities within the batch, and {batch} are too few: 4.")
    first, second = jax.random.split(key)
    one, two = dense_params(first, batch, 2 * (batch // 4)), dense_params(second, 2 * (batch // 4), batch // 4)
    return dict(zip(_EMBEDDING, (one["kernel"], one["bias"], two["kernel"], two["bias"]), strict=True))


def _embed(params: Sequence[PyTree], features: Sequence[jax.Array]) -> jax.Array:
    """[B, layers, d]."""
    each = [networks.semckd_embedding(x, **p) for p, x in zip(params, features, strict=True)]
    return jnp.stack(each, axis=1)


def _fusion(key: jax.Array, inputs: int, middle: int, outputs: int, fuses: bool) -> PyTree:
    """Parameters of one `networks.review_fusion`; the deepest stage has no attention."""
    keys = jax.random.split(key, 3)
    params = {"kernel1": conv_kernel(keys[0], 1, inputs, middle), "kernel2": conv_kernel(keys[1], 3, middle, outputs)}
    params |= {f"{n}{i}": v for i, c in ((1, middle), (2, outputs)) for n, v in norm_params(c).items()}
    if not fuses:
        return params
    return {**params, "attention_kernel": conv_kernel(keys[2], 1, 2 * middle, 2), "attention_bias": jnp.zeros(2)}
