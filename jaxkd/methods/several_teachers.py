"""Several teachers of one student: a term for each of them, and weights that say which of them an example listens to.

The teachers are members of one model, `models.ensemble` (of any architectures) or `models.stacked` (of one), whose
variables `models.join` or `models.stack` makes of those of the trained teachers:

    kd = lambda m, weigh: objectives.from_outputs(
        losses.kd, "student.logits", f"teacher.{m}/logits", weigh=weigh, temperature=4.0)
    term = several_teachers.each(kd, 3, several_teachers.by_confidence())

A term of features, `objectives.from_features(..., teacher=f"{m}/pooled", weigh=weigh)`, makes hints of several teachers
in the same way. Means of logits or of probabilities need no term of their own: they are what the ensemble says, by its
`combine=`, to `objectives.from_logits`. Weights that are trained are `objectives.learned_teachers`. A chain of
assistants is a sequence of trainings, in each of which the student of the one before is the teacher (Mirzadeh et al.,
"Improved Knowledge Distillation via Teacher Assistant", AAAI 2020).

Weights are functions (student's outputs, teachers' logits [M, B, ..., K], batch) -> [M, B, ...], not negative, which
sum to 1 over the teachers. They are symmetric: teachers in another order get the same weights in that order. So
identical teachers give that teacher, and one teacher gives plain distillation.

Reference:
  You, Xu, Xu, Tao, "Learning from Multiple Teacher Networks", KDD 2017, https://doi.org/10.1145/3097983.3098135
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxkd import numerics, objectives
from jaxkd.labels import check_labels, label_field, of_classes
from jaxkd.objectives import Weigh
from jaxkd.types import Batch, Outputs, Term

Weights: TypeAlias = Callable[[Outputs, jax.Array, Batch], jax.Array]
"""(student's outputs, teachers' logits [M, B, ..., K], batch) -> [M, B, ...], which sum to 1 over the teachers."""


def equal() -> Weights:
    """Equal weights of all teachers: the mean of their terms.

    w_m = 1 / M

    Returns:
      Weights for `each`.
    """
    return lambda student, z, batch: jnp.full(z.shape[:-1], 1 / z.shape[0], z.dtype)


def by_confidence(*, label: str = "label", ignore: int | None = None) -> Weights:
    """Weights by the cross-entropy of each teacher with the example's label, as in CA-MKD.

    w_m = (1 - exp(CE_m) / sum_j exp(CE_j)) / (M - 1),  CE_m = -log p_m(label);  1 for one teacher

    With two teachers w_m is the other's share; the more teachers, the closer all weights are to each other.

    Args:
      label: Field of the batch with the labels, integers [B, ...].
      ignore: Label of what does not count; none if None.

    Returns:
      Weights for `each`; NaN where the label is no class.

    Reference:
      Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022,
      https://arxiv.org/abs/2201.00007
    """

    def weights(student: Outputs, z: jax.Array, batch: Batch) -> jax.Array:
        y = check_labels(z[0], label_field(batch, label), ignore)
        log_p = numerics.log_softmax(z)
        cross_entropy = jnp.stack([-numerics.pick(one, y.values) for one in log_p])
        if z.shape[0] == 1:
            shares = jnp.ones_like(cross_entropy)
        else:
            shares = (1 - jax.nn.softmax(cross_entropy, axis=0)) / (z.shape[0] - 1)
        return jnp.stack([y.mark(share) for share in shares])

    return weights


def by_entropy(*, scale: float = 1.0) -> Weights:
    """Weights by the entropy of each teacher's answer: the surer a teacher is of an example, the more it counts.

    w_m = softmax_m( -H(p_m) / scale )

    The paper divides by the entropies instead, which gives all weight to a teacher that is quite sure.

    Args:
      scale: Nats by which an entropy has to be lower for a weight that is e times as large, > 0.

    Returns:
      Weights for `each`.

    Raises:
      ValueError: If the scale is not positive.

    Reference:
      Kwon, Na, Lee, Kim, "Adaptive Knowledge Distillation Based on Entropy", ICASSP 2020,
      https://doi.org/10.1109/ICASSP40776.2020.9054698
    """
    _check_scale(scale)

    def weights(student: Outputs, z: jax.Array, batch: Batch) -> jax.Array:
        log_p = numerics.log_softmax(z)
        p = jnp.exp(log_p)
        return jax.nn.softmax(jnp.sum(numerics.xlogy(p, p), axis=-1) / scale, axis=0)

    return weights


def by_agreement(*, scale: float = 0.25) -> Weights:
    """Weights by the agreement of each teacher with the others: one that is alone with its answer counts less.

    w_m = softmax_m( -d_m / scale ),  d_m = sum_{j != m} TV(p_m, p_j) / (M - 1),  TV(p, q) = sum_k |p_k - q_k| / 2

    Of two teachers both agree with the other equally, so that it takes three for other than equal weights.

    Args:
      scale: Mean distance in 0..1 by which a teacher has to be closer for a weight that is e times as large, > 0.

    Returns:
      Weights for `each`.

    Raises:
      ValueError: If the scale is not positive.
    """
    _check_scale(scale)

    def weights(student: Outputs, z: jax.Array, batch: Batch) -> jax.Array:
        p = jnp.exp(numerics.log_softmax(z))
        apart = sum(jnp.sum(jnp.abs(p - other[None]), axis=-1) for other in p) / 2
        return jax.nn.softmax(-apart / (max(z.shape[0] - 1, 1) * scale), axis=0)

    return weights


def by_tag(field: str = "teacher") -> Weights:
    """Weights by a tag of the example, the number of the only teacher that counts, such as that of its language.

    w_m = 1 if tag = m, else 0

    Args:
      field: Field of the batch with the tags, integers [B, ...] in 0..M-1.

    Returns:
      Weights for `each`; NaN where the tag is no teacher.

    Raises:
      ValueError: By the term, if the batch has no such field, or it is not of integers over the rows of the logits.
    """

    def weights(student: Outputs, z: jax.Array, batch: Batch) -> jax.Array:
        tag = jnp.asarray(label_field(batch, field))
        rows = z.shape[1:-1]
        if not jnp.issubdtype(tag.dtype, jnp.integer) or tag.shape != rows[: tag.ndim]:
            raise ValueError(
                f"the tags {field!r} have shape {tag.shape} and dtype {tag.dtype} but logits have shape {z.shape[1:]}: "
                f"give the number of a teacher, an integer in 0..{z.shape[0] - 1}, for each example."
            )
        tags = of_classes(tag, z.shape[0])
        chosen = [tags.mark((tags.values == m).astype(z.dtype)) for m in range(z.shape[0])]
        return jnp.stack([jnp.broadcast_to(numerics.per_example(x, z[0, ..., 0]), rows) for x in chosen])

    return weights


def each(make: Callable[[int, Weigh], Term], members: int, weights: Weights | None = None) -> Term:
    """Sum of the terms of several teachers, each example's value weighted by the weights of the teachers.

    sum_m mean_b( w_m(b) loss(student(b), teacher_m(b)) )

    Args:
      make: (number m of the teacher, factor w_m for the term's `weigh`) -> the term of that teacher, with paths such as
        `teacher.0/logits`; of one loss that gives a value for each example.
      members: M, the number of teachers.
      weights: Weights of the teachers; `equal()` if None.

    Returns:
      A term; the terms of the teachers are called `teacher0`, `teacher1`, ... in its variables and metrics.

    Raises:
      ValueError: If there is no teacher; by the term, if the loss couples the batch or the teacher
        has another number of members.
    """
    if members < 1:
        raise ValueError(f"members is {members}: give the number of teachers, at least 1.")
    found = equal() if weights is None else weights

    def share(m: int) -> Weigh:
        def weigh(student: Outputs, teacher: Outputs, batch: Batch) -> jax.Array:
            if f"{members}/logits" in teacher.features:
                raise ValueError(f"the teacher has more than {members} members: give each() as many as it has.")
            logits = [objectives.pick(teacher, f"{i}/logits", "teacher") for i in range(members)]
            return found(student, jnp.stack(numerics.promote(*logits)), batch)[m]

        return weigh

    return objectives.weighted(**{f"teacher{m}": make(m, share(m)) for m in range(members)})


def _check_scale(scale: float) -> None:
    """Refuses a scale of weights that is not positive."""
    if not scale > 0:
        raise ValueError(f"the scale of the teachers' weights is {scale}: give a positive number.")
