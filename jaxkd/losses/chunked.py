"""Losses on hidden states and output heads, computed without all logits in memory."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.kernels.vocabulary import Pulled, pull
from jaxkd.losses.logits import kd
from jaxkd.losses.sequence import LogitsLoss, check_mask
from jaxkd.testing import (
    COUPLED,
    DISTANCE,
    Draw,
    declare,
)
from jaxkd.types import PyTree

__all__ = ["chunked_kl"]


def _hidden(draw: Draw) -> dict[str, np.ndarray]:
    """Hidden states of both sides, and the mask of their tokens."""
    return {"student_hidden": draw.tokens(), "teacher_hidden": draw.tokens(), "mask": draw.mask()}


def _heads(draw: Draw) -> dict[str, np.ndarray]:
    """One head for both sides, so that equal hidden states give equal logits."""
    head = draw.normal(draw.sizes.width, draw.sizes.vocabulary)
    return {"student_head": head, "teacher_head": head}


@declare(_hidden, (*COUPLED, *DISTANCE), fixed=_heads, kinds={"mask": "other"}, needs="texts")
def chunked_kl(
    student_hidden: ArrayLike,
    teacher_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_head: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    chunk: int | None = None,
) -> jax.Array:
    """`masked_token_kl` from hidden states, one chunk of tokens at a time; the number of tokens couples the batch.

    T^2 * sum_n mask_n KL(softmax(z_t / T) || softmax(z_s / T))_n / sum_n mask_n,  z = h W + b

    See `chunked_loss` for the method and its costs.

    Args:
      student_hidden: [..., D_s] floating, the tokens' last hidden states.
      teacher_hidden: [..., D_t] floating, with the same leading axes.
      student_head: [D_s, K], the student's output matrix; the transposed embedding if they are tied.
      teacher_head: [D_t, K].
      temperature: T > 0, a scalar or an array over leading axes.
      mask: Booleans or non-negative weights over the leading axes, or None.
      student_bias: [K] or None.
      teacher_bias: [K] or None.
      chunk: Tokens whose logits are in memory at a time; if None, a power of two from 64 to 1024, about a twelfth of
        the tokens.

    Returns:
      Scalar in nats, times T^2; 0 where no token is valid.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NeurIPS 2014 Deep Learning Workshop,
      https://arxiv.org/abs/1503.02531
    """
    return chunked_loss(
        kd,
        student_hidden,
        teacher_hidden,
        student_head,
        teacher_head,
        mask=mask,
        student_bias=student_bias,
        teacher_bias=teacher_bias,
        chunk=chunk,
        temperature=temperature,
    )


def chunked_loss(
    loss: LogitsLoss,
    student_hidden: ArrayLike,
    teacher_hidden: ArrayLike,
    student_head: ArrayLike,
    teacher_head: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    chunk: int | None = None,
    **hyper: ArrayLike,
) -> jax.Array:
    """Mean of a loss on logits over the valid tokens, without all logits in memory; their number couples the batch.

    sum_n mask_n loss(h_s W_s + b_s, h_t W_t + b_t)_n / sum_n mask_n

    The tokens are processed in chunks. The result is one scalar, so a chunk's gradient is known up to a common factor
    as soon as its logits are. A differentiated call therefore sums gradients in its forward pass, and computes no
    logits twice. It takes as many matrix products as the dense loss, and the memory of the gradients and of one chunk.
    Inputs that are not differentiated (a frozen teacher, a frozen head) cost nothing, and a call outside `jax.grad`
    computes no gradient. Gradients are exact, for the teacher's side and the hyper-parameters too. Forward-mode
    differentiation (`jax.jvp`) is not supported.

    Args:
      loss: (student_logits [N, K], teacher_logits [N, K], **hyper) -> [N], one of `losses.logits` that keeps leading
        axes; variables that it closes over must not be traced.
      student_hidden: [..., D_s] floating, the tokens' last hidden states.
      teacher_hidden: [..., D_t] floating, with the same leading axes.
      student_head: [D_s, K], the student's output matrix; the transposed embedding if they are tied.
      teacher_head: [D_t, K].
      mask: Booleans or non-negative weights over the leading axes, or None.
      student_bias: [K] or None.
      teacher_bias: [K] or None.
      chunk: Tokens whose logits are in memory at a time; if None, a power of two from 64 to 1024, about a twelfth of
        the tokens.
      **hyper: Hyper-parameters of the loss: scalars, or arrays over leading axes.

    Returns:
      Scalar, computed in at least float32; 0 where no token is valid.

    Raises:
      ValueError: If the shapes do not fit.
    """
    biases = [b for b in (student_bias, teacher_bias) if b is not None]
    hs, ht, ws, wt, *rest = numerics.promote(student_hidden, teacher_hidden, student_head, teacher_head, *biases)
    heads = (
        _Head(ws, None if student_bias is None else rest[0]),
        _Head(wt, None if teacher_bias is None else rest[-1]),
    )
    lead = hs.shape[:-1]
    _check_heads((hs, ht), heads)
    if mask is not None:
        check_mask(mask, lead)
    weight = jnp.ones(lead, hs.dtype) if mask is None else jnp.asarray(mask).astype(hs.dtype)
    total = jnp.sum(weight)
    hidden = numerics.masked(weight, hs, ht)
    numbers = {name: jnp.asarray(value, hs.dtype) for name, value in hyper.items()}
    scalars = {name: v for name, v in numbers.items() if v.ndim == 0}
    arrays = {name: jnp.broadcast_to(numerics.per_example(v, weight), lead) for name, v in numbers.items() if v.ndim}
    cut = _cutter(lead, chunk)
    weight = cut(weight / jnp.where(total > 0, total, 1))
    # Padded with numbers that there are, since a temperature of 0 would turn the padding's gradient into NaN.
    tokens = _Tokens(tuple(map(cut, hidden)), weight, {n: cut(v, "edge") for n, v in arrays.items()})
    return _walk(loss, tokens, _Shared(heads, scalars))


class _Head(NamedTuple):
    """Output matrix [D, K] and bias [K]."""

    kernel: Any
    bias: Any


class _Tokens(NamedTuple):
    """Arrays with an entry for each token, the student's first. Their leading axis: tokens, or chunks of tokens."""

    hidden: tuple[Any, ...]
    weight: Any
    hyper: Any


