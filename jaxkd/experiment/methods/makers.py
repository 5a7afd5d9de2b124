"""Makers of terms: each function here returns, or is, a function that makes a term for a pair of networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from jaxkd import losses, models, objectives, parallel
from jaxkd.experiment.methods.pair import Pair, preacts
from jaxkd.experiment.methods.tuned import BETA, CAT, REVIEW
from jaxkd.types import Model, Term

Loss: TypeAlias = Callable[..., Any]
Maker: TypeAlias = Callable[[Pair], Term]
EPOCHS = 240
"""Epochs of the CIFAR-100 distillation benchmark, for which the weights were tuned."""


class Method(NamedTuple):
    """The objective label * cross-entropy + weight * term + kd * KD at T = 4.

    Attributes:
      make: Maker of the term.
      weight: Weight of the term.
      source: Letter of the source of the weight (see `table`); empty if nobody tuned it.
      label: Weight of the cross-entropy with the labels.
      kd: Weight of the tempered soft labels.
      term_first: The student learns from the term alone in a phase of its own, and then from the labels alone.
      pretrain: Maker of another term that is trained in a phase of its own; its parameters are `Pair.pretrained`.
      wrap: (pair, student) -> the network that is trained.
    """

    make: Maker
    weight: float = 1.0
    source: str = ""
    label: float = 1.0
    kd: float = 0.0
    term_first: bool = False
    pretrain: Maker | None = None
    wrap: Callable[[Pair, Model], Model] = lambda pair, student: student


def scaled(total: int, epochs: int) -> int:
    """Scales a number of the benchmark's 240 epochs to a training of another length.

    Args:
      total: Length of the training, in epochs or in steps.
      epochs: Epochs of the benchmark.

    Returns:
      As large a part of `total` as `epochs` is of 240, in the unit of `total`; at least 1.
    """
    return max(1, round(total * epochs / EPOCHS))


def on_logits(loss: Loss, **hyper: Any) -> Maker:
    """A loss of both logits.

    Args:
      loss: (student's logits, teacher's logits, **hyper) -> values.
      **hyper: Its hyper-parameters.

    Returns:
      The maker.
    """
    return lambda pair: objectives.from_logits(loss, **hyper)


def on_logits_and_labels(loss: Loss, **hyper: Any) -> Maker:
    """A loss of both logits and the labels.

    Args:
      loss: (student's logits, teacher's logits, labels, **hyper) -> values.
      **hyper: Its hyper-parameters.

    Returns:
      The maker.
    """
    return lambda pair: objectives.from_outputs(loss, "student.logits", "teacher.logits", "batch.label", **hyper)


def on_top_logits(loss: Loss) -> Maker:
    """A loss of the student's logits and the teacher's top 20.

    Args:
      loss: (student's logits, ids of the top classes, their log-probabilities) -> values.

    Returns:
      The maker.
    """

    def of_the_top(s: jax.Array, t: jax.Array) -> Any:
        top = models.keep_top_k(t, min(20, t.shape[-1]))
        return loss(s, top["top_ids"], top["top_logprobs"])

    return on_logits(of_the_top)


def on_stage(loss: Loss, stage: int = -1, **options: Any) -> Maker:
    """A loss of one stage, by default the last, on the smaller of both maps.

    Args:
      loss: (student's map, teacher's map, **hyper) -> values.
      stage: Index of the stage.
      **options: Options of `objectives.from_features`, and hyper-parameters.

    Returns:
      The maker.
    """
    return lambda pair: objectives.from_features(
        loss, student=pair.student_stages[stage], teacher=pair.teacher_stages[stage], pool=True, **options
    )


def on_stages(loss: Loss, **hyper: Any) -> Maker:
    """A loss of all stages.

    Args:
      loss: (student's maps, teacher's maps, **hyper) -> values.
      **hyper: Its hyper-parameters.

    Returns:
      The maker.
    """
    return lambda pair: objectives.from_outputs(
        loss,
        objectives.features_of("student", pair.student_stages),
        objectives.features_of("teacher", pair.teacher_stages),
        **hyper,
    )


def on_pooled(loss: Loss, **options: Any) -> Maker:
    """A loss of the vectors that the last layers read.

    Args:
      loss: (student's vectors, teacher's vectors, **hyper) -> values.
      **options: Options of `objectives.from_features`, and hyper-parameters.

    Returns:
      The maker.
    """
    return lambda pair: objectives.from_features(loss, student="pooled", teacher="pooled", **options)


def on_preacts(term: Callable[..., Term], **options: Callable[[Pair], Any]) -> Maker:
    """A term of all stages before their last ReLU; each option is a function of the pair.

    Args:
      term: Function of `students` and `teachers`, names of features, that makes the term.
      **options: Name of another argument -> function of the pair that gives it.

    Returns:
      The maker.
    """
    return lambda pair: term(
        students=preacts(pair.student_stages),
        teachers=preacts(pair.teacher_stages),
        **{name: get(pair) for name, get in options.items()},
    )


def standardized_kd(s: jax.Array, t: jax.Array, *, temperature: float) -> jax.Array:
    """KD of standardised logits (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024).

    Args:
      s: Logits of the student [B, K].
      t: Logits of the teacher [B, K].
      temperature: Softmax temperature T after the standardisation.

    Returns:
      Values [B].
    """
    return losses.kd(losses.standardize_logits(s), losses.standardize_logits(t), temperature=temperature)


def factors(loss: Loss, **hyper: Any) -> Maker:
    """Factor transfer of the last stage, with the paraphraser that was trained before.

    Args:
      loss: (student's factor, teacher's factor, **hyper) -> [B].
      **hyper: Hyper-parameters of the loss.

    Returns:
      The maker.
    """
    return lambda pair: objectives.ft(
        student=pair.student_stages[-1],
        teacher=pair.teacher_stages[-1],
        paraphraser=pair.pretrained["encoder"],
        loss=loss,
        **hyper,
    )


def paraphraser(pair: Pair) -> Term:
    """The paraphraser of factor transfer, trained on the teacher's last stage.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    return objectives.paraphrase(teacher=pair.teacher_stages[-1])


def vid(pair: Pair) -> Term:
    """Variational information distillation of all stages.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    stages = zip(pair.student_stages, pair.teacher_stages, strict=True)
    return objectives.weighted(**{s: objectives.vid(student=s, teacher=t) for s, t in stages})


def crd(pair: Pair) -> Term:
    """Contrastive representation distillation with negatives of other classes.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    return objectives.crd(
        student="pooled", teacher="pooled", examples=pair.examples, labels=pair.labels(), negatives=16384
    )


def semckd(pair: Pair) -> Term:
    """Semantic calibration: every stage of the student with every stage of the teacher.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    return objectives.semckd(students=pair.student_stages, teachers=pair.teacher_stages)


def warmed(pair: Pair, term: Term, weight: float = 1.0) -> Term:
    """A term whose weight rises over the first 20 epochs.

    Args:
      pair: The networks.
      term: The term.
      weight: Its weight after the rise, which begins at a twentieth of it.

    Returns:
      The weighted term.
    """
    rise = optax.linear_schedule(weight / 20, weight, scaled(pair.steps, 20))
    return objectives.weighted(warmed=(rise, term))


def dkd(pair: Pair) -> Term:
    """Decoupled distillation with the beta of the pair.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    return warmed(
        pair, on_logits_and_labels(losses.dkd, alpha=1.0, beta=BETA.get(pair.names, 8.0), temperature=4.0)(pair)
    )


def review(pair: Pair) -> Term:
    """Knowledge review of all stages and the pooled vector, with the weight of the pair.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    students, teachers = [*pair.student_stages, "pooled"], [*preacts(pair.teacher_stages), "pooled"]
    return warmed(pair, objectives.review(students=students, teachers=teachers), REVIEW.get(pair.names, 1.0))


def cat_kd(pair: Pair) -> Term:
    """Class attention transfer with the weight and the resolution of the pair.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    weight, resolution, normalize = CAT.get(pair.names, (1.0, 2, True))
    return objectives.weighted(maps=(weight, objectives.cat_kd(resolution=resolution, normalize=normalize)))


def ctkd(pair: Pair) -> Term:
    """KD with a temperature that learns against the student, stronger over the first 10 epochs.

    Args:
      pair: The networks.

    Returns:
      The term.
    """
    return objectives.curriculum_temperature(strength=objectives.cosine_ramp(scaled(pair.steps, 10)))


def reused_classifier(pair: Pair, student: Model) -> Model:
    """The student with the teacher's last layer in place of its own (SimKD).

    Args:
      pair: The networks.
      student: The student.

    Returns:
      The network that is trained.
    """
    return models.reuse_classifier(student, pair.classifier, size=pair.map_size, axis_name=parallel.DATA)


TO_128: dict[str, Any] = {
    "project": objectives.linear(width=128),
    "project_teacher": objectives.linear(width=128),
}
"""Options of a loss that compares linear projections of both sides to 128 units."""
TO_TEACHER: dict[str, Any] = {"project": objectives.linear()}
"""Options of a loss that compares a linear projection of the student with the teacher."""
