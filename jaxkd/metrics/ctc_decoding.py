"""Decoding of CTC networks: from logits of frames to labels, greedily or by a beam search over prefixes."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class Hypothesis(NamedTuple):
    """A text that a beam search found.

    Attributes:
      labels: Its labels.
      log_probability: Logarithm of the probability of all its alignments that the beam kept, in nats.
    """

    labels: tuple[int, ...]
    log_probability: float


def greedy_ctc(
    logits: ArrayLike, frame_mask: ArrayLike | None = None, *, blank: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Labels of the likeliest path: the likeliest class of each frame, repeats joined, then blanks dropped.

    Args:
      logits: [B, T, K], of a network or its log-probabilities.
      frame_mask: [B, T], true on frames that are no padding, which may stand anywhere; None for all.
      blank: Number of the blank.

    Returns:
      Labels, integers [B, T], moved to the front and 0 after the last, and booleans [B, T], true on labels.

    Raises:
      ValueError: If the shapes do not fit.
    """
    z = jnp.asarray(logits)
    real = jnp.ones(z.shape[:-1], bool) if frame_mask is None else jnp.asarray(frame_mask).astype(bool)
    if z.ndim != 3 or real.shape != z.shape[:-1]:
        raise ValueError(f"logits have shape {z.shape} and the mask {real.shape}: give [B, T, K] and [B, T].")
    to_front = jnp.argsort(~real, axis=-1, stable=True)
    path, real = (jnp.take_along_axis(x, to_front, axis=-1) for x in (jnp.argmax(z, axis=-1), real))
    repeats = jnp.pad(path[:, 1:] == path[:, :-1], ((0, 0), (1, 0)))[:, : path.shape[1]]
    kept = real & (path != blank) & ~repeats
    order = jnp.argsort(~kept, axis=-1, stable=True)
    labels, mask = (jnp.take_along_axis(x, order, axis=-1) for x in (path, kept))
    return jnp.where(mask, labels, 0), mask


def beam_search(log_p: np.ndarray, *, beam: int = 8, blank: int = 0, classes: int = 8) -> list[Hypothesis]:
    """Likeliest texts of one sound by a beam search over prefixes, which adds up the alignments of each text.

    Args:
      log_p: Log-probabilities of the frames [T, K], without padding.
      beam: Number of prefixes that are kept after each frame.
      blank: Number of the blank.
      classes: Number of the likeliest classes of a frame that may go on a prefix.

    Returns:
      The prefixes that are left, the likeliest first, at most `beam`.

    Raises:
      ValueError: If log_p is no matrix, holds NaN, or a number is not positive.

    Reference:
      Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs",
      2014, https://arxiv.org/abs/1408.2873
    """
    if np.ndim(log_p) != 2 or np.isnan(log_p).any() or beam < 1 or classes < 1:
        raise ValueError(
            f"log_p has shape {np.shape(log_p)}, beam is {beam} and classes {classes}: give log-probabilities [T, K] "
            "without NaN, and positive numbers."
        )
    # Prefix -> log-probability of its alignments that end in a blank, and of those that end in its last label.
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
    for row in np.asarray(log_p, np.float64):
        likely = [int(k) for k in np.argsort(-row, kind="stable")[:classes] if k != blank]
        found: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-np.inf, -np.inf])
        for prefix, (in_blank, in_label) in beams.items():
            both, own = np.logaddexp(in_blank, in_label), found[prefix]
            own[0] = np.logaddexp(own[0], both + row[blank])
            if prefix:
                own[1] = np.logaddexp(own[1], in_label + row[prefix[-1]])
            for k in likely:
                longer = found[(*prefix, k)]
                # The same label again is a new one only after a blank.
                longer[1] = np.logaddexp(longer[1], (in_blank if prefix and prefix[-1] == k else both) + row[k])
        ranked = sorted(found.items(), key=lambda item: -np.logaddexp(item[1][0], item[1][1]))
        beams = {prefix: (ends[0], ends[1]) for prefix, ends in ranked[:beam] if max(ends) > -np.inf}
    return [Hypothesis(prefix, float(np.logaddexp(*ends))) for prefix, ends in beams.items()]
