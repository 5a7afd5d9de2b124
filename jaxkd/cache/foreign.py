"""Teachers that are no networks of this library: functions, ONNX and LiteRT files, estimators of scikit-learn."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxkd.cache.outputs import LOGITS, Gives, by_class, spread_columns
from jaxkd.data.checks import listing, path_of, root_cause
from jaxkd.data.readers.columns import check_file
from jaxkd.data.source import Source, sample_rows
from jaxkd.types import RESERVED

HostBatch: TypeAlias = Mapping[str, np.ndarray]

Inputs: TypeAlias = "str | Sequence[str] | Mapping[str, str] | None"
"""Fields that a teacher reads: one, several in its order, or name of its input -> field; None to find them."""

_PIECE = 1 << 20
_PROBED = 1024  # examples by which an estimator is known


class Foreign(NamedTuple):
    """A teacher that is called with NumPy arrays.

    Attributes:
      name: Name for messages.
      fingerprint: Text that is equal for equal teachers.
      gives: What its outputs are, unless the caller says otherwise.
      answer: Batch of NumPy fields [B, ...] -> outputs [B, ...].
    """

    name: str
    fingerprint: str
    gives: Gives
    answer: Callable[[HostBatch], np.ndarray]


class Port(NamedTuple):
    """An input of a network in a file.

    Attributes:
      name: Its name.
      shape: Its shape with the batch first; None for a side of any size.
      dtype: The dtype that it takes.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


