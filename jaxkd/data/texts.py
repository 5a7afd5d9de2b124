"""Texts of one split: read from files of many kinds, with labels that are numbered and whose names are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.data import checks
from jaxkd.data.labels import Task
from jaxkd.data.naming import number_labels
from jaxkd.data.readers.fields import choose_fields, texts_of
from jaxkd.data.splits import draw, is_percentage, say_missing
from jaxkd.data.text_files import WHOLE, TextSpec, read_split, with_file


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of one split, with what belongs to them.

    Attributes:
      name: Name for messages, such as "reviews.tsv[all[:80%]]".
      texts: The texts [N].
      ids: Row numbers in the whole split, increasing, int32 [N].
      pairs: A second text for each of them [N], or None.
      labels: Class numbers int32 [N], numbers to regress on float32 [N], or None.
      class_names: Names of the classes [K]; empty without classes.
      fields: Further columns, as they stand in the file, name -> values [N].
    """

    name: str
    texts: list[str]
    ids: np.ndarray
    pairs: list[str] | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    fields: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    @property
    def task(self) -> Task:
        """What the labels are, as a source says it."""
        if self.labels is None:
            return "unlabelled"
        return "regression" if self.labels.dtype.kind == "f" else "classification"

    def take(self, rows: Sequence[int] | np.ndarray, name: str | None = None) -> Texts:
        """Some of the texts.

        Args:
          rows: Their numbers, increasing.
          name: Their name; the same if None.

        Returns:
          Texts.
        """
        rows = np.asarray(rows, np.int64)

        def taken(values: list[Any]) -> list[Any]:
            return [values[row] for row in rows]

        return dataclasses.replace(
            self,
            name=self.name if name is None else name,
            texts=taken(self.texts),
            ids=self.ids[rows],
            pairs=None if self.pairs is None else taken(self.pairs),
            labels=None if self.labels is None else self.labels[rows],
            fields={field: taken(values) for field, values in self.fields.items()},
        )


def open_texts(
    spec: TextSpec,
    split: str = WHOLE,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    class_names: Sequence[str] | None = None,
    relabel: Callable[[Any], Any] | None = None,
    labelled: bool = True,
    data_dir: str | None = None,
) -> Texts:
    """Opens a split of a set of texts.

    Args:
      spec: One of
        - "tsv:PATH", whose first line names the fields, such as label<TAB>sentence, and whose quotes are characters;
        - "csv:PATH", the same with commas and quotes;
        - "jsonl:PATH", one object a line;
        - "lines:PATH", one text a line, without labels;
        - "parquet:PATH";
        - "conll:PATH", a tagged word a line (`entities` and `words` are then among the fields);
        - "hf:FOLDER" that `datasets.save_to_disk` has made, or that has Parquet files named by their splits; or, where
          there is a network, "hf:ORGANISATION/NAME" or "hf:ORGANISATION/NAME/CONFIGURATION" of a set on the hub;
        - "tfds:NAME";
        - a mapping of columns, such as {"sentence": [...], "label": [...]}, or of splits to such columns.
        "{split}" in PATH stands for the split's name; a file without it is one split, "all". Files may be compressed
        by xz, gzip or bzip2.
      split: "train", "train[:90%]", "all[100:200]", ... Percentages are drawn from each class in proportion, always
        the same rows; row numbers count in the file's order.
      text: Field of the texts; guessed from usual names if None.
      pair: Field of a second text; guessed beside names that come in pairs, such as `premise`, if None. Or "lines:PATH"
        of a file with one text a line, in step with the first.
      label: Field of the labels; guessed from usual names if None, and there may be none. Or "lines:PATH" of a file
        with one label a line.
      class_names: Names of the classes in their order, such as those of the training split; those that occur if None,
        whole numbers in their order, words in that of the alphabet. Empty if labels are numbers to regress on.
      relabel: Label as it stands in the file -> the label to use, such as `lambda label: label.split(":")[0]`.
      labelled: False reads no labels.
      data_dir: Folder in which TFDS keeps its data.

    Returns:
      The texts. Labels that are words or whole numbers are classes, numbered from 0; other numbers are to regress on.

    Raises:
      ValueError: In one sentence with the file and the line: what cannot be read, a field that there is not, a label
        that is missing, of another kind than the others, or none of `class_names`.
    """
    if not isinstance(split, str):
        raise ValueError(f"split is {split!r}: give a name such as 'train' or 'train[:90%]'.")
    columns, name, base = read_split(spec, split, data_dir)
    for field in (pair, label):
        columns = with_file(columns, field, split)
    chosen = choose_fields(columns, text, pair, label)
    size = len(next(iter(columns.values.values())))
    base, start, stop = checks.split_rows(name, split, {base: size})
    labels, names = None, tuple(class_names or ())
    if chosen.label is not None and labelled:
        labels, names = number_labels(columns, chosen.label, class_names, relabel)
    whole = Texts(
        f"{name}[{split}]",
        texts_of(columns, chosen.text),
        np.arange(size, dtype=np.int32),
        None if chosen.pair is None else texts_of(columns, chosen.pair),
        labels,
        names,
        {key: values for key, values in columns.values.items() if key not in chosen},
    )
    drawn, rows = is_percentage(name, split), np.arange(start, stop)
    grouped = labels if whole.task == "classification" else None
    if drawn and len(rows) < size:
        shuffled = np.random.RandomState(0).permutation(size)  # its stream is frozen for good
        rows = draw(shuffled, grouped, start, stop)
    if labels is not None:
        say_missing(whole.name, whole.task, labels, rows, drawn=drawn, class_names=names)
    return whole if len(rows) == size else whole.take(rows)