class _Shared(NamedTuple):
    """Arrays that are the same for all tokens; the student's head first."""

    heads: tuple[_Head, ...]
    hyper: Any


def _check_heads(hidden: tuple[jax.Array, jax.Array], heads: tuple[_Head, _Head]) -> None:
    if hidden[0].shape[:-1] != hidden[1].shape[:-1]:
        raise ValueError(
            f"student hidden states have shape {hidden[0].shape} but teacher hidden states have shape "
            f"{hidden[1].shape}: make both models see the same tokens."
        )
    for side, h, (kernel, bias) in zip(("student", "teacher"), hidden, heads, strict=True):
        if kernel.ndim != 2 or kernel.shape[0] != h.shape[-1]:
            raise ValueError(
                f"{side} head has shape {kernel.shape} but {side} hidden states have shape {h.shape}: give a head of "
                f"shape ({h.shape[-1]}, classes), transposed if it is an embedding."
            )
        if bias is not None and bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"{side} bias has shape {bias.shape} but {side} head has shape {kernel.shape}: give {kernel.shape[1:]}."
            )
    student, teacher = (head.kernel.shape for head in heads)
    if student[1] != teacher[1]:
        raise ValueError(
            f"student and teacher have different numbers of classes ({student[1]} and {teacher[1]}, heads {student} "
            f"and {teacher}): give both the same vocabulary."
        )