def from_function(function: Callable[[HostBatch], Any], version: str | None) -> Foreign:
    """A Python function as a teacher.

    Args:
      function: Batch of NumPy fields -> outputs.
      version: Text that names what the function computes, since its code cannot be compared.

    Returns:
      The teacher.

    Raises:
      ValueError: If there is no version.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if not version or not isinstance(version, str):
        raise ValueError(
            f"the teacher {name} is a function, whose answers of another day cannot be told from those of now: give it "
            'a name and number of your own, such as version="labeller 3", and change it when the answers change.'
        )
    return Foreign(name, f"function {version}", "logits", lambda batch: np.asarray(function(batch)))


def from_estimator(estimator: Any, source: Source, inputs: Inputs, gives: Gives | None = None) -> Foreign:
    """An estimator of scikit-learn, or one that has its methods, as a teacher.

    A classifier gives `predict_proba`, or else `decision_function`, or else `predict`; a regressor `predict`. It is
    known by its class, its settings and its answers to up to 1,024 examples of the source, in float32.

    Args:
      estimator: The fitted estimator.
      source: The students' source.
      inputs: The fields, which are flattened and put side by side; None for the only one.
      gives: "classes" for the labels alone that a classifier predicts.

    Returns:
      The teacher.

    Raises:
      ValueError: If it is not fitted, has another number of inputs, or has classes that the source has not.
    """
    name = type(estimator).__name__
    fields = list(inputs.values()) if isinstance(inputs, Mapping) else inputs

    def table(batch: HostBatch) -> np.ndarray:
        chosen = _fields(name, batch, fields)
        return np.concatenate([np.asarray(batch[f]).reshape(len(batch[f]), -1) for f in chosen], axis=1)

    method, gives = ("predict", gives) if gives == "classes" else _method(estimator, source)

    def answer(batch: HostBatch) -> np.ndarray:
        X = table(batch)
        want = getattr(estimator, "n_features_in_", X.shape[1])
        if want != X.shape[1]:
            raise ValueError(
                f"{name} was fitted to {want} columns but the fields {listing(_fields(name, batch, fields))} have "
                f"{X.shape[1]}: name the fields in their order by inputs=."
            )
        try:
            outputs = np.asarray(getattr(estimator, method)(X))
        except Exception as error:  # estimators that are not fitted, or not for such values, fail in many ways
            raise ValueError(
                f"{name}.{method} failed ({root_cause(error)}): give an estimator that is fitted to such inputs."
            ) from error
        return _of_classes(name, outputs, method, estimator, source)

    rows = source.read(sample_rows(source, _PROBED))
    told = np.ascontiguousarray(answer(rows), np.float32)
    known = hashlib.sha256(f"{_settings(estimator)} {told.shape}".encode() + told.tobytes())
    return Foreign(name, f"{type(estimator).__module__}.{name} {known.hexdigest()}", gives, answer)


def in_batches(
    name: str,
    ports: Sequence[Port],
    run: Callable[[list[np.ndarray]], np.ndarray],
    inputs: Inputs,
    channels_first: bool,
) -> Callable[[HostBatch], np.ndarray]:
    """Makes a teacher of a network in a file: chooses fields, checks shapes and dtypes, fills up fixed batches.

    Args:
      name: The file, for messages.
      ports: The network's inputs, all with the batch first.
      run: Arrays of the inputs [b, ...] -> outputs [b, ...], where b is the fixed size of a batch if there is one.
      inputs: The fields.
      channels_first: Whether fields of images [B, H, W, C] are given as [B, C, H, W].

    Returns:
      Function for `Foreign.answer`.
    """
    for port in ports:
        if not port.shape:
            raise ValueError(f"the input {port.name!r} of {name} has no batch axis: export a network that has one.")
    fixed = {port.shape[0] for port in ports} - {None}
    if len(fixed) > 1:
        raise ValueError(
            f"the inputs of {name} have batches of {listing([str(f) for f in sorted(map(int, filter(None, fixed)))])}: "
            "export a network whose inputs have one."
        )
    size = next(iter(fixed), None)

    def answer(batch: HostBatch) -> np.ndarray:
        names = [port.name for port in ports]
        fields = _of_ports(name, names, batch, inputs)
        arrays = [
            _fitted(name, port, field, np.asarray(batch[field]), channels_first)
            for port, field in zip(ports, fields, strict=True)
        ]
        count = len(arrays[0])
        parts = []
        for first in range(0, count, size or count):
            part = [x[first : first + (size or count)] for x in arrays]
            short = (size or count) - len(part[0])
            part = [np.concatenate([x, np.repeat(x[-1:], short, axis=0)]) if short else x for x in part]
            found = run(part)
            if not found.ndim or len(found) != len(part[0]):
                raise ValueError(
                    f"{name} gave an output of shape {found.shape} for {len(part[0])} examples: name one that has a "
                    "row for each by output=."
                )
            parts.append(found[: len(found) - short])
        outputs = np.concatenate(parts)
        return np.moveaxis(outputs, 1, -1) if channels_first and outputs.ndim == 4 else outputs

    return answer


def fingerprint_file(path: Path) -> str:
    """SHA-256 of a file, and of the files beside it that it names, such as an ONNX file's external weights.

    Args:
      path: The file.

    Returns:
      64 hexadecimal digits.

    Raises:
      ValueError: If it cannot be read.
    """
    check_file(path)
    try:
        raw = path.read_bytes()
        digest = hashlib.sha256(raw)
        for beside in sorted(path.parent.iterdir()):
            if beside != path and beside.is_file() and beside.name.encode() in raw:
                for piece in _pieces(beside):
                    digest.update(piece)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): make it a readable file.") from error
    return digest.hexdigest()


def open_file(place: str) -> Path:
    """Path of a file that a spec names.

    Args:
      place: The path, which may begin with "~".

    Returns:
      The path of a file that exists.

    Raises:
      ValueError: If there is none.
    """
    path = path_of(place)
    check_file(path)
    return path


def _pieces(path: Path) -> Iterator[bytes]:
    """Bytes of a file, a piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _fields(name: str, batch: HostBatch, inputs: Any) -> list[str]:
    """Names of the fields that a teacher reads."""
    if inputs is None:
        own = [field for field in batch if field not in (*RESERVED, "label", LOGITS)]
        if len(own) != 1:
            raise ValueError(
                f"the batch has the fields {listing(own)}, of which it is not clear what {name} reads: name them by "
                "inputs=."
            )
        return own
    fields = [inputs] if isinstance(inputs, str) else list(inputs)
    if absent := [field for field in fields if field not in batch]:
        raise ValueError(f"the batch has no field {absent[0]!r} (inputs=): it has {listing(list(batch))}.")
    return fields


