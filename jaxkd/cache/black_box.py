"""Black boxes: teachers of which nothing but the answers is known, as cached targets of a source."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxkd.cache import shards
from jaxkd.cache.foreign import Foreign, Inputs, from_estimator, from_function
from jaxkd.cache.manifest import Manifest, read_manifest, stem, write_manifest
from jaxkd.cache.network_files import from_litert, from_onnx
from jaxkd.cache.outputs import LOGITS, Gives, Meaning, meaning_of, say_if_probabilities, to_logits, to_top_k
from jaxkd.cache.read import with_targets
from jaxkd.cache.soft_labels import KINDS, read_soft_labels
from jaxkd.cache.write import begin, missing_shards, to_records
from jaxkd.data.source import Source, sample_rows
from jaxkd.data.splits import say
from jaxkd.models.top_k import spread_tail
from jaxkd.parallel import processes
from jaxkd.runs.progress import Progress
from jaxkd.types import Prepare

_NETWORKS = {"onnx": from_onnx, "litert": from_litert, "tflite": from_litert}
_SPREAD = 1 << 28  # values of all classes, up to which a teacher's top k are spread over them in memory


def black_box(
    source: Source,
    teacher: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    gives: Gives | None = None,
    version: str | None = None,
    inputs: Inputs = None,
    output: str | None = None,
    channels_first: bool = False,
    prepare: Prepare | None = None,
    views: int | None = None,
    one_logit: bool = False,
    smoothing: float = 0.01,
    batch_size: int = 256,
    rows: int = 8192,
) -> Source:
    """Joins a teacher of any kind to a source: its answers become the field `teacher_logits`.

    `models.cached()` is then the teacher of the train step. What a teacher is asked, it is asked once: the answers are
    written to `path` shard by shard, and after a kill the same call goes on. Files of soft labels are read as they are.
    Probabilities become log-probabilities, those below 1e-6 count as 1e-6, and a class alone becomes the smoothed
    distribution of a hard label, so that every loss is finite.

    Args:
      source: The students' training data, or a split to evaluate on.
      teacher: One of
        - a function: batch of NumPy fields [B, ...] -> outputs [B, ..., K] or [B] (give `version` too);
        - a fitted estimator of scikit-learn;
        - "onnx:PATH" or "litert:PATH" (or "tflite:PATH"), a network's file;
        - "csv:PATH", "tsv:PATH", "parquet:PATH" or "npz:PATH", soft labels by the examples' ids, in one of the forms
          of `jaxkd.cache.soft_labels.read_soft_labels`.
      path: Folder of the answers; needed unless the teacher is a file of soft labels.
      gives: What the outputs are: "logits", "probabilities", "classes" (numbers [B]) or "numbers" (of a regressor).
        None takes "numbers" for a regression; what an estimator's method gives; "probabilities" for columns of classes;
        and "logits" for functions and networks, whose probabilities are then refused.
      version: Name and number of a function, by which its answers are known.
      inputs: Fields that a network or an estimator reads: one, several in their order, or {input: field}. None takes
        those with the names of the inputs, or the only field.
      output: Name of a network's output, if it has several.
      channels_first: Whether a network takes images as [B, C, H, W], and gives outputs of that order.
      prepare: Preparation of what a teacher sees, such as `augment.augment_batch(augment.to_float(), seed=0)`; None for
        the fields as they are read.
      views: Number of views of each example, for a `prepare` that augments: the same that students see. None for one
        answer to each example, whatever its view.
      one_logit: Whether two classes get one logit, log p_1 / p_0, as `losses.binary_kd` takes it.
      smoothing: Probability that a hard label leaves to the other classes.
      batch_size: Examples that the teacher is asked about together.
      rows: Number of examples in a shard.

    Returns:
      The source with the field `teacher_logits`, float32 [B, ..., K], where K is 1 for `one_logit`, and the
      number of outputs of a regressor. The top k
      of a file come as `top_ids`, `top_logprobs` and `top_tail` too, as `models.cached(num_classes=K)` reads them.

    Raises:
      ValueError: In one sentence: the teacher cannot be opened or failed; its answers are NaN, no probabilities, of
        another number of classes; an id has no soft label, or two; the folder holds another teacher's answers.
      ImportError: If the package that runs a file is missing.
    """
    if source.task == "regression" and gives is None:
        gives = "numbers"
    kind, _, place = teacher.partition(":") if isinstance(teacher, str) else ("", "", "")
    if kind in KINDS:
        return _from_file(source, kind, place, gives, one_logit, smoothing)
    if path is None:
        raise ValueError("a teacher that is asked needs path=, the folder that its answers are written to.")
    if views is not None and (views < 1 or prepare is None):
        raise ValueError(f"views is {views}: give at least 1, together with the prepare= that makes the views.")
    if batch_size < 1 or rows < 1:
        raise ValueError(f"batch_size is {batch_size} and rows is {rows}: give at least 1 example.")
    asked = _open(teacher, source, gives, version, inputs, output, channels_first)
    meaning = meaning_of(source, gives or asked.gives, one_logit, smoothing)
    made_with = {
        "black box": asked.fingerprint,
        "outputs": f"{meaning.gives}, one_logit={one_logit}, smoothing={smoothing}",
        "inputs": f"{inputs}, channels_first={channels_first}",
    }
    folder, as_read = Path(path), prepare if prepare is not None else dict
    count = 1 if views is None else views
    _write(folder, source, asked, meaning, as_read, count, made_with, batch_size, rows, prepared=prepare is not None)
    joined = with_targets(source, folder, made_with=made_with, prepare=as_read, views=count)
    assert joined.targets is not None, "with_targets has joined them"
    say_if_probabilities(asked.name, joined.targets(sample_rows(source, 256), 0)[LOGITS], meaning)
    joined = joined if views is not None else _as_fields(joined, source)
    width = read_manifest(folder).fields[LOGITS][1][-1]  # type: ignore[union-attr]
    return _with_classes(joined, 2 if one_logit else width)


def _open(
    teacher: Any,
    source: Source,
    gives: Gives | None,
    version: str | None,
    inputs: Inputs,
    output: str | None,
    channels_first: bool,
) -> Foreign:
    """Opens a teacher that is asked."""
    if isinstance(teacher, str):
        kind, _, place = teacher.partition(":")
        if kind not in _NETWORKS:
            raise ValueError(
                f"the teacher {teacher!r} is not understood: write one of {', '.join((*_NETWORKS, *KINDS))}, a colon "
                "and the file's path."
            )
        return _NETWORKS[kind](place, inputs, output, channels_first)
    if hasattr(teacher, "predict"):
        return from_estimator(teacher, source, inputs, gives)
    if callable(teacher):
        return from_function(teacher, version)
    raise ValueError(
        f"a teacher was given as {type(teacher).__name__}: give a function, an estimator, or a file such as onnx:PATH; "
        "for a network of jaxkd use experiment.cached_teacher."
    )


def _write(
    folder: Path,
    source: Source,
    asked: Foreign,
    meaning: Meaning,
    prepare: Prepare,
    views: int,
    made_with: Mapping[str, str],
    batch_size: int,
    rows: int,
    *,
    prepared: bool,
) -> None:
    """Asks the teacher about the examples whose answers are missing, and writes them."""
    seen: Callable[[Any], Any] = jax.jit(prepare) if prepared else dict

    def targets(chosen: range, view: int) -> dict[str, np.ndarray]:
        numbers = np.arange(chosen.start, chosen.stop)
        batch = {**source.read(numbers), "view": np.full(len(numbers), view, np.int32)}
        batch = {field: np.asarray(values) for field, values in seen(batch).items()}
        return {LOGITS: to_logits(asked.name, asked.answer(batch), source.ids[numbers], meaning)}

    found = read_manifest(folder)
    fields = (
        {LOGITS: targets(range(1), 0)[LOGITS].shape[1:]}
        if found is None
        else {field: tuple(shape) for field, (_, shape) in found.fields.items()}
    )
    shapes = {field: jax.ShapeDtypeStruct((1, *shape), np.float32) for field, shape in fields.items()}
    manifest = begin(folder, source, prepare, shapes, made_with, rows)
    missing = missing_shards(folder, manifest, views)[jax.process_index() :: jax.process_count()]
    done = 0
    with Progress("targets", sum(len(chosen) for _, chosen in missing), batch_size=1) as progress:
        for view, chosen in missing:
            with shards.writing(folder, stem(view, chosen.start)) as append:
                for first in range(0, len(chosen), batch_size):
                    part = chosen[first : first + batch_size]
                    append(to_records(folder, manifest, view, part, targets(part, view)))
                    done += len(part)
                    progress.update(done, {})
    _finish(folder, manifest, views)


def _finish(folder: Path, manifest: Manifest, views: int) -> None:
    """Notes in the manifest that all views are there, once all processes have written theirs."""
    processes.barrier(f"answers in {folder}")
    if processes.is_first() and views > manifest.views:
        write_manifest(folder, dataclasses.replace(manifest, views=views))
    processes.barrier(f"the manifest in {folder}")


def _as_fields(joined: Source, source: Source) -> Source:
    """The source whose fields hold the only view's targets, so that students may see any view."""
    targets = joined.targets
    assert targets is not None, "with_targets has joined them"

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        return source.read(numbers) | targets(numbers, 0)

    return dataclasses.replace(joined, read=read, views=source.views, targets=source.targets)


