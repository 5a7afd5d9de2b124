"""What holds of the losses on sequences."""

import numpy as np
from losses.declaration import Declaration

from jaxkd import testing
from jaxkd.losses.chunked import chunked_kl
from jaxkd.losses.sequence import masked_token_kl, sequence_kd

RNG = np.random.default_rng(0)
MASK = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)


def _logits():
    return 2 * RNG.standard_normal((4, 3, 6)), 2 * RNG.standard_normal((4, 3, 6)), MASK


def _tokens():
    return 2 * RNG.standard_normal((4, 3, 6)), RNG.integers(0, 6, (4, 3)), MASK


def _hidden():
    """As many features as sequences, since the kit wants one leading axis; one head for both sides."""
    head = RNG.standard_normal((4, 6))
    return RNG.standard_normal((4, 3, 4)), RNG.standard_normal((4, 3, 4)), head, head


DECLARED = {
    masked_token_kl: Declaration(
        _logits,
        (
            *testing.COUPLED,
            testing.NON_NEGATIVE,
            testing.ZERO_AT_EQUALITY,
            testing.FLAT_AT_EQUALITY,
            testing.SHIFT_INVARIANT,
            testing.CLASS_PERMUTATION_INVARIANT,
            testing.EXTREME_LOGITS,
            testing.MASKED_CLASSES,
        ),
        {"kinds": {"mask": "other"}},
    ),
    sequence_kd: Declaration(
        _tokens,
        (
            *testing.FEATURES,
            testing.NON_NEGATIVE,
            testing.SHIFT_INVARIANT,
            testing.CLASS_PERMUTATION_INVARIANT,
            testing.EXTREME_LOGITS,
        ),
        {"kinds": {"mask": "other"}},
    ),
    # Permuting or halving the batch would permute or halve the heads' features as well, so that is not declared here.
    chunked_kl: Declaration(
        _hidden,
        (
            testing.DTYPE,
            testing.RANK_PROMOTION,
            testing.DTYPE_PROMOTION,
            testing.SCALAR,
            testing.FINITE,
            testing.FINITE_AT_EQUALITY,
            testing.ZERO_ROWS,
            testing.JIT,
            testing.GRADIENT,
            testing.NON_NEGATIVE,
            testing.ZERO_AT_EQUALITY,
            testing.FLAT_AT_EQUALITY,
        ),
        {"kinds": {"student_head": "other", "teacher_head": "other"}},
    ),
}