def _of_ports(name: str, ports: Sequence[str], batch: HostBatch, inputs: Inputs) -> list[str]:
    """Field of each input of a network."""
    if isinstance(inputs, Mapping):
        if set(inputs) != set(ports):
            raise ValueError(
                f"inputs= names the inputs {listing(list(inputs))} but those of {name} are {listing(list(ports))}: "
                "give a field for each."
            )
        return _fields(name, batch, [inputs[port] for port in ports])
    if inputs is None and all(port in batch for port in ports):
        return list(ports)
    if inputs is None and len(ports) > 1:
        raise ValueError(
            f"{name} has the inputs {listing(list(ports))}, which are no fields of the batch ({listing(list(batch))}): "
            "say which field each of them reads by inputs={input: field}."
        )
    fields = _fields(name, batch, inputs)
    if len(fields) != len(ports):
        raise ValueError(
            f"inputs= names {len(fields)} field(s) but {name} has the inputs {listing(list(ports))}: name one for each."
        )
    return fields


def _fitted(name: str, port: Port, field: str, values: np.ndarray, channels_first: bool) -> np.ndarray:
    """A field as an input takes it."""
    if channels_first and values.ndim == 4:
        values = np.moveaxis(values, -1, 1)
    want = ", ".join("any" if side is None else str(side) for side in port.shape)
    fits = values.ndim == len(port.shape) and all(
        side in (None, own) for side, own in zip(port.shape[1:], values.shape[1:], strict=False)
    )
    if not fits:
        turned = not channels_first and values.ndim == len(port.shape) == 4 and port.shape[1] == values.shape[-1]
        advice = "say channels_first=True" if turned else "resize or reshape the field, or name another by inputs="
        raise ValueError(
            f"the input {port.name!r} of {name} has shape [{want}] but the field {field!r} has "
            f"{list(values.shape)}: {advice}."
        )
    if values.dtype == np.uint8 and port.dtype.kind == "f" and values.ndim == 4:
        raise ValueError(
            f"the input {port.name!r} of {name} takes {port.dtype} but the field {field!r} holds bytes 0..255, whose "
            "scale has to be chosen: give prepare=, such as jaxkd.augment.augment_batch(jaxkd.augment.to_float())."
        )
    if values.dtype.kind not in "biuf" or (values.dtype.kind == "f" and port.dtype.kind in "iub"):
        raise ValueError(
            f"the input {port.name!r} of {name} takes {port.dtype} but the field {field!r} holds {values.dtype}: "
            "convert it, or name another field by inputs=."
        )
    return np.ascontiguousarray(values, port.dtype)


def _method(estimator: Any, source: Source) -> tuple[str, Gives]:
    """The method of an estimator that says most, and what it gives."""
    if source.task == "regression" or not hasattr(estimator, "classes_"):
        return "predict", "numbers" if source.task in ("regression", "unlabelled") else "classes"
    if hasattr(estimator, "predict_proba"):
        return "predict_proba", "probabilities"
    if hasattr(estimator, "decision_function"):
        return "decision_function", "logits"
    return "predict", "classes"


def _of_classes(name: str, outputs: np.ndarray, method: str, estimator: Any, source: Source) -> np.ndarray:
    """An estimator's outputs in the order of the source's classes."""
    classes = getattr(estimator, "classes_", None)
    if classes is None or source.task in ("regression", "multi_label"):
        return outputs
    if isinstance(classes, list):
        raise ValueError(f"{name} predicts several targets at once: give a function that calls it.")
    if method == "predict":
        number = dict(zip(list(classes), by_class(name, list(classes), source), strict=True))
        return np.asarray([number[label] for label in outputs])
    if outputs.ndim == 1:
        outputs = np.stack([-outputs / 2, outputs / 2], axis=1)
    if outputs.shape[1] != len(classes):
        raise ValueError(f"{name}.{method} gave shape {outputs.shape} for {len(classes)} classes: fit it one-vs-rest.")
    gives: Gives = "probabilities" if method == "predict_proba" else "logits"
    return spread_columns(name, outputs, by_class(name, list(classes), source), source.num_classes, gives)


def _settings(estimator: Any) -> str:
    """Settings of an estimator, as a text that says nothing of where an object stands in memory."""
    settings: dict[str, Any] = getattr(estimator, "get_params", dict)()
    return re.sub(r" at 0x[0-9a-f]+", "", repr(sorted((key, repr(value)) for key, value in settings.items())))