def _cutter(lead: tuple[int, ...], chunk: int | None) -> Callable[..., jax.Array]:
    """A function that cuts [*lead, ...] into [chunks, size, ...], padded at the end, sizes as even as possible."""
    N = math.prod(lead)
    if N == 0 or (chunk is not None and chunk < 1):
        raise ValueError(f"there are {N} tokens in chunks of {chunk}: give at least one token, and one a chunk.")
    # Small chunks make slow products (measured: 64 took 0.7 of the time of 43), large ones take more memory.
    twelfth = 1 << (max(N // 12, 1).bit_length() - 1)
    chunks = -(-N // (min(max(twelfth, 64), 1024) if chunk is None else chunk))
    size = -(-N // chunks)

    def cut(x: jax.Array, mode: str = "constant") -> jax.Array:
        flat = x.reshape(N, *x.shape[len(lead) :])
        padded = jnp.pad(flat, [(0, size * chunks - N)] + [(0, 0)] * (flat.ndim - 1), mode=mode)
        # A chunk takes every chunks-th token, so that each device of a batch-sharded mesh works on each chunk.
        return jnp.moveaxis(padded.reshape(size, chunks, *flat.shape[1:]), 1, 0)

    return cut


def _logits(hidden: jax.Array, head: _Head) -> jax.Array:
    z = hidden @ head.kernel
    return z if head.bias is None else z + head.bias[None, :]


def _weighted_sum(
    loss: LogitsLoss, logits: tuple[jax.Array, ...], weight: jax.Array, per_token: PyTree, shared: PyTree
) -> jax.Array:
    values = loss(*logits, **per_token, **shared)
    return jnp.sum(weight * jnp.where(weight > 0, values, 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _walk(loss: LogitsLoss, tokens: _Tokens, shared: _Shared) -> jax.Array:
    """Weighted sum of the loss over all chunks."""

    def step(total: jax.Array, x: _Tokens) -> tuple[jax.Array, None]:
        logits = tuple(map(_logits, x.hidden, shared.heads))
        return total + _weighted_sum(loss, logits, x.weight, x.hyper, shared.hyper), None

    return jax.lax.scan(step, jnp.zeros((), tokens.weight.dtype), tokens)[0]


def _kept(wanted: PyTree, tree: PyTree) -> PyTree:
    """The tree with None, which is no leaf, in place of the leaves that are not wanted."""
    return jax.tree.map(lambda w, x: x if w else None, wanted, tree)


def _pulled(want_hidden: bool, total: _Head, hidden: jax.Array, head: _Head, d_logits: jax.Array) -> tuple[Any, _Head]:
    """A chunk's gradient of the hidden states, and the sum of the head's gradients up to this chunk."""
    start = Pulled(jnp.zeros_like(hidden) if want_hidden else None, total.kernel)
    d_hidden, kernel = start
    if jax.tree.leaves(start):
        d_hidden, kernel = pull(start, hidden, head.kernel, d_logits)
    bias = None if total.bias is None else total.bias + jnp.sum(d_logits, axis=0)
    return d_hidden, _Head(kernel, bias)


def _walk_with_gradients(loss: LogitsLoss, tokens: _Tokens, shared: _Shared) -> tuple[jax.Array, PyTree]:
    """The value, and the gradients of all inputs that are differentiated."""
    wanted_tokens, wanted_shared = jax.tree.map(lambda x: x.perturbed, (tokens, shared))
    tokens, shared = jax.tree.map(lambda x: x.value, (tokens, shared))
    differentiate = jax.value_and_grad(functools.partial(_weighted_sum, loss), argnums=(0, 1, 2, 3))

    def step(carry: tuple[jax.Array, PyTree], x: _Tokens) -> tuple[tuple[jax.Array, PyTree], PyTree]:
        total, gradients = carry
        logits = tuple(map(_logits, x.hidden, shared.heads))
        value, (d_logits, d_weight, d_per_token, d_hyper) = differentiate(logits, x.weight, x.hyper, shared.hyper)
        hidden, heads = zip(
            *map(_pulled, wanted_tokens.hidden, gradients.heads, x.hidden, shared.heads, d_logits), strict=True
        )
        hyper = jax.tree.map(jnp.add, gradients.hyper, _kept(wanted_shared.hyper, d_hyper))
        kept = _kept((wanted_tokens.weight, wanted_tokens.hyper), (d_weight, d_per_token))
        return (total + value, _Shared(heads, hyper)), _Tokens(hidden, *kept)

    start = _kept(wanted_shared, jax.tree.map(jnp.zeros_like, shared))
    (value, d_shared), d_tokens = jax.lax.scan(step, (jnp.zeros((), tokens.weight.dtype), start), tokens)
    return value, (d_tokens, d_shared)


def _scaled(loss: LogitsLoss, gradients: PyTree, cotangent: jax.Array) -> PyTree:
    return jax.tree.map(lambda d: cotangent * d, gradients)


_walk.defvjp(_walk_with_gradients, _scaled, symbolic_zeros=True)
