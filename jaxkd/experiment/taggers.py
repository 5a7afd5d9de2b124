"""Taggers of named entities: small students by name, their floor, what they find and what they cost."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxkd import data, metrics, models, reports
from jaxkd.data.tags import OUTSIDE, read_tags
from jaxkd.deploy.latency import Latency, answering, parameter_bytes, timed
from jaxkd.experiment.context import Context
from jaxkd.experiment.entities import Tagged, TaggedSplits, tag_source
from jaxkd.experiment.evaluator import predict
from jaxkd.experiment.optimizers import adamw, warmed_up
from jaxkd.experiment.texts import TextConfig
from jaxkd.train import optimizers
from jaxkd.types import Metric, Model, Outputs, Variables

COLUMNS = {
    "network": "network",
    "parameters": "params",
    "bytes": "bytes",
    "f1": "F1 %",
    "precision": "precision %",
    "recall": "recall %",
    "agreement": "agrees %",
    "p50": "p50 µs",
    "p99": "p99 µs",
}
"""Column -> header of the table of taggers."""

SMALL: Mapping[str, Callable[..., Model]] = {
    "bigru": lambda K, *, width, **options: models.bigru(K, width=width, hidden=width, per_token=True, **options),
    "cnn": lambda K, *, width, **options: models.text_cnn(
        K, width=width, filters=width, kernels=(3, 5), per_token=True, **options
    ),
}
"""Small tagger -> (tags, vocabulary=, width=, dropout=) -> model."""


class Trials(NamedTuple):
    """What all trainings of an experiment with taggers share.

    Attributes:
      config: The configuration, with `max_length` and `buckets`.
      context: The context of the trainings.
      splits: The texts.
      rows: Rows of the table so far.
    """

    config: TextConfig
    context: Context
    splits: TaggedSplits
    rows: list[dict[str, Any]]

    def add(self, name: str, found: Mapping[str, Any], **more: Any) -> None:
        """Adds a tagger to the table.

        Args:
          name: Its name, that of its phase.
          found: As `result` takes it.
          **more: Further columns.
        """
        lost = self.context.run.lost.get(name, ())
        self.rows.append({**result(name, found, self.splits.names, lost), **more})

    def measures(self, *names: str) -> dict[str, Metric]:
        """Metrics of words by name, on what has a label.

        Args:
          *names: "spans" or "agreement".

        Returns:
          Name -> metric.
        """
        known = {"spans": metrics.span_f1(self.splits.names), "agreement": metrics.agreement}
        return metrics.ignoring({name: known[name] for name in names}, data.NO_LABEL)

    def costs(self, model: Model, variables: Variables, tokenizer: data.Tokenizer) -> dict[str, Any]:
        """Size of a tagger, and its time on texts of the test split.

        Args:
          model: The tagger.
          variables: Its variables.
          tokenizer: Its tokenizer.

        Returns:
          Column -> value.
        """
        texts = self.splits.test.texts.texts[:100]
        return costs(model, variables, tokenizer, texts, max_length=self.config.max_length)

    def source(self, tagged: Tagged, encoded: data.Encoded, tokenizer: data.Tokenizer, **options: Any) -> data.Source:
        """A source as `tag_source` makes it; its length buckets are --max-length and its halves.

        All sources have the same buckets, so that they share the programs of a network.

        Args:
          tagged: The texts.
          encoded: Their tokens.
          tokenizer: The tokenizer.
          **options: `capitals` and `carried`.

        Returns:
          The source.
        """
        longest = self.config.max_length
        buckets = sorted({-(-longest // 2**k) for k in range(self.config.buckets)})
        return tag_source(tagged, encoded, tokenizer, self.splits.names, buckets=buckets, **options)

    def heard(
        self,
        parts: Sequence[Tagged],
        tokenizer: data.Tokenizer,
        own: Callable[[Tagged], data.Encoded],
        teacher: Model,
        teacher_variables: Variables,
        tokens_of: Callable[[Tagged], tuple[data.Encoded, data.Source]],
    ) -> list[data.Source]:
        """Sources of a student's tokens with what a teacher with other tokens says of them, computed in one go.

        Args:
          parts: Texts.
          tokenizer: The student's tokenizer.
          own: Texts -> the student's tokens.
          teacher: The teacher.
          teacher_variables: Its variables.
          tokens_of: Texts -> the teacher's tokens and their source.

        Returns:
          A source for each of the texts.
        """
        encoded, source = tokens_of(functools.reduce(Tagged.join, parts))
        _, logits = predict(self.context, teacher, teacher_variables, source)
        sources, first = [], 0
        for tagged in parts:
            rows, tokens = slice(first, first + len(tagged.words)), own(tagged)
            first = rows.stop
            carried = data.carry_tokens(logits[rows], tokens.offsets, encoded.offsets[rows])
            sources.append(self.source(tagged, tokens, tokenizer, carried=carried))
        return sources


def fine_tuning(rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW that fine-tunes a published encoder, whose new last layer learns ten times as fast.

    Args:
      rate: Highest rate of the encoder; it rises over the first tenth of the steps and falls along a cosine.
      steps: Updates of the training.

    Returns:
      An optax transformation.
    """
    encoder, others = (adamw(warmed_up(highest, steps)) for highest in (rate, 10 * rate))
    return optimizers.by_path({"^student/encoder/": encoder}, others)


