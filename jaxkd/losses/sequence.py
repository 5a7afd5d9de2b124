"""Losses on sequences: per-token losses under masks, and the same without ever holding [tokens, vocabulary]."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.types import PyTree

LogitsLoss: TypeAlias = Callable[..., jax.Array]
"""(student_logits [..., K], teacher_logits [..., K], **hyper) -> [...]."""


def token_level(loss: LogitsLoss) -> LogitsLoss:
    """Turns a loss on logits into one on sequences: its mean over the valid tokens of each sequence.

    sum_s mask_bs loss_bs / sum_s mask_bs; every sequence counts alike. Where every token of the batch shall count
    alike, as in `masked_token_kl`, take `numerics.masked_mean(loss(student, teacher), mask)` instead.

    Args:
      loss: (student_logits [B, S, K], teacher [B, S, ...], **hyper) -> [B, S], any loss that keeps leading axes.

    Returns:
      (student_logits, teacher, mask [B, S] | None, **hyper) -> [B]; 0 for a sequence without a valid token.
    """

    @functools.wraps(loss)
    def on_sequences(student_logits: ArrayLike, teacher: ArrayLike, mask: ArrayLike | None, **hyper: Any) -> jax.Array:
        values = loss(student_logits, teacher, **hyper)
        if mask is None:
            return jnp.mean(values, axis=-1)
        _check_mask(mask, values.shape)
        return jax.vmap(numerics.masked_mean)(values, jnp.asarray(mask))

    return on_sequences


def masked_token_kl(
    student_logits: ArrayLike, teacher_logits: ArrayLike, mask: ArrayLike, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    """Token-level knowledge distillation, the mean over all valid tokens; it couples the batch through their number.

    T^2 * sum_bs mask_bs KL(softmax(z_t / T) || softmax(z_s / T))_bs / sum_bs mask_bs

    Args:
      student_logits: [B, S, K] floating.
      teacher_logits: [B, S, K] floating.
      mask: [B, S], true on tokens that count, or non-negative weights.
      temperature: T > 0, a scalar or an array over leading axes.

    Returns:
      Scalar in nats, times T^2; 0 where no token is valid.

    Raises:
      ValueError: If the shapes differ.

    Reference:
      Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NeurIPS 2014 Deep Learning Workshop,
      https://arxiv.org/abs/1503.02531
    """
    values = _tempered_kl(student_logits, teacher_logits, temperature=temperature)
    _check_mask(mask, values.shape)
    return numerics.masked_mean(values, mask)


def sequence_kd(student_logits: ArrayLike, teacher_tokens: ArrayLike, mask: ArrayLike | None = None) -> jax.Array:
    """Sequence-level knowledge distillation: how unlikely the student finds the sequence that the teacher wrote.

    -sum_s mask_bs log softmax(z_bs)[y_bs],  y the output of the teacher's beam search. Position s of the logits scores
    y_bs: for a causal language model take y from `next_tokens`.

    Args:
      student_logits: [B, S, K] floating.
      teacher_tokens: Integers [B, S] in 0..K-1; any value where the mask is false.
      mask: [B, S], true on tokens that count, or None.

    Returns:
      [B] in nats, summed over tokens as in the paper.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Kim, Rush, "Sequence-Level Knowledge Distillation", EMNLP 2016, https://arxiv.org/abs/1606.07947
    """
    (z,), y = numerics.promote(student_logits), jnp.asarray(teacher_tokens)
    if z.ndim != 3 or y.shape != z.shape[:-1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"student logits have shape {z.shape} and teacher tokens have shape {y.shape} and dtype {y.dtype}: give "
            "logits [B, S, K] and integers [B, S]."
        )
    weight = jnp.ones(y.shape, z.dtype) if mask is None else jnp.asarray(mask).astype(z.dtype)
    _check_mask(weight, y.shape)
    surprise = optax.softmax_cross_entropy_with_integer_labels(z, jnp.where(weight > 0, y, 0))
    return jnp.sum(weight * jnp.where(weight > 0, surprise, 0), axis=-1)


def next_tokens(tokens: ArrayLike, mask: ArrayLike | None = None) -> tuple[jax.Array, jax.Array]:
    """What each position of a causal language model has to predict, and where there is something to predict.

    Args:
      tokens: Integers [B, S].
      mask: [B, S], true on tokens that are no padding, or None.

    Returns:
      Labels [B, S], labels[:, s] = tokens[:, s + 1], and booleans [B, S], true where both tokens are valid; the last
      position predicts nothing.

    Raises:
      ValueError: If the mask has another shape.
    """
    y = jnp.asarray(tokens)
    valid = jnp.ones(y.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)
    _check_mask(valid, y.shape)
    return jnp.roll(y, -1, axis=-1), (valid & jnp.roll(valid, -1, axis=-1)).at[..., -1].set(False)


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
    """`masked_token_kl` from hidden states, a chunk of tokens at a time; it couples the batch through their number.

    T^2 * sum_n mask_n KL(softmax(z_t / T) || softmax(z_s / T))_n / sum_n mask_n,  z = h W + b

    `chunked_loss` says how it is done.

    Args:
      student_hidden: [..., D_s] floating, the tokens' last hidden states.
      teacher_hidden: [..., D_t] floating, with the same leading axes.
      student_head: [D_s, K], the student's output matrix; the transposed embedding if they are tied.
      teacher_head: [D_t, K].
      temperature: T > 0, a scalar or an array over leading axes.
      mask: Booleans or non-negative weights over the leading axes, or None.
      student_bias: [K] or None.
      teacher_bias: [K] or None.
      chunk: Tokens whose logits are held at a time; a power of two, 64 to 1024 and about a twelfth of them, if None.

    Returns:
      Scalar in nats, times T^2; 0 where no token is valid.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NeurIPS 2014 Deep Learning Workshop,
      https://arxiv.org/abs/1503.02531
    """
    return chunked_loss(
        _tempered_kl,
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
    """Mean of a logits loss over the valid tokens, never holding all logits; it couples the batch through their number.

    sum_n mask_n loss(h_s W_s + b_s, h_t W_t + b_t)_n / sum_n mask_n

    The tokens are walked in chunks. Because the result is one scalar, a chunk's gradient is known up to a common factor
    as soon as its logits are: the forward pass of a differentiated call adds it up there and then, and no logits are
    computed twice. That costs as many matrix products as the dense loss, and the memory of one chunk besides the
    gradients themselves. Only what is differentiated is paid for: a frozen teacher or head costs nothing, and a call
    outside `jax.grad` no gradient at all. All inputs have their exact gradient, the teacher's side and the numbers too;
    forward-mode differentiation (`jax.jvp`) is not possible.

    Args:
      loss: (student_logits [N, K], teacher_logits [N, K], **hyper) -> [N], one of `losses.logits` that keeps leading
        axes; what it closes over must not be traced.
      student_hidden: [..., D_s] floating, the tokens' last hidden states.
      teacher_hidden: [..., D_t] floating, with the same leading axes.
      student_head: [D_s, K], the student's output matrix; the transposed embedding if they are tied.
      teacher_head: [D_t, K].
      mask: Booleans or non-negative weights over the leading axes, or None.
      student_bias: [K] or None.
      teacher_bias: [K] or None.
      chunk: Tokens whose logits are held at a time; a power of two, 64 to 1024 and about a twelfth of them, if None.
      **hyper: Numbers for the loss: scalars, or arrays over leading axes.

    Returns:
      Scalar in at least float32, as all the arithmetic; 0 where no token is valid.

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
        _check_mask(mask, lead)
    weight = jnp.ones(lead, hs.dtype) if mask is None else jnp.asarray(mask).astype(hs.dtype)
    total = jnp.sum(weight)
    # Rows that do not count may hold anything, NaN included.
    hidden = tuple(jnp.where(weight[..., None] > 0, h, 0) for h in (hs, ht))
    numbers = {name: jnp.asarray(value, hs.dtype) for name, value in hyper.items()}
    scalars = {name: v for name, v in numbers.items() if v.ndim == 0}
    arrays = {name: jnp.broadcast_to(numerics.per_example(v, weight), lead) for name, v in numbers.items() if v.ndim}
    cut = _cutter(lead, chunk)
    weight = cut(weight / jnp.where(total > 0, total, 1))
    # Padded with numbers that there are, since a temperature of 0 would turn the padding's gradient into NaN.
    tokens = _Tokens(tuple(map(cut, hidden)), weight, {n: cut(v, "edge") for n, v in arrays.items()})
    return _walk(loss, tokens, _Shared(heads, scalars))


