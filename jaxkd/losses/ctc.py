"""Losses of connectionist temporal classification (CTC): frames of a sound, and texts that are shorter than they."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd import numerics
from jaxkd.labels import Labels, check_classes, check_range, of_classes
from jaxkd.losses.logits import kd
from jaxkd.losses.sequence import check_mask
from jaxkd.testing import (
    DISTANCE,
    EXTREME_LOGITS,
    FEATURES,
    MASKED_CLASSES,
    NON_NEGATIVE,
    SHIFT_INVARIANT,
    Draw,
    declare,
)

__all__ = ["ctc_frame_kd", "ctc_loss", "ctc_sequence_kd"]

_NEVER = -1e30  # logarithm of the probability of what cannot be; finite, as the gradient of log(0 + 0) is NaN
_MASKS = {"frame_mask": "other", "text_mask": "other"}
_OF_LOGITS = (SHIFT_INVARIANT, EXTREME_LOGITS)


def _frame_mask(draw: Draw) -> np.ndarray:
    """Mask of the frames [B, T], of which the first row has more than one."""
    return draw.mask()[::-1].copy()


def _texts(draw: Draw, *count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [B, *count, L] that are not the blank 0, and their mask [B, L]: at most half as many as frames."""
    length = max(draw.sizes.length // 2, 1)
    lengths = _frame_mask(draw).sum(axis=1) // 2
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return draw.integers(draw.sizes.vocabulary, *count, length, start=2), mask


def _frames_and_text(draw: Draw) -> dict[str, np.ndarray]:
    """Logits of frames, a text, and both masks."""
    labels, mask = _texts(draw)
    return {
        "student_logits": draw.token_logits(),
        "texts": labels,
        "frame_mask": _frame_mask(draw),
        "text_mask": mask,
    }


def _frames_and_texts(draw: Draw) -> dict[str, np.ndarray]:
    """Logits of frames, two hypotheses, their probabilities, and both masks."""
    labels, mask = _texts(draw, 2)
    weights = np.abs(draw.examples(2)) + 0.1
    return {
        "student_logits": draw.token_logits(),
        "hypotheses": labels,
        "weights": weights / weights.sum(-1, keepdims=True),
        "frame_mask": _frame_mask(draw),
        "hypothesis_mask": np.repeat(mask[:, None], 2, axis=1),
    }


@declare(
    _frames_and_text, (*FEATURES, *_OF_LOGITS, NON_NEGATIVE, MASKED_CLASSES), kinds=_MASKS, needs="transcribed sounds"
)
def ctc_loss(
    student_logits: ArrayLike,
    texts: ArrayLike,
    frame_mask: ArrayLike | None = None,
    text_mask: ArrayLike | None = None,
    *,
    blank: int = 0,
) -> jax.Array:
    """Connectionist temporal classification: the negative log-likelihood of a text, over all its alignments to frames.

    -log sum_a prod_t softmax(z_bt)[a_t],  a = paths that give y_b when repeats are joined and then blanks are dropped

    Two equal labels in succession need a blank between them, so a text needs as many frames as it has labels and such
    pairs together. A text that no alignment gives, having too few frames or a class whose logit is -inf, is no label:
    NaN, as value and as gradient, where `optax.ctc_loss` has a large constant. Arrays of the host are refused then.

    Args:
      student_logits: [B, T, K] floating, of T frames; the blank is one of the K classes.
      texts: Integers [B, L] in 0..K-1 other than the blank; any value where the mask is false.
      frame_mask: [B, T], true on frames that are no padding, or None for all.
      text_mask: [B, L], true on labels that are no padding, or None for all.
      blank: Number of the blank.

    Returns:
      [B] in nats, summed over the text; 0 for a row without frames and labels.

    Raises:
      ValueError: If the shapes do not fit, or a text of the host has too few frames.

    Reference:
      Graves et al., "Connectionist Temporal Classification: Labelling Unsegmented Sequence Data with Recurrent Neural
      Networks", ICML 2006, https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    (z,) = numerics.promote(student_logits)
    if z.ndim != 3 or jnp.ndim(texts) != 2 or jnp.shape(texts)[0] != z.shape[0]:
        raise ValueError(
            f"logits have shape {z.shape} and texts have shape {jnp.shape(texts)}: give logits of frames [B, T, K] "
            "and integers [B, L]."
        )
    check_classes(z)
    _check_blank(blank, z.shape[-1])
    check_range("texts", texts)
    for what, mask, shape in (("frame", frame_mask, z.shape[:-1]), ("text", text_mask, jnp.shape(texts))):
        if mask is not None and jnp.shape(mask) != shape:
            raise ValueError(
                f"{what}_mask has shape {jnp.shape(mask)}: give one entry for each frame or label, {shape}."
            )
    _refuse_short(z.shape[1], texts, frame_mask, text_mask)
    frames = jnp.ones(z.shape[:-1], bool) if frame_mask is None else jnp.asarray(frame_mask).astype(bool)
    given = jnp.ones(jnp.shape(texts), bool) if text_mask is None else jnp.asarray(text_mask).astype(bool)
    y = of_classes(jnp.asarray(texts), z.shape[-1])
    log_p = numerics.log_softmax(*numerics.masked(frames, z))
    nll, possible = _negative_log_likelihood(log_p, y.values, frames, given, blank)
    known = jnp.all(~given | (y.valid & (y.values != blank)), axis=-1)
    return Labels(y.values, known & possible, None).mark(nll)


@declare(
    _frames_and_texts,
    (*FEATURES, *_OF_LOGITS, NON_NEGATIVE),
    kinds={"frame_mask": "other", "hypothesis_mask": "other", "weights": "probabilities"},
    needs="sounds",
)
def ctc_sequence_kd(
    student_logits: ArrayLike,
    hypotheses: ArrayLike,
    weights: ArrayLike,
    frame_mask: ArrayLike | None = None,
    hypothesis_mask: ArrayLike | None = None,
    *,
    blank: int = 0,
) -> jax.Array:
    """Sequence-level distillation by CTC: the student's loss on the texts that the teacher's beam search found.

    sum_n w_bn CTC(z_b, y_bn),  w = the teacher's probabilities of its N best texts, normalised

    One text with weight 1 is the form of Kim and Rush. No frame of the teacher is compared with one of the student, so
    that it does not matter when either of them emits a label. `metrics.beam_search` gives texts and probabilities.

    Args:
      student_logits: [B, T, K] floating.
      hypotheses: Integers [B, N, L] in 0..K-1 other than the blank; any value where the mask is false.
      weights: [B, N] floating, not negative; a hypothesis with weight 0 does not count, whatever it is.
      frame_mask: [B, T], true on frames that are no padding, or None for all.
      hypothesis_mask: [B, N, L], true on labels that are no padding, or None for all.
      blank: Number of the blank.

    Returns:
      [B] in nats.

    Raises:
      ValueError: If the shapes do not fit.

    Reference:
      Takashima, Sheng, Kawai, "Investigation of Sequence-level Knowledge Distillation Methods for CTC Acoustic Models",
      ICASSP 2019, https://doi.org/10.1109/ICASSP.2019.8682671
    """
    z, w = numerics.promote(student_logits, weights)
    shape = jnp.shape(hypotheses)
    if z.ndim != 3 or len(shape) != 3 or shape[0] != z.shape[0] or w.shape != shape[:2]:
        raise ValueError(
            f"logits have shape {z.shape}, hypotheses {shape} and weights {w.shape}: give [B, T, K], [B, N, L] and "
            "[B, N]."
        )
    mask = jnp.ones(shape, bool) if hypothesis_mask is None else jnp.asarray(hypothesis_mask).astype(bool)
    if mask.shape != shape:
        raise ValueError(f"hypothesis_mask has shape {mask.shape}: give one entry a label, {shape}.")
    frames = jnp.ones(z.shape[:-1], bool) if frame_mask is None else jnp.asarray(frame_mask).astype(bool)
    counts = w > 0
    mask = mask & counts[..., None]
    check_range("hypotheses", hypotheses)
    # Each hypothesis is a row of its own, of the same frames.
    z, frames = (jnp.repeat(x, shape[1], axis=0) for x in (z, frames))
    texts = jnp.asarray(hypotheses).reshape(-1, shape[-1]), frames, mask.reshape(-1, shape[-1])
    values = ctc_loss(z, *texts, blank=blank).reshape(w.shape)
    return jnp.sum(jnp.where(counts, w * values, 0), axis=-1)


@declare(
    lambda draw: (draw.token_logits(), draw.token_logits(), _frame_mask(draw)),
    (*FEATURES, *_OF_LOGITS, *DISTANCE, MASKED_CLASSES),
    fixed=lambda draw: {"blank_weight": 0.25, "margin": 1},
    kinds={"frame_mask": "other"},
    needs="sounds",
)
def ctc_frame_kd(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    frame_mask: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
    blank: int = 0,
    blank_weight: ArrayLike = 1.0,
    margin: int = 0,
    delay: int = 0,
) -> jax.Array:
    """Frame-wise distillation of CTC posteriors: KL of each frame, with a weight of those that the teacher calls blank.

    T^2 * sum_t w_bt KL(softmax(z_t / T) || softmax(z_s / T))_bt,  w = 1, or `blank_weight` in frames of blanks

    CTC networks emit each label in a frame or two and blanks in all others, so that the mean over frames says little
    but "blank". Weight 0 is the papers' blank elimination; with a margin n it is their symmetric selection, in which n
    frames on either side of each label count too. A network that reads forward only emits a label later than one that
    reads both ways: with a delay d the student's frame t + d is compared with the teacher's frame t.

    Args:
      student_logits: [B, T, K] floating.
      teacher_logits: [B, T, K] floating.
      frame_mask: [B, T], true on frames that are no padding, or None for all.
      temperature: T > 0, a scalar or an array over leading axes; 1 in the papers, which have no T^2.
      blank: Number of the blank.
      blank_weight: Weight, not negative, of frames whose likeliest class the teacher's is the blank.
      margin: Number of frames beside one with a label that count like it.
      delay: Number of frames by which the student may be late.

    Returns:
      [B] in nats, times T^2, summed over frames as CTC is over labels.

    Raises:
      ValueError: If the shapes differ, or a number of frames is none.

    Reference:
      Hilmes, Rossenbach, Schlüter, "Analyzing the Importance of Blank for CTC-Based Knowledge Distillation",
      Interspeech 2025, https://arxiv.org/abs/2506.01503;
      Li et al., "Delayed-KD: Delayed Knowledge Distillation based CTC for Low-Latency Streaming ASR", Interspeech 2025,
      https://arxiv.org/abs/2505.22069 (the delay)
    """
    s, t = numerics.promote(student_logits, teacher_logits)
    numerics.check_same_shape(s, t, "logits")
    if s.ndim != 3:
        raise ValueError(f"logits have shape {s.shape}: give those of frames, [B, T, K].")
    _check_blank(blank, s.shape[-1])
    for name, number in (("margin", margin), ("delay", delay)):
        if number < 0 or number != int(number) or number >= s.shape[1]:
            raise ValueError(f"{name} is {number}: give a number of frames in 0..{s.shape[1] - 1}.")
    mask = jnp.ones(s.shape[:-1], bool) if frame_mask is None else jnp.asarray(frame_mask)
    check_mask(mask, s.shape[:-1])
    own, other = numerics.masked(mask, s, t)
    labelled = (jnp.argmax(other, axis=-1) != blank) & mask.astype(bool)
    near = [labelled]
    for n in range(1, margin + 1):
        near += [jnp.pad(labelled[:, n:], ((0, 0), (0, n))), jnp.pad(labelled[:, :-n], ((0, 0), (n, 0)))]
    selected = jnp.any(jnp.stack(near), axis=0)
    w = jnp.where(selected, 1, numerics.per_example(blank_weight, s[..., 0])) * mask.astype(s.dtype)
    if delay:
        # The teacher's frame t counts where the student has a frame t + delay.
        own, other = own[:, delay:], other[:, :-delay]
        w = jnp.where(mask[:, delay:].astype(bool), w[:, :-delay], 0)
    values = kd(*numerics.masked(w, own, other), temperature=temperature)
    return jnp.sum(jnp.where(w > 0, w * values, 0), axis=-1)


def frames_needed(texts: ArrayLike, text_mask: ArrayLike | None = None) -> np.ndarray:
    """Least number of frames that each text can be aligned to: its labels, and a blank between two equal ones.

    Args:
      texts: Integers [B, L], an array of the host.
      text_mask: [B, L], true on labels that are no padding, or None for all.

    Returns:
      int64 [B].
    """
    y = np.asarray(texts)
    given = np.ones(y.shape, bool) if text_mask is None else np.asarray(text_mask).astype(bool)
    return np.asarray(
        [n.size + np.count_nonzero(n[1:] == n[:-1]) for n in (a[m] for a, m in zip(y, given, strict=True))]
    )


def _negative_log_likelihood(
    log_p: jax.Array, labels: jax.Array, frames: jax.Array, given: jax.Array, blank: int
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood [B] of texts by the forward recursion, and where an alignment is possible."""
    order = jnp.argsort(~given, axis=-1, stable=True)  # padding may stand anywhere
    y, length = jnp.take_along_axis(labels, order, axis=-1), jnp.sum(given, axis=-1)
    (B, L), none = y.shape, jnp.asarray(_NEVER, log_p.dtype)
    # States of a path: blank, first label, blank, second label, ..., blank.
    states = jnp.full((B, 2 * L + 1), blank, y.dtype).at[:, 1::2].set(y)
    emit = jnp.take_along_axis(log_p, states[:, None], axis=-1)
    emit = jnp.maximum(emit, none).swapaxes(0, 1)
    other = jnp.pad(y[:, 1:] != y[:, :-1], ((0, 0), (1, 0)))[:, :L]  # no blank is needed before such a label
    skips = jnp.zeros(states.shape, bool).at[:, 1::2].set(other)

    def later(alpha: jax.Array, by: int) -> jax.Array:
        return jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=_NEVER)[:, : alpha.shape[1]]

    def step(alpha: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        ways = alpha, later(alpha, 1), jnp.where(skips, later(alpha, 2), none)
        highest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, ways))
        total = highest + jnp.log(sum(jnp.exp(way - highest) for way in ways))
        return jnp.where(now[1][:, None], now[0] + total, alpha), None

    start = jnp.full(states.shape, none).at[:, 0].set(0)  # before the first frame, as after a blank without cost
    alpha, _ = jax.lax.scan(step, start, (emit, frames.swapaxes(0, 1)))
    ends = jnp.stack([2 * length, jnp.maximum(2 * length - 1, 0)], axis=-1)
    last = jnp.take_along_axis(alpha, ends, axis=-1)
    last = jnp.stack([last[:, 0], jnp.where(length > 0, last[:, 1], none)])
    # A sum of probabilities may round to more than 1.
    nll = jnp.maximum(-jax.nn.logsumexp(last, axis=0), 0)
    return nll, nll < -_NEVER / 10


def _check_blank(blank: Any, classes: int) -> None:
    """Refuses a blank that is none of the classes."""
    if not 0 <= blank < classes or blank != int(blank):
        raise ValueError(f"blank is {blank}, which is none of {classes} classes: give its number in 0..{classes - 1}.")


def _refuse_short(frames: int, texts: Any, frame_mask: Any, text_mask: Any) -> None:
    """Refuses texts that need more frames than there are, as far as shapes and arrays of the host say."""
    if text_mask is None and jnp.shape(texts)[1] > frames:
        raise ValueError(
            f"texts have shape {jnp.shape(texts)} but logits have {frames} frames: a text needs at least as many "
            "frames as labels; give a text_mask if some are padding."
        )
    if any(not isinstance(x, (np.ndarray, type(None))) for x in (texts, frame_mask, text_mask)) or texts is None:
        return
    have = np.full(len(texts), frames) if frame_mask is None else frame_mask.astype(bool).sum(axis=1)
    need = frames_needed(texts, text_mask)
    if (need > have).any():
        row = int(np.argmax(need > have))
        raise ValueError(
            f"the text of row {row} needs {need[row]} frames but has {have[row]}: leave the row out, or give longer "
            "sounds or a network with more frames a second."
        )
