"""Outputs of black boxes: their meaning, and the logits that losses read in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from jaxkd.data.checks import listing
from jaxkd.data.source import Source
from jaxkd.data.splits import say

Gives: TypeAlias = Literal["logits", "probabilities", "classes", "numbers"]
"""Meaning of a teacher's outputs: logits; probabilities; class numbers alone, [N]; numbers that a regressor gives."""

LOGITS = "teacher_logits"
"""Field of a batch that `jaxkd.models.cached` reads."""

LEAST = 1e-6
"""Probability that smaller ones are raised to, since every loss and every derivative is finite at their logarithm."""

_OFF = 0.02  # how far the sum of a row of rounded probabilities may be from 1


class Meaning(NamedTuple):
    """Meaning of a teacher's outputs, and the form that its students need.

    Attributes:
      gives: What the outputs are.
      num_classes: K; 0 if the outputs have to say it.
      several: True for several labels of yes or no at once, each of which has one logit.
      one_logit: True for one logit of class 1 of two classes, the log-odds.
      smoothing: Probability that a hard label leaves to the other classes.
    """

    gives: Gives
    num_classes: int
    several: bool = False
    one_logit: bool = False
    smoothing: float = 0.01


def meaning_of(source: Source, gives: Gives, one_logit: bool, smoothing: float) -> Meaning:
    """Joins what a caller says of a teacher to what its students' source says.

    Args:
      source: The source.
      gives: What the outputs are.
      one_logit: Whether two classes get one logit.
      smoothing: Probability that a hard label leaves to the other classes.

    Returns:
      The meaning.

    Raises:
      ValueError: If they contradict each other.
    """
    if gives not in get_args(Gives):
        raise ValueError(f"gives is {gives!r}: say whether the teacher gives {', '.join(get_args(Gives))}.")
    if not 0 < smoothing < 0.5:
        raise ValueError(f"smoothing is {smoothing}: give a probability above 0 and below 0.5.")
    if (gives == "numbers") != (source.task == "regression") and source.task != "unlabelled":
        raise ValueError(
            f"the teacher gives {gives} but the task of {source.name} is {source.task}: give numbers for a regression "
            "and only there (gives=)."
        )
    of_classes = source.task in ("classification", "unlabelled") and gives != "numbers"
    if one_logit and not (of_classes and source.num_classes in (0, 2)):
        raise ValueError(
            f"one_logit is for two classes, but {source.name} has {source.num_classes} and the task {source.task}: "
            "leave it out."
        )
    if source.task == "multi_label" and gives == "classes":
        raise ValueError(
            f"the teacher gives one class but {source.name} has several labels at once: give a probability for each."
        )
    classes = 2 if one_logit else source.num_classes
    return Meaning(gives, classes, source.task == "multi_label", one_logit, smoothing)


def to_logits(name: str, outputs: np.ndarray, ids: np.ndarray, meaning: Meaning) -> np.ndarray:
    """Turns outputs into what losses read: log-probabilities where a teacher gives probabilities or classes.

    l = log max(p, 1e-6), renormalised; log-odds log p / (1 - p) for yes and no; a class c is p_c = 1 - smoothing and
    p_k = smoothing / (K - 1)

    Args:
      name: The teacher, for messages.
      outputs: [N, ..., K], where K is the only axis that is not 1 it may stand anywhere; [N] of classes, of numbers, or
        of one output.
      ids: Ids of the examples [N].
      meaning: What they are.

    Returns:
      float32 [N, ..., K], finite; [N, ..., 1] for one logit; [N, ..., D] of numbers.

    Raises:
      ValueError: If an output is NaN, infinite, of another shape than the classes ask for, or is not what it should be.
    """
    outputs = np.asarray(outputs)
    if outputs.dtype.kind not in "biuf" or not outputs.ndim or len(outputs) != len(ids):
        raise ValueError(
            f"{name} gave {outputs.dtype} of shape {outputs.shape} for {len(ids)} examples: it should give a row of "
            "numbers for each."
        )
    if meaning.gives == "classes":
        return _of_probabilities(_one_hot(name, outputs, ids, meaning), meaning)
    if sum(side > 1 for side in outputs.shape[1:]) < 2:  # such as [N, K, 1, 1] of a network for images
        outputs = outputs.reshape(len(outputs), -1)
    leading, K = outputs.shape[:-1], outputs.shape[-1]
    each = np.repeat(ids, int(np.prod(leading[1:])))
    found = _each_to_logits(name, outputs.reshape(-1, K), each, meaning)
    return found.reshape(*leading, found.shape[-1])


