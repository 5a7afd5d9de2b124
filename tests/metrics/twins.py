"""Float64 twins of the metrics in NumPy, cases to compare them on, and one compiled program of all metrics."""

import functools

import jax
import numpy as np

from jaxkd import metrics
from jaxkd.types import Outputs

K = 6


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def classes(label, logits):
    return label if label.ndim < logits.ndim else label.argmax(axis=-1)


def accuracy(s, t, y):
    return s.argmax(axis=-1) == classes(y, s)


def top_2(s, t, y):
    best = np.argsort(-s, axis=-1)[..., :2]
    return (best == classes(y, s)[..., None]).any(axis=-1)


def nll(s, t, y):
    return -np.log(np.take_along_axis(softmax(s), y[..., None], axis=-1)[..., 0])


def agreement(s, t, y):
    return s.argmax(axis=-1) == t.argmax(axis=-1)


def kl(s, t, y):
    p, q = softmax(t), softmax(s)
    return (p * np.log(p / q)).sum(axis=-1)


def ece(s, t, y, weight, bins=15):
    """Bin by bin: ((m - 1) / M, m / M]."""
    confidence, hit = softmax(s).max(axis=-1), accuracy(s, t, y)
    total = 0.0
    for m in range(bins):
        w = weight * (confidence > m / bins) * (confidence <= (m + 1) / bins)
        if w.sum():
            total += w.sum() * abs((w * hit).sum() / w.sum() - (w * confidence).sum() / w.sum())
    return total / weight.sum()


def total_variation(s, t, y):
    return np.abs(softmax(s) - softmax(t)).sum(axis=-1) / 2


def agreement_at_3(s, t, y):
    best = [np.argsort(-z, axis=-1)[..., :3].reshape(-1, 3) for z in (s, t)]
    return np.array([len(set(a) & set(b)) / 3 for a, b in zip(*best, strict=True)]).reshape(s.shape[:-1])


def brier(s, t, y):
    return ((softmax(s) - np.eye(K)[y]) ** 2).sum(axis=-1)


# Each metric, and its value of every example in float64.
TWINS = {
    "accuracy": (metrics.accuracy, accuracy),
    "top_2": (metrics.top_k(2), top_2),
    "nll": (metrics.nll, nll),
    "agreement": (metrics.agreement, agreement),
    "kl": (metrics.kl_to_teacher, kl),
    "total_variation": (metrics.total_variation, total_variation),
    "agreement_at_3": (metrics.agreement_at(3), agreement_at_3),
    "brier": (metrics.brier, brier),
}

ALL = {**{name: metric for name, (metric, _) in TWINS.items()}, "ece": metrics.calibration()}

SOFT = ("accuracy", "top_2", "ece")  # those that take soft labels


def twin(name, s, t, y, weight=None):
    weight = np.ones(s.shape[:-1]) if weight is None else np.broadcast_to(weight, s.shape[:-1]).astype(np.float64)
    s, t = s.astype(np.float64), t.astype(np.float64)
    if name == "ece":
        return ece(s, t, y, weight)
    return (TWINS[name][1](s, t, y) * weight).sum() / weight.sum()


def case(shape=(40,), seed=0):
    """Logits of a student and a teacher that is close to it, labels that are often right."""
    rng = np.random.default_rng(seed)
    s = rng.normal(0, 2, (*shape, K)).astype(np.float32)
    t = s + rng.normal(0, 1, s.shape).astype(np.float32)
    return s, t, (s + rng.normal(0, 2, s.shape)).argmax(axis=-1).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def measure_all(names, student, teacher, batch):
    return {name: ALL[name](Outputs(student), Outputs(teacher), batch) for name in names}


def measure(name, s, t, y, **fields):
    """One metric, from a program of all that take such labels, which is compiled once for each shape."""
    names = tuple(ALL) if np.ndim(y) < np.ndim(s) else SOFT
    return measure_all(names if name in names else (name,), s, t, {"label": y, **fields})[name]


def add(parts):
    return functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), parts)
