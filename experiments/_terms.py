"""How terms are made for a pair of networks: each function here gives one that takes the pair."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _benchmark import EPOCHS

from jaxkd import losses, models, objectives

BETA = {("resnet56", "resnet20"): 2.0, ("resnet110", "resnet32"): 2.0, ("wrn_40_2", "wrn_16_2"): 6.0,
        ("wrn_40_2", "wrn_40_1"): 6.0, ("vgg13", "vgg8"): 6.0, ("vgg13", "MobileNetV2"): 6.0}  # fmt: skip
"""DKD's beta where it is not 8 (M)."""


class Pair(NamedTuple):
    """What methods may ask about two networks and their data."""

    names: tuple[str, str]  # of teacher and student
    students: Sequence[str]  # the student's stages, shallow first
    teachers: Sequence[str]  # as many of the teacher's
    alike: bool  # whether both have the same channels in each stage
    classifier: tuple[Any, Any]  # kernel and bias of the teacher's last layer
    norms: Sequence[tuple[Any, Any]]  # deviation and mean [C] of the teacher's stages before their ReLUs
    examples: int  # that are trained on
    labels: Any  # [N] of all of them, or None
    steps: int  # updates


def tempered(loss, **hyper):
    return lambda p: objectives.from_logits(loss, **hyper)


def labelled(loss, **hyper):
    return lambda p: objectives.from_outputs(loss, "student.logits", "teacher.logits", "batch.label", **hyper)


def kept(loss):
    def of_the_top(s, t):
        top = models.keep_top_k(t, min(20, t.shape[-1]))
        return loss(s, top["top_ids"], top["top_logprobs"])

    return tempered(of_the_top)


def standardized(s, t, *, temperature):
    return losses.kd(losses.standardize_logits(s), losses.standardize_logits(t), temperature=temperature)


def one(loss, stage=-1, **options):
    return lambda p: objectives.from_features(loss, student=p.students[stage], teacher=p.teachers[stage],
                                              pool=True, **options)  # fmt: skip


def every(loss, **hyper):
    return lambda p: objectives.from_outputs(loss, objectives.features_of("student", p.students),
                                             objectives.features_of("teacher", p.teachers), **hyper)  # fmt: skip


def pooled(loss, **options):
    return lambda p: objectives.from_features(loss, student="pooled", teacher="pooled", **options)


def pairs(term, **options):
    return lambda p: term(students=p.students, teachers=p.teachers, **options)


def preacts(term, **options):
    names = lambda stages: [f"{name}_preact" for name in stages]  # noqa: E731
    return lambda p: term(students=names(p.students), teachers=names(p.teachers),
                          **{name: get(p) for name, get in options.items()})  # fmt: skip


def vid(p):
    layers = {s: objectives.vid(student=s, teacher=t) for s, t in zip(p.students, p.teachers, strict=True)}
    return objectives.weighted(**layers)


def dkd(p):
    warm = optax.linear_schedule(1 / 20, 1.0, max(1, p.steps * 20 // EPOCHS))
    kind = labelled(losses.dkd, alpha=1.0, beta=BETA.get(p.names, 8.0), temperature=4.0)
    return objectives.weighted(warmed=(warm, kind(p)))


to_128 = dict(project=objectives.linear(width=128), project_teacher=objectives.linear(width=128))
to_teacher = dict(project=objectives.linear())


def describe(names, networks, variables, batch, *, examples, steps, labels=None):
    """The pair of a teacher and a student, in this order; the norms are measured on the batch."""
    (teacher, student), known = networks, variables

    def channels(model):
        made = jax.eval_shape(model.init, jax.random.key(0), batch)
        features = jax.eval_shape(lambda v, b: model.apply(v, b, None, False)[0].features, made, batch)
        return {n: features[n].shape[-1] for n in sorted(features) if n.startswith("stage") and n[5:].isdecimal()}

    @jax.jit
    def look(known, batch):
        features = teacher.apply(known, batch, None, False)[0].features
        return [
            (jnp.std(features[f"{n}_preact"], (0, 1, 2)), jnp.mean(features[f"{n}_preact"], (0, 1, 2))) for n in other
        ]

    own, other = channels(student), channels(teacher)
    number = min(len(own), len(other))  # the deepest ones, where one has more
    alike = list(own.values())[-number:] == list(other.values())[-number:]
    own, other = list(own)[-number:], list(other)[-number:]
    head = known.params["head"]
    classifier = (head["kernel"], head["bias"])
    return Pair(names, own, other, alike, classifier, look(known, batch), examples, labels, steps)