def _from_file(source: Source, kind: str, place: str, gives: Gives | None, one_logit: bool, smoothing: float) -> Source:
    """The source with the soft labels of a file."""
    found = read_soft_labels(kind, place, source, gives)
    meaning = meaning_of(source, found.gives, one_logit, smoothing)
    if found.top is None:
        assert found.outputs is not None, "a file has outputs or the top k"
        fields = {LOGITS: to_logits(found.name, found.outputs, source.ids, meaning)}
    elif meaning.several or one_logit or not meaning.num_classes:
        raise ValueError(
            f"{found.name} has the top classes alone, but {source.name} does not say how many classes there are, or "
            "has labels of yes or no: open it with num_classes=, or give all probabilities."
        )
    else:
        fields = to_top_k(found.name, *found.top, source.ids, meaning.num_classes)
        if source.size * meaning.num_classes <= _SPREAD:
            fields[LOGITS] = np.asarray(spread_tail(fields, meaning.num_classes))
        else:
            reader = f"models.cached(num_classes={meaning.num_classes})"
            say(f"{found.name} is joined without `{LOGITS}`, which would not fit into memory: read it by {reader}.")
    if taken := sorted(set(fields) & set(source.read(np.zeros(1, np.int64)))):
        raise ValueError(f"{source.name} already has the field `{taken[0]}`: join one teacher alone.")

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        return source.read(numbers) | {field: values[numbers] for field, values in fields.items()}

    made = {**source.made_with, "black box": found.fingerprint, "outputs": f"{meaning.gives}, {one_logit}, {smoothing}"}
    joined = dataclasses.replace(source, read=read, made_with=made)
    width = meaning.num_classes if found.top is not None else fields[LOGITS].shape[-1]
    return _with_classes(joined, 2 if one_logit else width)


def _with_classes(source: Source, classes: int) -> Source:
    """The source with the teacher's number of classes, if it does not say one itself."""
    return source if source.num_classes else dataclasses.replace(source, num_classes=classes)