def _each_to_logits(name: str, outputs: np.ndarray, ids: np.ndarray, meaning: Meaning) -> np.ndarray:
    """Logits [N, K] of outputs [N, K]."""
    values = outputs.astype(np.float64)
    _check(name, values, ids, ~np.isfinite(values), "is NaN or infinite", "correct the teacher or its input")
    _check_width(name, values, meaning)
    if meaning.gives == "numbers":
        return values.astype(np.float32)
    if meaning.gives == "logits":
        return _of_logits(name, values, meaning)
    _check(
        name,
        values,
        ids,
        (values < 0) | (values > 1 + _OFF),
        "is no probability",
        'give probabilities, or say gives="logits"',
    )
    if meaning.several:
        return _log_odds(values)
    if values.shape[1] == 1:
        values = np.concatenate([1 - values, values], axis=1)
    off = np.abs(values.sum(axis=1) - 1) > _OFF
    if off.any():
        raise ValueError(
            f"the probabilities that {name} gives for example {ids[off][0]} sum to {values[off][0].sum():.4g}, not to "
            f"1 (as for {off.sum()} of {len(off)} examples): normalise them."
        )
    return _of_probabilities(values, meaning)


def say_if_probabilities(name: str, logits: np.ndarray, meaning: Meaning) -> None:
    """Says that single outputs which are called logits are rather probabilities, since they all lie in 0..1.

    Args:
      name: The teacher, for the message.
      logits: Some rows of what `to_logits` gave.
      meaning: What the outputs are said to be.
    """
    z = logits[..., 1] - logits[..., 0] if logits.shape[-1] == 2 and not meaning.several else logits
    single = meaning.several or logits.shape[-1] == 1 or (logits.shape[-1] == 2 and (logits.sum(axis=-1) == 0).all())
    if meaning.gives == "logits" and single and ((z >= 0) & (z <= 1)).all():
        say(f'all outputs of {name} lie in 0..1: say gives="probabilities" if they are probabilities of yes.')


def to_top_k(
    name: str, classes: np.ndarray, probabilities: np.ndarray, ids: np.ndarray, num_classes: int
) -> dict[str, np.ndarray]:
    """Checks the classes that a teacher finds likeliest, and adds the mass of all others.

    Args:
      name: The teacher, for messages.
      classes: Integers [N, k]; -1 is padding.
      probabilities: Their probabilities [N, k], 0 at padding.
      ids: Ids of the examples [N].
      num_classes: K.

    Returns:
      The fields of `models.KEPT`: `top_ids` int32, `top_logprobs` and `top_tail` float32.

    Raises:
      ValueError: If a class lies outside 0..K-1 or occurs twice in a row, or probabilities are none.
    """
    if classes.shape != probabilities.shape or classes.ndim != 2:
        raise ValueError(
            f"{name} has top classes of shape {classes.shape} and their probabilities of shape {probabilities.shape}: "
            "give both as [N, k]."
        )
    p, padding = probabilities.astype(np.float64), classes < 0
    _check(name, classes, ids, classes >= num_classes, f"is none of the {num_classes} classes", "number them from 0")
    wrong = ~np.isfinite(p) | (p < 0) | (p > 1 + _OFF) | (padding & (p > 0))
    _check(name, p, ids, wrong, "is no probability of a class", "give numbers in 0..1, and -1 and 0 as padding")
    ordered = np.sort(np.where(padding, num_classes + np.arange(classes.shape[1]), classes), axis=1)
    _check(name, classes, ids, (np.diff(ordered, axis=1) == 0).any(axis=1), "occurs twice", "name each class once")
    total = p.sum(axis=1)
    _check(name, total, ids, total > 1 + _OFF, "is a sum of probabilities above 1", "normalise them")
    rest = np.where((~padding).sum(axis=1) < num_classes, np.maximum(1 - total, LEAST), 0)
    kept = np.where(padding, 0, np.maximum(p, LEAST))
    scale = kept.sum(axis=1) + rest
    with np.errstate(divide="ignore"):
        logs = np.log(kept / scale[:, None]), np.log(rest / scale)
    return {
        "top_ids": classes.astype(np.int32),
        "top_logprobs": logs[0].astype(np.float32),
        "top_tail": logs[1].astype(np.float32),
    }


def by_class(name: str, columns: Sequence[object], source: Source) -> np.ndarray:
    """Class of each column of a teacher's outputs, by the column's name.

    Args:
      name: The teacher, for messages.
      columns: Class numbers, or names of classes that the source has.
      source: The students' source.

    Returns:
      Class numbers, int64, all different.

    Raises:
      ValueError: If a name is no class of the source, or two are the same.
    """
    names: Mapping[str, int] = {text: k for k, text in enumerate(source.class_names)}
    found = []
    for column in columns:
        column = column.item() if isinstance(column, np.generic) else column
        text = str(int(column) if isinstance(column, bool) else column)
        text = text.removesuffix(".0")
        if text not in names and not text.isdigit():
            have = listing(source.class_names[:8]) if names else f"the numbers 0..{max(source.num_classes - 1, 0)}"
            raise ValueError(
                f"{name} has the class {text!r}, which {source.name} does not have; its classes are {have}: name the "
                "classes alike."
            )
        found.append(names[text] if text in names else int(text))
    if len(set(found)) < len(found):
        raise ValueError(f"{name} has a class twice among {listing([str(c) for c in columns])}: name each once.")
    return np.asarray(found)