def _tempered_kl(student_logits: ArrayLike, teacher_logits: ArrayLike, *, temperature: ArrayLike) -> jax.Array:
    """T^2 KL(teacher || student) of each token."""
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    T = jnp.asarray(temperature, s.dtype)
    # A temperature over the sequences holds for all their tokens.
    squared = numerics.per_example(T, s[..., 0]) ** 2
    return squared * numerics.kl_divergence(numerics.log_softmax(t, T), numerics.log_softmax(s, T))


def _check_mask(mask: ArrayLike, shape: tuple[int, ...]) -> None:
    if jnp.shape(mask) != shape:
        raise ValueError(f"mask has shape {jnp.shape(mask)} but the tokens have shape {shape}: give one entry a token.")


class _Head(NamedTuple):
    """Output matrix [D, K] and bias [K]."""

    kernel: Any
    bias: Any


class _Tokens(NamedTuple):
    """What differs from token to token; the student's hidden states first. Leading axis: tokens, or chunks of them."""

    hidden: tuple[Any, ...]
    weight: Any
    hyper: Any


class _Shared(NamedTuple):
    """What all tokens share; the student's head first."""

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
    chunks = -(-N // (chunk or min(max(twelfth, 64), 1024)))
    size = -(-N // chunks)

    def cut(x: jax.Array, mode: str = "constant") -> jax.Array:
        flat = x.reshape(N, *x.shape[len(lead) :])
        padded = jnp.pad(flat, [(0, size * chunks - N)] + [(0, 0)] * (flat.ndim - 1), mode=mode)
        # A chunk takes every chunks-th token, so that each device of a batch-sharded mesh has a share in each chunk.
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
    """The leaves that are wanted; None, which is no leaf, in place of the others."""
    return jax.tree.map(lambda w, x: x if w else None, wanted, tree)


_ROWS = 128
"""Rows of a head's gradient that are added at a time, since a product of the head's whole size is a second head."""

_COLUMNS = 1024
"""Columns of it on CPUs, whose caches hold what is multiplied then. Elsewhere devices may share the columns."""


class _Pulled(NamedTuple):
    """Gradients of hidden states and of a head's matrix; None if unwanted."""

    hidden: Any
    kernel: Any


def _block(i: jax.Array, size: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Where a block begins, and which of it is not in the one before, as some of the last is if they are not even."""
    begin = jnp.minimum(i * size, length - size)
    return begin, begin + jnp.arange(size) >= i * size


def _by_columns(total: _Pulled, hidden: jax.Array, kernel: jax.Array, d_logits: jax.Array) -> _Pulled:
    """Adds a chunk's share, both products by blocks of the vocabulary."""
    size = min(_COLUMNS, kernel.shape[1])

    def add(i: jax.Array, total: _Pulled) -> _Pulled:
        begin, new = _block(i, size, kernel.shape[1])
        d_hidden, d_kernel = total
        d = jnp.where(new[None], jax.lax.dynamic_slice_in_dim(d_logits, begin, size, 1), 0)
        if d_hidden is not None:
            d_hidden = d_hidden + d @ jax.lax.dynamic_slice_in_dim(kernel, begin, size, 1).T
        if d_kernel is not None:
            block = jax.lax.dynamic_slice_in_dim(d_kernel, begin, size, 1) + hidden.T @ d
            d_kernel = jax.lax.dynamic_update_slice_in_dim(d_kernel, block, begin, 1)
        return _Pulled(d_hidden, d_kernel)

    return jax.lax.fori_loop(0, -(-kernel.shape[1] // size), add, total)


def _by_rows(total: _Pulled, hidden: jax.Array, kernel: jax.Array, d_logits: jax.Array) -> _Pulled:
    """Adds a chunk's share, the kernel's by blocks of the hidden size."""
    size = min(_ROWS, len(kernel))

    def add(i: jax.Array, d_kernel: jax.Array) -> jax.Array:
        begin, new = _block(i, size, len(kernel))
        h = jnp.where(new[:, None], jax.lax.dynamic_slice_in_dim(hidden.T, begin, size), 0)
        block = jax.lax.dynamic_slice_in_dim(d_kernel, begin, size) + h @ d_logits
        return jax.lax.dynamic_update_slice_in_dim(d_kernel, block, begin, 0)

    d_hidden, d_kernel = total
    return _Pulled(
        None if d_hidden is None else d_hidden + d_logits @ kernel.T,
        None if d_kernel is None else jax.lax.fori_loop(0, -(-len(kernel) // size), add, d_kernel),
    )


def _pulled(want_hidden: bool, total: _Head, hidden: jax.Array, head: _Head, d_logits: jax.Array) -> tuple[Any, _Head]:
    """A chunk's gradient of the hidden states, and the sum of the head's so far, with the chunk's share."""
    start = _Pulled(jnp.zeros_like(hidden) if want_hidden else None, total.kernel)
    d_hidden, kernel = start
    if jax.tree.leaves(start):
        d_hidden, kernel = jax.lax.platform_dependent(
            start, hidden, head.kernel, d_logits, cpu=_by_columns, default=_by_rows
        )
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