def result(name: str, found: Mapping[str, Any], names: Sequence[str], lost: Sequence[int] = ()) -> dict[str, Any]:
    """Row of the table of taggers.

    Args:
      name: The tagger.
      found: `spans`, a `SpanF1`, and perhaps `agreement`, a `Mean`; of one tagger, or stacked.
      names: Name of each tag [K].
      lost: Numbers of the students that diverged.

    Returns:
      Column -> text, and `per_type`, type -> mean F1.
    """
    spans = found["spans"]
    scores = {"f1": spans.value(), "precision": spans.precision(), "recall": spans.recall()}
    if "agreement" in found:
        scores["agreement"] = found["agreement"].value()
    shown = {key: reports.mean_std(x, scale=100) for key, x in reports.without_lost(scores, lost).items()}
    each = np.atleast_2d(spans.per_type()).mean(axis=0)
    per_type = {kind: round(float(value), 4) for kind, value in zip(read_tags(names).types, each, strict=True)}
    return {"network": name, **shown, "per_type": per_type}


def costs(
    model: Model, variables: Variables, tokenizer: data.Tokenizer, texts: Sequence[str], *, max_length: int
) -> dict[str, Any]:
    """Parameters of a tagger, their bytes, and the time from a text to the logits of its tokens at batch 1.

    Args:
      model: The tagger.
      variables: Its variables.
      tokenizer: Its tokenizer, whose time counts.
      texts: Texts, which are given one by one.
      max_length: Most tokens of a text; rows are padded to multiples of 16.

    Returns:
      Column -> value.
    """
    answer = answering(model, variables)

    def call(text: str) -> None:
        ids = tokenizer([text], max_length=max_length, details=False).tokens[0]
        tokens = np.full((1, -(-len(ids) // 16) * 16), tokenizer.pad, np.int32)
        tokens[0, : len(ids)] = ids
        answer({"tokens": tokens, "token_mask": np.arange(tokens.shape[1])[None] < len(ids)})

    size = {"parameters": models.count_parameters(variables), "bytes": parameter_bytes(variables)}
    return {**size, **times(timed(call, texts))}


def times(found: Latency) -> dict[str, int]:
    """Columns of a latency, in whole microseconds.

    Args:
      found: The latency.

    Returns:
      Column -> value.
    """
    return {"p50": round(1e6 * found.p50), "p99": round(1e6 * found.p99)}


def most_frequent_tags(tagged: Tagged) -> Callable[[Tagged], list[list[str]]]:
    """The floor under every tagger: the most frequent tag of each word, and capital letters where it is unknown.

    An unknown word with a capital letter that does not begin its text is of the most frequent type of such words.

    Args:
      tagged: Training texts.

    Returns:
      Tagged texts -> a tag for each of their words.
    """
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    capital: collections.Counter[str] = collections.Counter()
    for words, tags in zip(_spelled(tagged), tagged.tags, strict=True):
        for place, (word, tag) in enumerate(zip(words, tags or (), strict=False)):
            counts[word][tag] += 1
            if place and word[0].isupper():
                capital[tag.partition("-")[2]] += 1
    kind = capital.most_common(1)[0][0] if capital else ""
    best = {word: found.most_common(1)[0][0] for word, found in counts.items()}

    def tags_of(other: Tagged) -> list[list[str]]:
        rows: list[list[str]] = []
        for words in _spelled(other):
            rows.append(row := [])
            for place, word in enumerate(words):
                guess = f"I-{kind}" if kind and place and word[0].isupper() else OUTSIDE
                row.append(best.get(word, guess))
        return rows

    return tags_of


def count_spans(tags: Sequence[Sequence[str]], tagged: Tagged, names: Sequence[str]) -> metrics.SpanF1:
    """Counts the entities of predicted tags by the metric of networks.

    Args:
      tags: Predicted tag of each word, a list of lists [W_i].
      tagged: The texts, with their true tags.
      names: Name of each tag [K]; others count as no entity.

    Returns:
      The counts of each type.
    """
    number = {name: k for k, name in enumerate(names)}
    shape = (len(tagged.words), max(map(len, tagged.words)))
    said, true = np.zeros(shape, np.int32), np.full(shape, data.NO_LABEL, np.int32)
    for row, (own, right) in enumerate(zip(tags, tagged.tags, strict=True)):
        said[row, : len(own)] = [number.get(tag, 0) for tag in own]
        true[row, : len(own)] = [number[tag] for tag in right or ()]
    metric = metrics.ignoring({"spans": metrics.span_f1(names)}, data.NO_LABEL)["spans"]
    measure = jax.jit(lambda logits, label: metric(Outputs(logits), Outputs(None), {"label": label}))
    return jax.device_get(measure(np.eye(len(names), dtype=np.float32)[said], true))


def _spelled(tagged: Tagged) -> list[list[str]]:
    """The words of each text."""
    pairs = zip(tagged.texts.texts, tagged.words, strict=True)
    return [[text[start:end] for start, end in words] for text, words in pairs]