def spread_columns(name: str, outputs: np.ndarray, classes: np.ndarray, num_classes: int, gives: Gives) -> np.ndarray:
    """Puts a teacher's columns where the source's classes are; classes that it does not know are as good as impossible.

    Args:
      name: The teacher, for messages.
      outputs: [N, C].
      classes: Class of each column [C].
      num_classes: K; 0 if the source does not say it.
      gives: What the outputs are.

    Returns:
      [N, K].

    Raises:
      ValueError: If a class is none of the source's.
    """
    count = num_classes or int(classes.max()) + 1
    if classes.max() >= count:
        raise ValueError(
            f"{name} has the class {classes.max()} but the source has {count} classes, 0..{count - 1}: open the source "
            "with the teacher's number of classes (num_classes=)."
        )
    if len(classes) == count:
        return outputs[:, np.argsort(classes)]
    if gives == "logits":
        raise ValueError(
            f"{name} has logits of {len(classes)} of the {count} classes: give probabilities, or logits of all."
        )
    wide = np.zeros((len(outputs), count), np.float64)
    wide[:, classes] = outputs
    return wide


def _one_hot(name: str, outputs: np.ndarray, ids: np.ndarray, meaning: Meaning) -> np.ndarray:
    """Smoothed probabilities [N, K] of class numbers [N] or [N, 1]."""
    classes = outputs[:, 0] if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs
    if not meaning.num_classes:
        raise ValueError(
            f"{name} gives classes alone, and the source does not say how many there are: open it with num_classes=."
        )
    K = meaning.num_classes
    if classes.ndim != 1:
        raise ValueError(f"{name} gave shape {outputs.shape} where one class for each of {len(ids)} is expected.")
    wrong = (classes != np.floor(classes)) | (classes < 0) | (classes >= K) | ~np.isfinite(classes)
    _check(name, classes, ids, wrong, f"is none of the {K} classes, 0..{K - 1}", "give a teacher of these classes")
    p = np.full((len(classes), K), meaning.smoothing / max(K - 1, 1))
    p[np.arange(len(classes)), classes.astype(np.int64)] = 1 - meaning.smoothing
    return p


def _of_logits(name: str, z: np.ndarray, meaning: Meaning) -> np.ndarray:
    """Logits as float32, which must not be probabilities that are called logits."""
    if z.shape[1] > 1 and not meaning.several and (z >= 0).all() and np.abs(z.sum(axis=1) - 1).max() < 1e-3:
        raise ValueError(
            f'the outputs of {name} are probabilities (each row sums to 1), not logits: say gives="probabilities".'
        )
    if meaning.one_logit and z.shape[1] == 2:
        z = z[:, 1:] - z[:, :1]
    elif z.shape[1] == 1 and not (meaning.several or meaning.one_logit):
        z = np.concatenate([-z / 2, z / 2], axis=1)
    limit = float(np.finfo(np.float32).max)
    return np.clip(z, -limit, limit).astype(np.float32)


def _of_probabilities(p: np.ndarray, meaning: Meaning) -> np.ndarray:
    """Log-probabilities, or the log-odds of class 1."""
    p = np.maximum(p, LEAST)
    if meaning.one_logit:
        return np.log(p[:, 1:] / p[:, :1]).astype(np.float32)
    return np.log(p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def _log_odds(p: np.ndarray) -> np.ndarray:
    """Log-odds of probabilities of yes."""
    p = np.clip(p, LEAST, 1 - LEAST)
    return np.log(p / (1 - p)).astype(np.float32)


def _check_width(name: str, values: np.ndarray, meaning: Meaning) -> None:
    """Refuses outputs of another number of classes."""
    K, width = meaning.num_classes, values.shape[-1]
    as_two = width == 1 and K == 2 and not meaning.several and meaning.gives != "numbers"
    if values.ndim != 2 or (K and width != K and not as_two):
        what = "outputs" if meaning.gives == "numbers" else "classes"
        raise ValueError(
            f"{name} gave outputs of shape {values.shape} but the source has {K or 'some'} {what}: give a teacher "
            f"whose outputs are [N, {K or 'K'}], or open the source with its number of {what}."
        )


def _check(name: str, values: np.ndarray, ids: np.ndarray, wrong: np.ndarray, what: str, advice: str) -> None:
    """Raises an error about the first example with a wrong value."""
    rows = np.asarray(wrong.any(axis=1) if wrong.ndim > 1 else wrong)
    if rows.any():
        row = int(np.flatnonzero(rows)[0])
        value = values[row][wrong[row]][0] if wrong.ndim > 1 else values[row]
        raise ValueError(
            f"the value {value} of {name} for example {ids[row]} {what} (as for {rows.sum()} of {len(rows)} examples): "
            f"{advice}."
        )
