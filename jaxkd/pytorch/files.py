"""Files of PyTorch tensors: `.safetensors`, `.npz`, and `.pth` without running pickled code."""

from __future__ import annotations

import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that data parallelism and compilation add to all names."""
_WITHIN = ("model", "state_dict", "model_state_dict")
"""Entries of a checkpoint that may hold the state dict."""
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


def read_tensors(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the floating-point tensors of a file; integer counters are left out.

    Args:
      path: A `.safetensors` or `.npz` file, or a `.pth`, `.pt` or `.bin` file, which needs PyTorch and is read with
        `weights_only=True`: a state dict, or a checkpoint that holds one under `model`, `state_dict` or
        `model_state_dict`.

    Returns:
      Name -> array, without the prefixes that data parallelism and compilation add.

    Raises:
      ValueError: If the file is of another kind, is damaged, or holds no tensors.
      FileNotFoundError: If there is none.
      ModuleNotFoundError: If PyTorch is needed and is not there.
    """
    path = pathlib.Path(path)
    readers = {
        ".safetensors": _read_safetensors,
        ".npz": _read_npz,
        **dict.fromkeys((".pth", ".pt", ".bin"), _read_pth),
    }
    if path.suffix not in readers:
        raise ValueError(f"{path} ends in {path.suffix!r} but should end in {', '.join(readers)}: convert it to one.")
    tensors = {n: x for n, x in readers[path.suffix](path).items() if jnp.issubdtype(x.dtype, jnp.floating)}
    if not tensors:
        raise ValueError(f"{path} holds no floating-point tensors: pass the file of a network's weights.")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors


def write_tensors(path: str | pathlib.Path, tensors: Mapping[str, ArrayLike]) -> None:
    """Writes a file that `read_tensors` reads.

    Args:
      path: A `.safetensors` or `.npz` file, or a `.pth` or `.pt` file, which needs PyTorch.
      tensors: Name -> array, as `export_weights` gives them.

    Raises:
      ValueError: If the file would be of another kind.
      ModuleNotFoundError: If PyTorch is needed and is not there.
    """
    path = pathlib.Path(path)
    arrays = {name: np.array(x, order="C") for name, x in tensors.items()}
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, path)
    elif path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
    elif path.suffix in (".pth", ".pt"):
        torch = _torch(path)
        torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, path)
    else:
        raise ValueError(f"{path} ends in {path.suffix!r} but should end in .safetensors, .npz, .pth or .pt.")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    # The library's own reader for numpy knows no bfloat16.
    import safetensors

    try:
        stored = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}): fetch it again.") from error
    return {
        name: np.frombuffer(x["data"], _FLOATS[x["dtype"]]).reshape(x["shape"])
        for name, x in stored
        if x["dtype"] in _FLOATS
    }


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no readable npz file of plain arrays ({error}): write it again.") from error


def _read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors, and nothing else in it is run ({_first_sentence(error)}): "
            "where you trust it, load it and save its state dict alone."
        ) from error
    for name in _WITHIN:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{path} holds a {type(found).__name__} but should hold a state dict: save model.state_dict()."
        )
    return {name: _to_numpy(x) for name, x in found.items() if isinstance(x, torch.Tensor)}


def _first_sentence(error: Exception) -> str:
    """First sentence of PyTorch's error, which goes on with advice to run code from the file."""
    return str(error).split(". ")[0].splitlines()[0].rstrip(".")


def _to_numpy(tensor: Any) -> np.ndarray:
    """Tensor as a NumPy array; bfloat16, which NumPy lacks, becomes float32."""
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()


def _torch(path: pathlib.Path) -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{path} needs PyTorch: pip install "jaxkd[torch]", or convert it to .safetensors or .npz elsewhere.'
        ) from error
    return torch
