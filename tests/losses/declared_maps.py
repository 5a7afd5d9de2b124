"""What holds of the feature-map losses."""

import functools

import numpy as np
from losses.declaration import Declaration

from jaxkd import testing as t
from jaxkd.losses import flows, maps
from jaxkd.losses.maps import ofd, vid

SHAPE = (4, 3, 4, 5)
# Norms and absolute values of a difference have their kink at equality, where rounding chooses the gradient.
KINKED = (t.NON_NEGATIVE, t.ZERO_AT_EQUALITY)
DISTANCE = (*KINKED, t.FLAT_AT_EQUALITY)
ATTENTION = (*t.FEATURES, *KINKED, t.SYMMETRIC, t.SCALE_INVARIANT, t.ROTATION_INVARIANT)


def pair(shape=SHAPE, seed=0):
    return lambda: tuple(np.random.default_rng(seed).standard_normal((2, *shape)))


def of_layers(loss):
    """The same loss of stacked maps [B, layers, H, W, C], which the kit can vary as one array."""

    @functools.wraps(loss)
    def stacked(student, teacher):
        return loss(*([x[:, i] for i in range(x.shape[1])] for x in (student, teacher)))

    return stacked


def of_channels(loss, seed):
    """The same loss with the one negative number a channel that it takes beside the two maps."""
    channels = -np.abs(np.random.default_rng(seed).standard_normal(SHAPE[-1]))

    @functools.wraps(loss)
    def bound(student, teacher):
        dtype = np.float64 if student.dtype == np.float64 else np.float32
        return loss(student, teacher, channels.astype(dtype))

    return bound


DECLARED = {
    maps.attention_transfer: Declaration(pair(), ATTENTION),
    maps.ft_repdistiller: Declaration(pair(), ATTENTION),
    maps.nst: Declaration(
        pair(), (*t.FEATURES, *DISTANCE, t.SYMMETRIC, t.SCALE_INVARIANT, t.CLASS_PERMUTATION_INVARIANT)
    ),
    maps.ab: Declaration(pair(), (*t.FEATURES, t.NON_NEGATIVE, t.CLASS_PERMUTATION_INVARIANT)),
    maps.ft: Declaration(pair(), (*t.FEATURES, *KINKED, t.SYMMETRIC, t.SCALE_INVARIANT, t.CLASS_PERMUTATION_INVARIANT)),
    of_layers(flows.fsp): Declaration(
        pair((4, 2, 3, 4, 5)), (*t.FEATURES, *DISTANCE, t.SYMMETRIC, t.JOINT_ROTATION_INVARIANT)
    ),
    of_layers(flows.kdsvd): Declaration(
        pair((4, 2, 2, 2, 3)), (*t.FEATURES, *DISTANCE, t.SCALE_INVARIANT, t.CLASS_PERMUTATION_INVARIANT)
    ),
    of_channels(ofd, 1): Declaration(pair(), (*t.FEATURES, *DISTANCE)),
    of_channels(vid, 2): Declaration(pair(), (*t.FEATURES, t.FLAT_AT_EQUALITY, t.SYMMETRIC, t.JOINT_SHIFT_INVARIANT)),
}
