"""Properties of the losses on features and in transformers."""

import numpy as np
from losses.declaration import Declaration

from jaxkd.losses import hints, transformers
from jaxkd.testing import (
    ACCUMULATION,
    ALWAYS,
    BATCH_OF_ONE,
    CLASS_PERMUTATION_INVARIANT,
    COUPLED,
    EXTREME_LOGITS,
    FEATURES,
    FLAT_AT_EQUALITY,
    INDEPENDENT_ROWS,
    JOINT_ROTATION_INVARIANT,
    JOINT_SHIFT_INVARIANT,
    KEEPS_LEADING_AXES,
    LEADING_AXES,
    NON_NEGATIVE,
    SCALE_INVARIANT,
    SYMMETRIC,
    ZERO_AT_EQUALITY,
)

B, C = 6, 5
DISTANCE = (NON_NEGATIVE, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY, SYMMETRIC)
OF_DIFFERENCES = (JOINT_SHIFT_INVARIANT, JOINT_ROTATION_INVARIANT, CLASS_PERMUTATION_INVARIANT)
TOKENS = (*ALWAYS, LEADING_AXES, INDEPENDENT_ROWS, ACCUMULATION, BATCH_OF_ONE, EXTREME_LOGITS)


def _draw(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal((B, *shape))


def _sides(*shape):
    return lambda: (_draw(*shape), _draw(*shape, seed=1))


def _masked(*arrays):
    """Inputs, and a mask over four tokens, of which the rows have 1, 2, 3 or 4."""
    return lambda: (*(x for a in arrays for x in a()), (np.arange(B)[:, None] >= np.arange(4)).astype(np.int32))


MAPS = _sides(4, 4, C)

DECLARED = {
    hints.hint: Declaration(MAPS, (*FEATURES, *DISTANCE, *OF_DIFFERENCES)),
    hints.review_hcl: Declaration(MAPS, (*FEATURES, *DISTANCE, *OF_DIFFERENCES)),
    hints.mgd: Declaration(MAPS, (*FEATURES, *DISTANCE, *OF_DIFFERENCES)),
    hints.simkd: Declaration(MAPS, (*FEATURES, *DISTANCE, *OF_DIFFERENCES)),
    hints.ickd: Declaration(MAPS, (*FEATURES, *DISTANCE, JOINT_ROTATION_INVARIANT, CLASS_PERMUTATION_INVARIANT)),
    hints.cat_kd: Declaration(MAPS, (*FEATURES, *DISTANCE, SCALE_INVARIANT, CLASS_PERMUTATION_INVARIANT)),
    hints.srrl: Declaration(
        lambda: (*MAPS(), *_sides(C)()), (*FEATURES, NON_NEGATIVE, EXTREME_LOGITS, *OF_DIFFERENCES)
    ),
    hints.semckd: Declaration(
        lambda: (*_sides(3, 4)(), np.abs(_draw(3, 3))),
        (*FEATURES, NON_NEGATIVE, EXTREME_LOGITS, JOINT_ROTATION_INVARIANT),
        {"kinds": {"pair_losses": "other"}},
    ),
    hints.srd: Declaration(
        lambda: (*_sides(C)(), _draw(C, seed=2), _draw(C, seed=3)),
        (*COUPLED, BATCH_OF_ONE, EXTREME_LOGITS, JOINT_SHIFT_INVARIANT, CLASS_PERMUTATION_INVARIANT),
    ),
    hints.pkd_pearson: Declaration(MAPS, (*COUPLED, BATCH_OF_ONE, *DISTANCE, CLASS_PERMUTATION_INVARIANT)),
    transformers.hidden_mse: Declaration(_sides(4, C), (*TOKENS, KEEPS_LEADING_AXES, *DISTANCE, *OF_DIFFERENCES)),
    transformers.attention_mse: Declaration(_sides(2, 4, 4), (*TOKENS, *DISTANCE, JOINT_SHIFT_INVARIANT)),
    transformers.tinybert: Declaration(
        lambda: (*_sides(2, 2, 4, 4)(), *_sides(3, 4, C)()),
        (*FEATURES, NON_NEGATIVE, EXTREME_LOGITS, JOINT_SHIFT_INVARIANT, JOINT_ROTATION_INVARIANT),
    ),
    transformers.cosine: Declaration(
        _sides(4, C),
        (
            *TOKENS,
            KEEPS_LEADING_AXES,
            *DISTANCE,
            SCALE_INVARIANT,
            JOINT_ROTATION_INVARIANT,
            CLASS_PERMUTATION_INVARIANT,
        ),
    ),
    transformers.pkd: Declaration(
        _sides(2, C),
        (*FEATURES, *DISTANCE, SCALE_INVARIANT, JOINT_ROTATION_INVARIANT, CLASS_PERMUTATION_INVARIANT),
    ),
    transformers.minilm: Declaration(
        _masked(_sides(3, 4, 24)),
        (*FEATURES, NON_NEGATIVE, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY, EXTREME_LOGITS),
        {"kinds": {"mask": "other"}},
    ),
    transformers.minilmv2: Declaration(
        _masked(_sides(3, 4, 96)),
        (*FEATURES, NON_NEGATIVE, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY, EXTREME_LOGITS),
        {"kinds": {"mask": "other"}},
    ),
    transformers.vitkd: Declaration(
        _masked(_sides(2, 4, C), _sides(4, C)),
        (*FEATURES, NON_NEGATIVE, *OF_DIFFERENCES),
        {"kinds": {"mask": "other"}},
    ),
}
