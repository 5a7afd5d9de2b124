"""Files of PyTorch tensors, told apart by what they hold: `.pth`, `.safetensors`, `.npz`. No code in them is run."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxkd.files import replacing
from jaxkd.pytorch.entries import is_array, is_floating, weights_of
from jaxkd.pytorch.pickles import one_line, open_checkpoint, supports, write_checkpoint

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that data parallelism and compilation add to all names."""
_CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".th", ".pkl")
_READ = (".safetensors", ".npz", *_CHECKPOINTS)
_WRITTEN = (".safetensors", ".npz", ".pth", ".pt")
_SAFETENSORS = {
    **{"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16, "C64": jnp.complex64},
    **{"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2, "F8_E8M0": jnp.float8_e8m0fnu},
    **{"F8_E4M3FNUZ": jnp.float8_e4m3fnuz, "F8_E5M2FNUZ": jnp.float8_e5m2fnuz},
    **{"I64": jnp.int64, "I32": jnp.int32, "I16": jnp.int16, "I8": jnp.int8, "BOOL": jnp.bool},
    **{"U64": jnp.uint64, "U32": jnp.uint32, "U16": jnp.uint16, "U8": jnp.uint8},
}
"""Name in the file -> format."""
_LOOKS_LIKE = {
    b"version https://git-lfs": "a pointer of git-lfs to the file: run git lfs pull",
    b"<": "a page of HTML or XML, as a failed download leaves it: fetch the file again",
    b"\x89HDF": "an HDF5 file, as Keras writes it: convert it to .safetensors",
    b"\x93NUMPY": "a single array (.npy) and should hold named ones: write it by np.savez(path, name=array)",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"7z\xbc\xaf": "a 7-Zip archive: unpack it",
}
"""First bytes -> what a file with them is, and what to do."""


def read_tensors(path: str | pathlib.Path, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads the floating-point tensors of a file; integer counters are left out.

    Args:
      path: A `.safetensors` or `.npz` file, or a checkpoint of PyTorch (`.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`):
        a state dict, a whole network, or a dict that holds one of them in some entry.
      entry: Entry of the checkpoint that holds the weights, such as "state_dict_ema" for timm's moving average, or
        "ema.model" for one within another; needed where several entries hold weights.

    Returns:
      Name -> array in the format of the file, without the prefixes that data parallelism and compilation add.

    Raises:
      ValueError: If the file is of another kind, is damaged, holds no weights, or several and no entry is asked for;
        the sentence names the file, and the entries.
      OSError: If it is not there or cannot be read.
      TypeError: If it is no path.
    """
    tensors = stored_tensors(path, entry)
    integers = [n for n, x in tensors.items() if n.endswith("weight") and x.size and x.dtype.kind in "iub"]
    if integers:
        raise ValueError(
            f"{path} holds the weights {', '.join(integers[:4])} as integers ({tensors[integers[0]].dtype}), without "
            "a rule for their values: write them as floating-point numbers."
        )
    tensors = {name: x for name, x in tensors.items() if is_floating(x.dtype)}
    if not tensors:
        raise ValueError(f"{path} holds no floating-point tensors: pass the file of a network's weights.")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors


def stored_tensors(path: str | pathlib.Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads all tensors of a file as they are stored, integers and prefixes of names among them.

    Args:
      path: As for `read_tensors`.
      entry: As for `read_tensors`.

    Returns:
      Name -> array in the format of the file.

    Raises:
      ValueError: If the file is of another kind, is damaged, or its entry is not clear.
      OSError: If it is not there or cannot be read.
      TypeError: If it is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{path!r} should be the path of a file of weights ({', '.join(_READ)}).")
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        files = sorted(p.name for p in path.iterdir() if p.suffix.lower() in _READ)
        within = f": choose a file in it, such as {', '.join(files[:4])}" if files else ""
        raise IsADirectoryError(f"{path} is a folder and should be a file of weights ({', '.join(_READ)}){within}.")
    if path.suffix.lower() not in _READ and not _is_known(path):
        raise ValueError(f"{path} ends in {path.suffix!r} but should end in {', '.join(_READ)}: convert it to one.")
    kind = _kind(path)
    if kind == "checkpoint":
        return _read_checkpoint(path, entry)
    if entry:
        raise ValueError(f"{path} holds plain tensors without entries: leave out entry={entry!r}.")
    return _read_npz(path) if kind == "npz" else _read_safetensors(path)


def write_tensors(path: str | pathlib.Path, tensors: Mapping[str, ArrayLike]) -> None:
    """Writes a file that `read_tensors` and PyTorch's or NumPy's own functions read, whole or not at all.

    Args:
      path: A `.safetensors`, `.npz`, `.pth` or `.pt` file.
      tensors: Name -> array, as `export_weights` gives them.

    Raises:
      ValueError: If the file would be of another kind, or cannot hold an array's format of numbers.
      TypeError: If the tensors are no arrays of numbers.
      OSError: If it cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    if (suffix := path.suffix.lower()) not in _WRITTEN:
        raise ValueError(f"{path} ends in {path.suffix!r} but should end in .safetensors, .npz, .pth or .pt.")
    arrays = {name: np.array(x, order="C") for name, x in as_arrays(tensors).items()}
    for name, x in arrays.items():
        if suffix == ".safetensors":
            held = x.dtype in map(np.dtype, _SAFETENSORS.values())
        elif suffix == ".npz":
            held = x.dtype.kind in "fcbiu" or x.dtype == jnp.bfloat16
        else:
            held = supports(x.dtype)
        if not held:
            raise ValueError(
                f"{name} is {x.dtype}, which {suffix} files cannot hold: write .safetensors, or another format of "
                "numbers."
            )
    with replacing(path) as file:
        _write(file, suffix, arrays)


def as_arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts the tensors of a state dict, also those of PyTorch itself.

    Args:
      tensors: Name -> array of NumPy, JAX or PyTorch.

    Returns:
      Name -> array of NumPy.

    Raises:
      TypeError: If it is something else.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"the tensors are a {type(tensors).__name__} and no state dict: pass model.state_dict().")
    found = {}
    for name, x in tensors.items():
        if hasattr(x, "detach"):  # of PyTorch, maybe on another device, maybe in a format that NumPy lacks
            x = x.detach().cpu()
            x = (x.float() if x.is_floating_point() and x.element_size() < 4 else x).numpy()
        array = np.asarray(x)
        if not isinstance(name, str) or not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
            raise TypeError(
                f"{name!r} is a {type(x).__name__} and no named array of numbers: pass the state dict itself, name -> "
                "array."
            )
        found[name] = array
    return found


def _write(file: BinaryIO, suffix: str, arrays: Mapping[str, np.ndarray]) -> None:
    if suffix == ".safetensors":
        import safetensors.numpy

        # Some versions of Hugging Face's library refuse a file that does not say so.
        file.write(safetensors.numpy.save(dict(arrays), metadata={"format": "pt"}))
    elif suffix == ".npz":
        with zipfile.ZipFile(file, "w") as archive:
            for name, x in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, x, allow_pickle=False)
    else:
        write_checkpoint(file, arrays)


def _is_known(path: pathlib.Path) -> bool:
    """Whether a file of another name begins like one of tensors: .t7, .checkpoint, no suffix, ..."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(9)
        return start[:2] in (b"PK", b"\x80\x02") or start[8:] == b"{"
    return False


def _kind(path: pathlib.Path) -> str:
    """Kind of a file by its first bytes: "checkpoint", "npz" or "safetensors"; raises if it is none of them."""
    try:
        with path.open("rb") as file:
            start = file.read(300)
            names = zipfile.ZipFile(file).namelist() if start[:2] == b"PK" else []
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}: give one of weights ({', '.join(_READ)}).") from error
    except OSError as error:
        raise OSError(f"cannot read {path} ({error.strerror}): make it readable or give another file.") from error
    except Exception as error:  # whatever Python's reader of zip files trips over
        raise ValueError(
            f"{path} is no readable {path.suffix[1:]} file ({one_line(error)}): fetch it again."
        ) from error
    if start[:2] == b"PK":
        return _kind_of_zip(path, names)
    if start[:1] == b"\x80" and len(start) > 9 and start[1] in (2, 3, 4, 5) and start[8:9] != b"{":
        return "checkpoint"
    found = next((said for first, said in _LOOKS_LIKE.items() if start.lstrip().startswith(first)), None)
    if not start:
        found = "empty: fetch it again"
    elif start[257:262] == b"ustar":
        found = "a tar archive: unpack it, or save the state dict with a PyTorch of today"
    elif found is None and start[8:9] != b"{" and b"\0" not in start and start.isascii():
        found = "a text file, no file of tensors: fetch the weights themselves"
    elif found is None and start[8:9] != b"{" and path.suffix.lower() != ".safetensors":
        found = f"no {path.suffix[1:]} file by its first bytes ({start[:8]!r}): fetch it again"
    if found:
        raise ValueError(f"{path} is {found}.")
    return "safetensors"


def _kind_of_zip(path: pathlib.Path, names: list[str]) -> str:
    if any(name.split("/")[-1] == "data.pkl" for name in names):
        return "checkpoint"
    if path.suffix.lower() == ".npz" or any(name.endswith(".npy") for name in names):
        return "npz"
    raise ValueError(
        f"{path} is a zip archive of {', '.join(names[:4]) or 'nothing'}, no checkpoint of PyTorch: unpack it, or save "
        "model.state_dict()."
    )


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    import safetensors

    try:
        stored = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({one_line(error)}): fetch it again.") from error
    for name, x in stored:
        if x["dtype"] not in _SAFETENSORS:
            raise ValueError(
                f"{path} holds {name} in the format {x['dtype']}, which NumPy lacks: write it as one of "
                f"{', '.join(_SAFETENSORS)}."
            )
    return {name: np.frombuffer(x["data"], _SAFETENSORS[x["dtype"]]).reshape(x["shape"]) for name, x in stored}


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    found: dict[str, Any] = {}
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                if not content.startswith(b"\x93NUMPY"):
                    raise ValueError("it is no array")
                array = np.load(io.BytesIO(content), allow_pickle=False)
                # NumPy has no name for bfloat16, and writes it as two bytes.
                found[name.removesuffix(".npy")] = array.view(jnp.bfloat16) if array.dtype == "V2" else array
                if array.dtype.kind not in "fcbiu" and array.dtype != "V2":
                    raise ValueError(f"it holds {array.dtype} and not numbers")
    except Exception as error:  # whatever NumPy and Python's reader of zip files trip over in foreign bytes
        within = f"{name}: " if name else ""
        raise ValueError(
            f"{path} is no readable npz file of plain arrays ({within}{one_line(error)}): write it again by np.savez."
        ) from error
    return found


def _read_checkpoint(path: pathlib.Path, entry: str | None) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as (root, read):
        members = weights_of(root, entry, path)
        rebuilt = [n for n, x in members.items() if getattr(x, "kind", "").startswith("torch._utils._rebuild")]
        if rebuilt:
            raise ValueError(
                f"{path} holds {', '.join(rebuilt[:4])} as sparse, quantised or empty tensors "
                f"({members[rebuilt[0]].kind}): write dense ones of floating-point numbers."
            )
        return {name: read(x) for name, x in members.items() if is_array(x)}
