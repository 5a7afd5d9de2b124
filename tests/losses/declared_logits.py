"""Properties of the losses on logits."""

import numpy as np
from losses.declaration import Declaration

from jaxkd.losses import correlation, divergences, logits, target_class, top_k
from jaxkd.losses.cross_tokenizer import uld, uld_answers
from jaxkd.testing import (
    ALWAYS,
    BATCH_OF_ONE,
    BATCH_PERMUTATION,
    CLASS_PERMUTATION_INVARIANT,
    COUPLED,
    EXTREME_LOGITS,
    FLAT_AT_EQUALITY,
    GRADIENT,
    INDEPENDENT_ROWS,
    LEADING_AXES,
    LOGITS,
    MASKED_CLASSES,
    NON_NEGATIVE,
    SHIFT_INVARIANT,
    SYMMETRIC,
    ZERO_AT_EQUALITY,
)

B, K, TOP = 6, 7, 3
SHIFTS = (SHIFT_INVARIANT, CLASS_PERMUTATION_INVARIANT)
DIVERGENCE = (*LOGITS, *SHIFTS, NON_NEGATIVE, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY)
# What holds of the student's value under a constant weight, which finite differences would move.
DETACHED = tuple(p for p in LOGITS if p is not GRADIENT)
DETACHED_COUPLED = tuple(p for p in COUPLED if p is not GRADIENT)


def _draw(*shape, seed):
    return 2 * np.random.default_rng(seed).standard_normal(shape)


def _one():
    return (_draw(B, K, seed=0),)


def _sides():
    return _draw(B, K, seed=0), _draw(B, K, seed=1)


def _labels():
    return np.array([0, 3, 6, 3, 1, 2])


def _labelled():
    return *_sides(), _labels()


def _kept():
    """The teacher's three likeliest classes; never class 1, which the kit masks on the student's side alone."""
    student, teacher = _sides()
    log_p = teacher - np.log(np.exp(teacher).sum(-1, keepdims=True))
    ids = np.argsort(np.where(np.arange(K) == 1, np.inf, -log_p), axis=-1)[:, :TOP]
    return student, ids, np.take_along_axis(log_p, ids, axis=-1)


def _ranked():
    """The same with fewer pairs in the first row, so that the mean over pairs is not one over rows."""
    student, ids, log_p = _kept()
    log_p[0, -1] = -30
    return student, ids, log_p


TOP_K = {"kinds": {"teacher_logprobs": "other"}}
RANKING = (*COUPLED, EXTREME_LOGITS, BATCH_OF_ONE, NON_NEGATIVE, CLASS_PERMUTATION_INVARIANT, SHIFT_INVARIANT)

DECLARED = {
    logits.kd: Declaration(_sides, DIVERGENCE),
    logits.logits_mse: Declaration(
        _sides,
        (*LOGITS, NON_NEGATIVE, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY, SYMMETRIC, CLASS_PERMUTATION_INVARIANT),
    ),
    logits.cross_entropy: Declaration(lambda: (_sides()[0], _labels()), (*LOGITS, *SHIFTS, NON_NEGATIVE)),
    logits.standardize_logits: Declaration(
        _one, (*ALWAYS, INDEPENDENT_ROWS, LEADING_AXES, BATCH_OF_ONE, SHIFT_INVARIANT)
    ),
    logits.spherical_kd: Declaration(_sides, DIVERGENCE),
    logits.tfkd_reg: Declaration(lambda: (_sides()[0], _labels()), (*LOGITS, *SHIFTS, NON_NEGATIVE)),
    logits.mft: Declaration(_labelled, (*LOGITS, *SHIFTS, NON_NEGATIVE)),
    target_class.dkd: Declaration(_labelled, DIVERGENCE),
    target_class.nkd: Declaration(_labelled, (*LOGITS, *SHIFTS, NON_NEGATIVE)),
    target_class.uskd: Declaration(
        _labelled, (*DETACHED_COUPLED, *SHIFTS, BATCH_OF_ONE, EXTREME_LOGITS, MASKED_CLASSES, NON_NEGATIVE)
    ),
    target_class.wsld: Declaration(_labelled, (*DETACHED, *SHIFTS, NON_NEGATIVE)),
    correlation.dist: Declaration(
        _sides,
        (*COUPLED, *SHIFTS, BATCH_OF_ONE, EXTREME_LOGITS, MASKED_CLASSES, NON_NEGATIVE, BATCH_PERMUTATION, SYMMETRIC),
    ),
    correlation.mlkd: Declaration(
        _sides,
        (
            *COUPLED,
            *SHIFTS,
            BATCH_OF_ONE,
            EXTREME_LOGITS,
            MASKED_CLASSES,
            NON_NEGATIVE,
            ZERO_AT_EQUALITY,
            FLAT_AT_EQUALITY,
        ),
    ),
    divergences.reverse_kl: Declaration(_sides, DIVERGENCE),
    divergences.jeffreys: Declaration(_sides, (*DIVERGENCE, SYMMETRIC)),
    divergences.jsd: Declaration(_sides, (*DIVERGENCE, SYMMETRIC)),
    divergences.tvd: Declaration(_sides, (*DIVERGENCE, SYMMETRIC)),
    divergences.skew_kl: Declaration(_sides, DIVERGENCE),
    divergences.skew_reverse_kl: Declaration(_sides, DIVERGENCE),
    top_k.topk_kl_teacher_renorm: Declaration(_kept, (*LOGITS, *SHIFTS, NON_NEGATIVE), TOP_K),
    top_k.topk_kl_both_renorm: Declaration(
        _kept, (*LOGITS, *SHIFTS, NON_NEGATIVE), {"kinds": {"teacher_logits": "other"}}
    ),
    top_k.topk_kl_tail_bucket: Declaration(_kept, (*LOGITS, *SHIFTS, NON_NEGATIVE), TOP_K),
    top_k.ranking_hinge: Declaration(_ranked, RANKING, TOP_K),
    top_k.ranking_logistic: Declaration(_ranked, RANKING, TOP_K),
    uld: Declaration(_sides, (*LOGITS, *SHIFTS, NON_NEGATIVE, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY, SYMMETRIC)),
    uld_answers: Declaration(
        lambda: (
            _draw(4, 5, 6, seed=2),
            _draw(4, 6, 8, seed=3),
            np.array([1, 0, 2, 0]),
            np.array([3, 5, 2, 0]),
            np.array([0, 1, 2, 3]),
            np.array([4, 2, 2, 2]),
        ),
        (*ALWAYS, INDEPENDENT_ROWS, BATCH_OF_ONE, EXTREME_LOGITS, SHIFT_INVARIANT, NON_NEGATIVE),
    ),
}
