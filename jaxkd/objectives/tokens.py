"""Terms on tokens: losses on logits too large to hold, and the methods for transformers PKD, TinyBERT and ViTKD."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses, numerics
from jaxkd.losses.chunked import chunked_loss
from jaxkd.objectives.hyper import hold
from jaxkd.objectives.ignored import without_label
from jaxkd.objectives.means import mean_over
from jaxkd.objectives.networks import Network, token_generator
from jaxkd.objectives.paths import features_of, last_layer, pick, read_field
from jaxkd.objectives.projections import linear
from jaxkd.objectives.terms import Loss, Result, stateful, trained
from jaxkd.types import Batch, Outputs, PyTree, Term, Variables


def from_hidden(
    loss: Loss,
    *,
    student: str = "tokens",
    teacher: str = "tokens",
    label: str | None = None,
    ignore: int | None = None,
    where: str | None = None,
    chunk: int | None = None,
    **hyper: Any,
) -> Term:
    """Term of a loss on logits over a large vocabulary, computed a chunk of tokens at a time from hidden states.

    Value and gradients are those of `from_logits(loss, where=where, **hyper)` up to rounding. Both models must give
    their last layer: `models.with_head(model)`. No part of the program may read the logits themselves, so evaluate
    accuracy and the like in a step of its own.

    Args:
      loss: (student_logits [N, K], teacher_logits [N, K], **hyper) -> [N]; with `label`, the labels [N] come third, so
        that one walk over the tokens may serve several losses: `lambda s, t, y, *, alpha: ...`. Values it closes over
        must not be traced.
      student: Name of the student's hidden states [B, ..., D_s], on which its last layer works.
      teacher: Name of the teacher's [B, ..., D_t].
      label: Field of the batch with the labels, integers [B, ...]; none if None.
      ignore: Label of tokens that do not count in the mean, such as -100; none if None.
      where: Field of the batch with the weights of examples [B] or tokens [B, ...] (boolean or not); all have weight 1
        if None.
      chunk: As in `losses.chunked_kl`.
      **hyper: Hyper-parameters of the loss: numbers, arrays or schedules of the step.

    Returns:
      A term without parameters; its state holds the numbers.

    Raises:
      ValueError: When the step is made, if a model has no such feature or gives no last layer, or shapes do not fit.
    """
    held = hold(hyper, loss)

    def init(key: jax.Array, s: Outputs, t: Outputs, batch: Batch) -> Variables:
        return Variables({}, {name: jnp.asarray(v) for name, v in held.arrays.items()})

    def apply(
        variables: Variables, s: Outputs, t: Outputs, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, PyTree, dict[str, jax.Array]]:
        hidden = pick(s, student, "student"), pick(t, teacher, "teacher")
        heads = last_layer(s, "student"), last_layer(t, "teacher")
        numbers = held.resolve(variables.state, step)
        fixed = {n: v for n, v in numbers.items() if not isinstance(v, float | np.floating | np.ndarray | jax.Array)}
        numbers = {n: v for n, v in numbers.items() if n not in fixed}
        called = functools.partial(loss, **fixed)
        if label is not None:
            called = functools.partial(_with_labels, called)
        lead = jnp.zeros(hidden[0].shape[:-1])
        if label is not None and ignore is not None:
            batch = without_label(batch, label, ignore, lead.ndim, fill=True)

        def mean(weight: Any) -> jax.Array:
            mask = None if weight is None else jnp.broadcast_to(weight, lead.shape)
            if label is not None:
                numbers["integers"] = numerics.masked(mask, jnp.asarray(read_field(batch, label)))[0]
            kernels, biases = ([head.get(part) for head in heads] for part in ("kernel", "bias"))
            return chunked_loss(
                called,
                *(*hidden, *kernels),
                mask=mask,
                student_bias=biases[0],
                teacher_bias=biases[1],
                chunk=chunk,
                **numbers,
            )

        return mean_over(lead, mean, batch, where), variables.state, {}

    return Term(init, apply)


def _with_labels(loss: Loss, s: jax.Array, t: jax.Array, *, integers: jax.Array, **hyper: Any) -> jax.Array:
    """The labels travel among the numbers, in float32, which holds every integer below 2^24."""
    return loss(s, t, integers.astype(jnp.int32), **hyper)


def tinybert(
    *,
    student_attention: Sequence[str],
    teacher_attention: Sequence[str],
    student_hidden: Sequence[str],
    teacher_hidden: Sequence[str],
    token_mask: str | None = None,
    where: str | None = None,
) -> Term:
    """Term of TinyBERT: attention scores and hidden states of all layers, one linear map for all hidden states.

    `tinybert(**layer_names(3, 6), token_mask="token_mask")` pairs each of three blocks with every second of six.

    Args:
      student_attention: Names of the scores [B, A, L, L] of the student's S layers, in order.
      teacher_attention: Names of the teacher's N layers', N a multiple of S.
      student_hidden: Names of the states [B, L, Ds], the embeddings first, S + 1 of them.
      teacher_hidden: Names of the teacher's [B, L, Dt], N + 1 of them.
      token_mask: Field of the batch [B, L], true on real tokens, over which the means are taken; all of them if None.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.

    Returns:
      A term whose parameters are the map's.
    """
    project = linear()

    def init(key: jax.Array, a_s: Any, a_t: Any, h_s: Any, h_t: Any, mask: Any = None) -> PyTree:
        return project.init(key, h_s[0].shape, h_t[0].shape)

    def call(params: PyTree, a_s: Any, a_t: Any, h_s: Any, h_t: Any, mask: Any = None) -> jax.Array:
        attention = jnp.stack(a_s, axis=1), jnp.stack(a_t, axis=1)
        hidden = project.apply(params, jnp.stack(h_s, axis=1)), jnp.stack(h_t, axis=1)
        return losses.tinybert(*attention, *hidden, mask)

    students = (features_of("student", student_attention), features_of("student", student_hidden))
    teachers = (features_of("teacher", teacher_attention), features_of("teacher", teacher_hidden))
    paths = (students[0], teachers[0], students[1], teachers[1], *((f"batch.{token_mask}",) if token_mask else ()))
    return trained(call, *paths, init=init, where=where)


def pkd(layers: Sequence[int], *, project: Network | None = None, where: str | None = None, **hyper: Any) -> Term:
    """Term of patient distillation: the first token's state after each of the student's first blocks.

    `pkd(uniform_layers(3, 6)[:-1])` is the paper's PKD-Skip for three blocks and six: the last block is left out, as
    the logits teach it. `pkd(last_layers(3, 6)[:-1])` is PKD-Last.

    Args:
      layers: Number of the teacher's block for the student's blocks 0, 1, ... in order; features `block<number>`.
      project: Map from the student's states to the teacher's width, one for all blocks; none if the widths are equal.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.pkd`.

    Returns:
      A term whose parameters are the map's.

    Raises:
      ValueError: If no layer is given; when the step is made, if there is no such block or the widths differ.

    Reference:
      Sun et al., "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019,
      https://arxiv.org/abs/1908.09355
    """
    if not layers:
        raise ValueError("pkd compares no blocks: give the teacher's block for each of the student's first blocks.")

    def init(key: jax.Array, h_s: Any, h_t: Any) -> PyTree:
        return {} if project is None else project.init(key, h_s[0].shape, h_t[0].shape)

    def call(params: PyTree, h_s: Any, h_t: Any, **hyper: Any) -> jax.Array:
        s, t = (jnp.stack([h[:, 0] for h in states], axis=1) for states in (h_s, h_t))
        return losses.pkd(s if project is None else project.apply(params, s), t, **hyper)

    students = features_of("student", [f"block{i}" for i in range(len(layers))])
    teachers = features_of("teacher", [f"block{i}" for i in layers])
    return trained(call, students, teachers, init=init, hyper_of=losses.pkd, where=where, **hyper)


def vitkd(
    *,
    student_low: Sequence[str],
    teacher_low: Sequence[str],
    student_high: str,
    teacher_high: str,
    lam: float = 0.5,
    where: str | None = None,
    **hyper: Any,
) -> Term:
    """Term of ViTKD: the first two blocks' tokens are projected, hidden tokens of the last block are generated.

    Args:
      student_low: Names of the tokens [B, N, Ds] of the student's first two blocks, without the class token.
      teacher_low: Names of the teacher's, [B, N, Dt].
      student_high: Name of the tokens of the student's last block.
      teacher_high: Name of the teacher's.
      lam: Fraction of the tokens that is hidden; exactly round(lam N) in each example.
      where: Field of the batch [B] that masks or weights examples in the mean; all count 1 if None.
      **hyper: Hyper-parameters of `losses.vitkd`.

    Returns:
      A term with parameters `align_low` (two), `align_high`, `mask_token` and those of `networks.token_generator`.
    """
    align, generator = linear(), token_generator()

    def init(key: jax.Array, low_s: list[Any], low_t: list[Any], high_s: Any, high_t: Any) -> Variables:
        keys = jax.random.split(key, len(low_s) + 3)
        lows = [align.init(k, s.shape, t.shape) for k, s, t in zip(keys[3:], low_s, low_t, strict=True)]
        token = 0.02 * jax.random.normal(keys[0], high_t.shape[-1:])
        high = align.init(keys[1], high_s.shape, high_t.shape)
        own = generator.init(keys[2], high_t.shape, high_t.shape)
        return Variables({"align_low": lows, "align_high": high, "mask_token": token, **own}, {})

    def call(
        variables: Variables, key: jax.Array, low_s: Any, low_t: Any, high_s: jax.Array, high_t: jax.Array, **hyper: Any
    ) -> Result:
        p, (B, N, _) = variables.params, high_t.shape
        order = jnp.argsort(jax.random.uniform(key, (B, N)), axis=1)
        mask = order < round(lam * N)
        lows = jnp.stack([align.apply(a, x) for a, x in zip(p["align_low"], low_s, strict=True)], axis=1)
        made = generator.apply(p, align.apply(p["align_high"], high_s), mask, p["mask_token"])
        return losses.vitkd(lows, jnp.stack(low_t, axis=1), made, high_t, mask, lam=lam, **hyper), {}, {}

    paths = (features_of("student", student_low), features_of("teacher", teacher_low), f"student.{student_high}")
    return stateful(call, *paths, f"teacher.{teacher_high}", init=init, hyper_of=losses.vitkd, where=where, **hyper)
