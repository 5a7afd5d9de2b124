"""Networks in ONNX and LiteRT (TFLite) files as teachers, run by their own runtimes on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxkd.cache.foreign import Foreign, Inputs, Port, fingerprint_file, in_batches, open_file
from jaxkd.data.checks import listing, root_cause

_ONNX = {"float": "f4", "double": "f8", "float16": "f2", "bool": "?"} | {
    f"{sign}int{bits}": f"{kind}{bits // 8}" for sign, kind in (("", "i"), ("u", "u")) for bits in (8, 16, 32, 64)
}


def from_onnx(place: str, inputs: Inputs, output: str | None, channels_first: bool) -> Foreign:
    """A network in an ONNX file as a teacher.

    Args:
      place: Path of the file.
      inputs: The fields that it reads.
      output: Name of the output; None for the only one.
      channels_first: Whether fields of images are given as [B, C, H, W].

    Returns:
      The teacher.

    Raises:
      ValueError: If the file cannot be read, or it is not clear what goes in and comes out.
      ImportError: If the package `onnxruntime` is missing.
    """
    path, name = open_file(place), f"onnx:{place}"
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f'{name} is run by the package onnxruntime: pip install "jaxkd[onnx]".') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised as well
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base class of their own
        raise ValueError(f"{path} cannot be opened as an ONNX file ({root_cause(error)}): export it anew.") from error
    chosen = _output(name, [out.name for out in session.get_outputs()], output)
    ports = [_onnx_port(name, given) for given in session.get_inputs()]

    def run(arrays: list[np.ndarray]) -> np.ndarray:
        try:
            feed = {port.name: x for port, x in zip(ports, arrays, strict=True)}
            return np.asarray(session.run([chosen], feed)[0])
        except Exception as error:
            raise ValueError(f"{name} failed ({root_cause(error)}): give inputs that it was made for.") from error

    answer = in_batches(name, ports, run, inputs, channels_first)
    return Foreign(name, f"onnx {fingerprint_file(path)} {chosen}", "logits", answer)


def from_litert(place: str, inputs: Inputs, output: str | None, channels_first: bool) -> Foreign:
    """A network in a LiteRT (TFLite) file as a teacher; integers of quantised inputs and outputs are scaled.

    Args:
      place: Path of the file.
      inputs: The fields that it reads.
      output: Name of the output; None for the only one.
      channels_first: Whether fields of images are given as [B, C, H, W].

    Returns:
      The teacher.

    Raises:
      ValueError: If the file cannot be read, or it is not clear what goes in and comes out.
      ImportError: If the package `ai-edge-litert` is missing.
    """
    path, name = open_file(place), f"litert:{place}"
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(f'{name} is run by the package ai-edge-litert: pip install "jaxkd[litert]".') from error
    try:
        interpreter = Interpreter(model_path=str(path))
    except Exception as error:  # broken files fail in many ways
        raise ValueError(f"{path} cannot be opened as a LiteRT file ({root_cause(error)}): export it anew.") from error
    outs = interpreter.get_output_details()
    chosen = next(out for out in outs if out["name"] == _output(name, [out["name"] for out in outs], output))
    details = interpreter.get_input_details()
    ports = [_litert_port(given) for given in details]
    sides: list[tuple[int, ...]] = []  # shapes that memory was allocated for

    def run(arrays: list[np.ndarray]) -> np.ndarray:
        try:
            if sides != [x.shape for x in arrays]:
                for given, x in zip(details, arrays, strict=True):
                    interpreter.resize_tensor_input(given["index"], x.shape)
                interpreter.allocate_tensors()
                sides[:] = [x.shape for x in arrays]
            for given, x in zip(details, arrays, strict=True):
                interpreter.set_tensor(given["index"], _quantised(given, x))
            interpreter.invoke()
            return _numbers(chosen, interpreter.get_tensor(chosen["index"]))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{name} failed ({root_cause(error)}): give inputs that it was made for.") from error

    answer = in_batches(name, ports, run, inputs, channels_first)
    return Foreign(name, f"litert {fingerprint_file(path)} {chosen['name']}", "logits", answer)


def _output(name: str, names: list[str], output: str | None) -> str:
    """Name of the output that is the teacher's."""
    if output is None and len(names) == 1:
        return names[0]
    if output not in names:
        said = "has no output of that name" if output else "has several outputs"
        raise ValueError(f"{name} {said} (output={output!r}): name one of {listing(names)}.")
    return str(output)


def _onnx_port(name: str, given: Any) -> Port:
    """An input of an ONNX session."""
    kind = given.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _ONNX:
        raise ValueError(f"the input {given.name!r} of {name} is a {given.type}, not an array of numbers: export anew.")
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in given.shape)
    return Port(given.name, shape, np.dtype(_ONNX[kind]))


def _litert_port(given: Any) -> Port:
    """An input of an interpreter; what is quantised takes floats as well, so its floats are scaled here."""
    signature = given["shape_signature"] if len(given["shape_signature"]) else given["shape"]  # older files have none
    shape = tuple(int(side) if side > 0 else None for side in signature)
    quantised = given["quantization"][0] > 0 and np.dtype(given["dtype"]).kind in "iu"
    return Port(given["name"], shape, np.dtype(np.float32 if quantised else given["dtype"]))


def _quantised(given: Any, x: np.ndarray) -> np.ndarray:
    """Numbers as a quantised input holds them: round(x / scale) + zero point."""
    scale, zero = given["quantization"]
    if not (scale > 0 and np.dtype(given["dtype"]).kind in "iu"):
        return x
    limits = np.iinfo(given["dtype"])
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(given["dtype"])


def _numbers(given: Any, x: np.ndarray) -> np.ndarray:
    """Numbers that a quantised output stands for, in memory of their own."""
    scale, zero = given["quantization"]
    if scale > 0 and x.dtype.kind in "iu":
        return ((x.astype(np.float64) - zero) * scale).astype(np.float32)
    return np.array(x)
