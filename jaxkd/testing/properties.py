"""Properties that a loss can be checked for, and the tuples of them that each kind of loss should have."""

from __future__ import annotations

from typing import NamedTuple

from jaxkd.testing import numeric, relations
from jaxkd.testing.case import Check


class Property(NamedTuple):
    """A named check; make your own from any function of this signature.

    Attributes:
      name: Name in the report.
      check: (case, arrays) -> Finding, NotRun, or None where it held. `arrays` are the example inputs, or simpler ones
        while a counter-example is made smaller.
    """

    name: str
    check: Check


KEEPS_LEADING_AXES = Property(
    "keeps leading axes", numeric.shape(lambda s: s[:-1], "one value for each row of classes")
)
ONE_VALUE_PER_EXAMPLE = Property("one value per example", numeric.shape(lambda s: s[:1], "one value for each example"))
SCALAR = Property("scalar", numeric.shape(lambda s: (), "a scalar"))
DTYPE = Property("dtype", numeric.dtype)
RANK_PROMOTION = Property("no rank promotion", numeric.strict(rank_promotion="raise"))
DTYPE_PROMOTION = Property("no dtype promotion", numeric.strict(dtype_promotion="strict"))

FINITE = Property("finite", numeric.finite)
FINITE_AT_EQUALITY = Property("finite at equality", numeric.finite_at_equality)
EQUAL_ROWS = Property("equal rows", numeric.equal_rows)
ZERO_ROWS = Property("zero rows", numeric.zero_rows)
BATCH_OF_ONE = Property("batch of one", numeric.batch_of_one)
EXTREME_LOGITS = Property("extreme logits", numeric.extreme_logits)
MASKED_CLASSES = Property("masked classes", numeric.masked_classes)
LABELS_OUTSIDE = Property("labels outside", numeric.labels_outside)

ZERO_AT_EQUALITY = Property("zero at equality", numeric.zero_at_equality)
FLAT_AT_EQUALITY = Property("zero gradient at equality", numeric.flat_at_equality)
NON_NEGATIVE = Property("non-negative", numeric.non_negative)

SYMMETRIC = Property(
    "symmetric", relations.invariant("swapping the sides must not change the value", relations.swapped_sides)
)
SHIFT_INVARIANT = Property(
    "shift invariance",
    relations.invariant(
        "a constant added to each row of a side must not change the value",
        relations.per_side("shifting", relations.shift),
    ),
)
JOINT_SHIFT_INVARIANT = Property(
    "joint shift invariance",
    relations.invariant(
        "a constant added to each row of all sides must not change the value",
        relations.jointly("shifting", relations.shift),
    ),
)
SCALE_INVARIANT = Property(
    "scale invariance",
    relations.invariant(
        "a positive factor on a side must not change the value",
        relations.per_side("scaling", lambda a: 2.5 * a, lambda a: 0.3 * a),
    ),
)
ROTATION_INVARIANT = Property(
    "rotation invariance",
    relations.invariant(
        "a rotation of a side's feature axis must not change the value",
        relations.per_side("rotating", relations.rotate),
    ),
)
JOINT_ROTATION_INVARIANT = Property(
    "joint rotation invariance",
    relations.invariant(
        "one rotation of the feature axis of all sides must not change the value",
        relations.jointly("rotating", relations.rotate),
    ),
)
CLASS_PERMUTATION_INVARIANT = Property(
    "class permutation invariance",
    relations.invariant("one order of the classes must be as good as another", relations.permuted_classes),
)

BATCH_PERMUTATION = Property("batch permutation", relations.batch_permutation)
INDEPENDENT_ROWS = Property("independent rows", relations.independent_rows)
COUPLES_THE_BATCH = Property("couples the batch", relations.coupling)
ACCUMULATION = Property("accumulation", relations.accumulation)
LEADING_AXES = Property("leading axes", relations.leading_axes)

JIT = Property("jit", relations.jit)
VMAP = Property("vmap", relations.vmap)
PMAP = Property("pmap", relations.pmap)
GRADIENT = Property("gradient", relations.derivative(slice(None)))
STUDENT_GRADIENT = Property("gradient in the student", relations.derivative(slice(1)))

ALWAYS = (
    DTYPE,
    RANK_PROMOTION,
    DTYPE_PROMOTION,
    FINITE,
    FINITE_AT_EQUALITY,
    EQUAL_ROWS,
    ZERO_ROWS,
    BATCH_PERMUTATION,
    JIT,
    VMAP,
    PMAP,
    GRADIENT,
)
"""Properties that every loss is expected to have."""

_PER_EXAMPLE = (INDEPENDENT_ROWS, ACCUMULATION, BATCH_OF_ONE)

LOGITS = (*ALWAYS, KEEPS_LEADING_AXES, LEADING_AXES, *_PER_EXAMPLE, EXTREME_LOGITS, MASKED_CLASSES)
"""Properties of a loss on logits, which reduces the class axis and keeps the others."""

FEATURES = (*ALWAYS, ONE_VALUE_PER_EXAMPLE, *_PER_EXAMPLE)
"""Properties of a loss on features, which gives one value for each example."""

COUPLED = (*ALWAYS, SCALAR, COUPLES_THE_BATCH)
"""Properties of a loss that couples the batch and gives a scalar."""

DISTANCE = (NON_NEGATIVE, ZERO_AT_EQUALITY, FLAT_AT_EQUALITY)
"""Properties of a smooth distance: at least 0, and 0 with zero gradient where the sides are equal."""

OF_PROBABILITIES = (SHIFT_INVARIANT, CLASS_PERMUTATION_INVARIANT)
"""Properties of a function of softmax(logits): it ignores a constant added to a row, and the order of the classes."""

OF_DIFFERENCES = (JOINT_SHIFT_INVARIANT, JOINT_ROTATION_INVARIANT, CLASS_PERMUTATION_INVARIANT)
"""Properties of a function of the sides' Euclidean distance: it ignores what is done to both of them alike."""

DIVERGENCE = (*LOGITS, *OF_PROBABILITIES, *DISTANCE)
"""Properties of a divergence between the distributions of two logits."""
