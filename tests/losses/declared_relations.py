"""What holds of the relational, contrastive and dense losses."""

import functools

import numpy as np
from losses.declaration import Declaration

from jaxkd import testing as t
from jaxkd.losses import contrastive, dense, relations

B, D, MAP = 6, 5, (4, 4, 5, 3)
EQUAL = (t.ZERO_AT_EQUALITY, t.FLAT_AT_EQUALITY)
DISTANCE = (t.NON_NEGATIVE, *EQUAL)
COUPLED = (*t.COUPLED, t.BATCH_OF_ONE, t.NON_NEGATIVE)
SHAPES = (*COUPLED, *EQUAL, t.SYMMETRIC, t.ROTATION_INVARIANT)
POINTS = (*COUPLED, t.SCALE_INVARIANT)


def draw(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def pair(*shape, scale=1.0):
    return lambda: tuple(draw(2, *shape, seed=1, scale=scale))


def bound(loss, **arguments):
    """The loss with arguments that have no batch axis."""

    @functools.wraps(loss)
    def call(*inputs):
        return loss(*inputs, **arguments)

    return call


def bank(rows=9):
    student, teacher = draw(2, rows, D, seed=2)
    return contrastive.CRDBank(student, teacher, np.float64(7), np.float64(11))


def context(width=MAP[-1], hidden=2):
    shapes = ((width,), (), (width, hidden), (hidden,), (hidden,), (hidden,), (hidden, width), (width,))
    return dense.Context(*(draw(*shape, seed=3 + i) for i, shape in enumerate(shapes)))


def labels():
    return np.random.default_rng(4).integers(-1, 4, (MAP[0], 8, 7))


def boxes():
    corners = np.random.default_rng(5).uniform(0, 60, (MAP[0], 2, 2))
    return np.concatenate([corners, corners + 20], axis=-1)


DECLARED = {
    relations.sp: Declaration(pair(B, 2, D), (*SHAPES, t.SCALE_INVARIANT)),
    relations.rkd_distance: Declaration(pair(B, D), (*SHAPES, t.SCALE_INVARIANT)),
    relations.rkd_angle: Declaration(pair(B, D), (*SHAPES, t.SCALE_INVARIANT)),
    relations.rkd: Declaration(pair(B, D), (*SHAPES, t.SCALE_INVARIANT)),
    relations.cc: Declaration(pair(B, D, scale=0.5), SHAPES),
    relations.cc_neighbours: Declaration(
        pair(B, D), (*(p for p in COUPLED if p is not t.BATCH_PERMUTATION), *EQUAL, t.SYMMETRIC)
    ),
    relations.pkt: Declaration(pair(B, D), (*COUPLED, t.ZERO_AT_EQUALITY, t.ROTATION_INVARIANT)),
    relations.dark_rank_hard: Declaration(pair(B, D, scale=0.3), (*COUPLED, t.ROTATION_INVARIANT)),
    bound(relations.dark_rank_soft, length=3): Declaration(
        pair(B, D, scale=0.3), (*COUPLED, *EQUAL, t.ROTATION_INVARIANT)
    ),
    bound(contrastive.crd, bank=bank()): Declaration(
        lambda: (*draw(2, B, D), np.random.default_rng(6).integers(0, 9, (B, 4))),
        (*t.FEATURES, t.NON_NEGATIVE, t.SCALE_INVARIANT),
        {"kinds": {"indices": "other"}},
    ),
    contrastive.info_nce: Declaration(pair(B, D), (*POINTS, t.JOINT_ROTATION_INVARIANT)),
    bound(contrastive.info_nce_queue, queue=draw(7, D)): Declaration(
        pair(B, D), (*t.FEATURES, t.NON_NEGATIVE, t.SCALE_INVARIANT)
    ),
    contrastive.clip: Declaration(pair(B, D), (*POINTS, t.JOINT_ROTATION_INVARIANT, t.SYMMETRIC)),
    contrastive.clip_affinity: Declaration(lambda: (*draw(2, B, D), *draw(2, B, D + 1)), POINTS),
    dense.pixel_kd: Declaration(
        pair(*MAP),
        (
            *t.FEATURES,
            *DISTANCE,
            t.EXTREME_LOGITS,
            t.MASKED_CLASSES,
            t.SHIFT_INVARIANT,
            t.CLASS_PERMUTATION_INVARIANT,
        ),
    ),
    dense.cwd: Declaration(pair(*MAP), (*t.FEATURES, *DISTANCE, t.EXTREME_LOGITS, t.CLASS_PERMUTATION_INVARIANT)),
    bound(dense.ifvd, num_classes=3): Declaration(
        lambda: (*draw(2, *MAP), labels()),
        (*t.FEATURES, *DISTANCE, t.SYMMETRIC, t.SCALE_INVARIANT, t.ROTATION_INVARIANT),
        {"kinds": {"labels": "other"}},
    ),
    dense.ld: Declaration(pair(B, 4, D), (*t.LOGITS, *DISTANCE, t.SHIFT_INVARIANT, t.CLASS_PERMUTATION_INVARIANT)),
    bound(
        dense.fgd,
        student_context=context(),
        teacher_context=context(),
        image_shape=(80, 90),
        alpha=1.0,
        beta=1.0,
        gamma=1.0,
        lambda_=1.0,
    ): Declaration(lambda: (*draw(2, *MAP), boxes()), (*t.FEATURES, *DISTANCE), {"kinds": {"boxes": "other"}}),
}
