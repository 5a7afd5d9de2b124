"""How terms are made for a pair of networks: each function here gives one that takes the pair."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from _benchmark import share
from _pair import Pair, preacts
from _per_pair import BETA, CAT, REVIEW

from jaxkd import losses, models, objectives, parallel
from jaxkd.experiment.trainer import variables_of


class Method(NamedTuple):
    """label * cross-entropy + weight * term + kd * KD at T = 4, over the benchmark's 240 epochs.

    Some have 30 epochs before: the term by itself, if it comes `first`, and then the labels by themselves; or another
    term, `before`, whose params the term finds in the pair. Some train a network `around` the student.
    """

    make: Callable[[Pair], Any]
    weight: float = 1.0
    source: str = ""
    label: float = 1.0
    kd: float = 0.0
    first: bool = False
    before: Callable[[Pair], Any] | None = None
    around: Callable[[Pair, Any], Any] = lambda pair, student: student


def begin(method, name, pair, train, points):
    """The pair with what a method trains before, and where students start then; `train` a stage by its name."""
    if method.first:
        return pair, variables_of(train(f"{name}-before", term=method.make(pair), points=points, before="student"))
    if method.before:
        state = train(f"{name}-before", term=method.before(pair), before="term")
        return pair._replace(begun=state.params["term"]), None
    return pair, None


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
    return lambda p: objectives.from_features(
        loss, student=p.students[stage], teacher=p.teachers[stage], pool=True, **options
    )


def every(loss, **hyper):
    return lambda p: objectives.from_outputs(
        loss, objectives.features_of("student", p.students), objectives.features_of("teacher", p.teachers), **hyper
    )


def pooled(loss, **options):
    return lambda p: objectives.from_features(loss, student="pooled", teacher="pooled", **options)


def unactivated(term, **options):
    return lambda p: term(
        students=preacts(p.students), teachers=preacts(p.teachers), **{name: get(p) for name, get in options.items()}
    )


def factors(loss, **hyper):
    return lambda p: objectives.ft(
        student=p.students[-1], teacher=p.teachers[-1], paraphraser=p.begun["encoder"], loss=loss, **hyper
    )


def vid(p):
    layers = {s: objectives.vid(student=s, teacher=t) for s, t in zip(p.students, p.teachers, strict=True)}
    return objectives.weighted(**layers)


def warmed(p, term, weight=1.0):
    """The term's weight rises over the first 20 epochs."""
    return objectives.weighted(warmed=(optax.linear_schedule(weight / 20, weight, share(p.steps, 20)), term))


def dkd(p):
    return warmed(p, labelled(losses.dkd, alpha=1.0, beta=BETA.get(p.names, 8.0), temperature=4.0)(p))


def review(p):
    stages = dict(students=[*p.students, "pooled"], teachers=[*preacts(p.teachers), "pooled"])
    return warmed(p, objectives.review(**stages), REVIEW.get(p.names, 1.0))


def cat_kd(p):
    weight, resolution, normalize = CAT.get(p.names, (1.0, 2, True))
    return objectives.weighted(maps=(weight, objectives.cat_kd(resolution=resolution, normalize=normalize)))


def ctkd(p):
    return objectives.curriculum_temperature(strength=objectives.cosine_ramp(share(p.steps, 10)))


reused = lambda p, s: models.reuse_classifier(s, p.classifier, size=p.size, axis_name=parallel.DATA)  # noqa: E731
paraphraser = lambda p: objectives.paraphrase(teacher=p.teachers[-1])  # noqa: E731
to_128 = dict(project=objectives.linear(width=128), project_teacher=objectives.linear(width=128))
to_teacher = dict(project=objectives.linear())
