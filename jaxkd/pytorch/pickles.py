"""Checkpoints of PyTorch (`torch.save`), read and written without PyTorch and without running what they name.

A pickle names functions to call. The few that rebuild tensors have counterparts here that only note what is asked for;
every other name becomes an `Object`, which keeps what it is given and does nothing. Nothing that a file names is
imported.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    name: np.dtype(getattr(jnp, name))
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "bool"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    )
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
_LEGACY = 0x1950A86A20F9469CFC6C
"""Number that the format of before PyTorch 1.6 begins with."""


class Object:
    """Stand-in for an object of any class that a pickle names: keeps what it is given, and does nothing.

    Attributes:
      kind: "module.name" of the class or function.
      args: Arguments that it would be called with.
      state: State that it would be set to.
      items: Entries that it would be given, if it is a dict.
    """

    kind = "object"

    def __new__(cls, *args: Any, **_: Any) -> Object:
        """Makes one, of a class whose own constructor is not known."""
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __init__(self, *args: Any, **_: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.items: dict[Any, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __call__(self, *args: Any, **_: Any) -> Object:
        """Stands in for the result of a function."""
        return Object(*args)

    def append(self, item: Any) -> None:
        """Takes what a list would be given, and drops it."""

    extend = add = append


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint, not yet read.

    Attributes:
      key: Name of its storage.
      start: Where the storage's own elements begin, in bytes.
      dtype: Format of its elements; another object if NumPy has none.
      offset: Number of elements before its first one.
      shape: Its shape.
      strides: Elements from one index to the next, for each axis.
    """

    key: str
    start: int
    dtype: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Numpy(Object):
    """An array of NumPy in a checkpoint.

    Attributes:
      dtype: Format of its elements; None if they are objects.
      shape: Its shape.
    """

    kind = "numpy.ndarray"
    dtype: Any = None
    shape: tuple[int, ...] = ()

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, self._fortran, self._content = state
        if isinstance(self._content, bytes) and isinstance(dtype, Object) and dtype.kind == "numpy.dtype":
            self.dtype = np.dtype(dtype.args[0]).newbyteorder(dtype.state[1])

    def array(self) -> np.ndarray:
        """Copy of its elements."""
        array = np.frombuffer(self._content, self.dtype).reshape(self.shape, order="F" if self._fortran else "C")
        return array.astype(self.dtype.newbyteorder("="))


class _Parameter:
    def __new__(cls, data: Any = None, *_: Any) -> Any:
        return data


def _rebuild(storage: Tensor, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    return dataclasses.replace(storage, offset=offset, shape=tuple(shape), strides=tuple(strides))


def _rebuild_v3(
    storage: Tensor, offset: int, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Any:
    return dataclasses.replace(_rebuild(storage, offset, shape, strides), dtype=dtype)


_TORCH: Mapping[str, Any] = {
    "_rebuild_tensor": _rebuild,
    "_rebuild_tensor_v2": _rebuild,
    "_rebuild_tensor_v3": _rebuild_v3,
    "_rebuild_parameter": lambda data, *_: data,
    "_rebuild_parameter_with_state": lambda data, *_: data,
    "_rebuild_from_type_v2": lambda rebuild, kind, args, state: rebuild(*args),
    "Parameter": _Parameter,
    **{name: _DTYPES[dtype] for name, dtype in _STORAGES.items()},
    **_DTYPES,
}
"""Names within PyTorch that have a counterpart here."""


class _Unpickler(pickle._Unpickler):
    """Reader of pickles, the one that is written in Python: damaged numbers do not make it fill the memory."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "torch" and name in _TORCH:
            return _TORCH[name]
        if module == "collections" and name == "OrderedDict":
            return collections.OrderedDict
        if module == "_codecs" and name == "encode":  # bytes, in the protocol that PyTorch writes
            return lambda text, *_: text.encode("latin1")
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return Numpy
        return type("Object", (Object,), {"kind": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":
            return pid[1]
        _, dtype, key, *_ = pid
        view = pid[5] if len(pid) > 5 else None  # a part of another storage, in the oldest files
        return Tensor(str(key), view[1] * dtype.itemsize if view else 0, dtype, 0, (), ())


@contextlib.contextmanager
def open_checkpoint(path: pathlib.Path) -> Iterator[tuple[Any, Callable[[Any], np.ndarray]]]:
    """Context manager that opens a file of `torch.save`, in the format of today or of before PyTorch 1.6.

    Args:
      path: The file.

    Yields:
      The object that was saved, with `Tensor` for tensors and `Object` for what is neither a tensor, a number, a string
      nor a plain container of them; and the function that reads the array of a `Tensor` or a `Numpy`.

    Raises:
      ValueError: If the file is damaged or holds something else (one sentence, with the path).
    """
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        try:
            if zipfile.is_zipfile(file):
                root, raw = _from_zip(stack.enter_context(zipfile.ZipFile(file)))
            else:
                root, raw = _from_legacy(file)
        except Exception as error:  # whatever Python's reader of pickles trips over in foreign bytes
            raise ValueError(
                f"{path} is no readable checkpoint of PyTorch ({one_line(error)}): fetch it again, or save "
                "model.state_dict() alone."
            ) from error
        raw = functools.lru_cache(maxsize=4)(raw)

        def read(tensor: Any) -> np.ndarray:
            try:
                return tensor.array() if isinstance(tensor, Numpy) else _array(tensor, raw(tensor.key))
            except Exception as error:  # whatever foreign numbers may cause
                raise ValueError(f"{path} is damaged ({one_line(error)}): fetch it again.") from error

        yield root, read


def _from_zip(archive: zipfile.ZipFile) -> tuple[Any, Callable[[str], bytes]]:
    names = archive.namelist()
    if any(name.endswith("constants.pkl") for name in names):
        raise ValueError("it is a TorchScript program")
    index = min((name for name in names if name.split("/")[-1] == "data.pkl"), key=len, default=None)
    if index is None:
        raise ValueError("the zip file holds no data.pkl")
    folder = index.removesuffix("data.pkl")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("it was written on a big-endian machine")
    content = archive.read(index)  # whole, so that its checksum is compared first
    return _Unpickler(io.BytesIO(content)).load(), lambda key: archive.read(f"{folder}data/{key}")


def _from_legacy(file: BinaryIO) -> tuple[Any, Callable[[str], bytes]]:
    file.seek(0)
    if _Unpickler(file).load() != _LEGACY:
        file.seek(0)
        return _Unpickler(file).load(), lambda key: b""  # a pickle of NumPy arrays
    _Unpickler(file).load()  # the version
    if not _Unpickler(file).load().get("little_endian", True):
        raise ValueError("it was written on a big-endian machine")
    sizes: dict[str, int] = {}

    class Sized(_Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            if pid[0] == "storage":
                sizes[str(pid[2])] = pid[4] * pid[1].itemsize
            return super().persistent_load(pid)

    root = Sized(file).load()
    places = {}
    for key in _Unpickler(file).load():
        file.seek(8, 1)  # the number of elements
        places[str(key)] = file.tell()
        file.seek(sizes[str(key)], 1)

    def raw(key: str) -> bytes:
        file.seek(places[key])
        return file.read(sizes[key])

    return root, raw


def _array(tensor: Tensor, raw: bytes) -> np.ndarray:
    """Copy of a tensor's elements; its place is checked, so that no foreign memory is read."""
    if not isinstance(tensor.dtype, np.dtype):
        raise ValueError(f"NumPy has no numbers of the format {getattr(tensor.dtype, 'kind', tensor.dtype)}")
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    if any(not isinstance(n, int) or n < 0 for n in sizes) or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"a tensor of shape {tensor.shape} has strides {tensor.strides}")
    size = tensor.dtype.itemsize
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if 0 not in tensor.shape and tensor.start + (last + 1) * size > len(raw):
        raise ValueError(f"a tensor of shape {tensor.shape} ends after its storage of {len(raw)} bytes")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, tensor.dtype)
    steps = [step * size for step in tensor.strides]
    return np.ndarray(tensor.shape, tensor.dtype, raw, tensor.start + tensor.offset * size, steps).copy()


def write_checkpoint(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict that `torch.load` reads.

    Args:
      file: An open file.
      arrays: Name -> array in C order, of a format that PyTorch has.
    """
    storages = {dtype: name for name, dtype in _STORAGES.items() if name != "UntypedStorage"}
    pieces = [b"\x80\x02}("]
    for number, (name, x) in enumerate(arrays.items()):
        old = x.dtype.name in storages
        rebuild, kind = ("v2", f"torch\n{storages[x.dtype.name]}") if old else ("v3", "torch.storage\nUntypedStorage")
        strides = [math.prod(x.shape[i + 1 :]) for i in range(x.ndim)]
        pieces += [_pickled(name), f"ctorch._utils\n_rebuild_tensor_{rebuild}\n((".encode(), _pickled("storage")]
        pieces += [f"c{kind}\n".encode(), _pickled(str(number)), _pickled("cpu"), _pickled(x.size if old else x.nbytes)]
        pieces += [
            b"tQ",
            _pickled(0),
            _pickled(x.shape),
            _pickled(tuple(strides)),
            b"\x89ccollections\nOrderedDict\n)R",
        ]
        pieces += [b"" if old else f"ctorch\n{x.dtype.name}\n".encode(), b"tR"]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join([*pieces, b"u."]))
        archive.writestr("archive/byteorder", "little")
        for number, x in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{number}", x.tobytes())
        archive.writestr("archive/version", "3\n")


def _pickled(value: Any) -> bytes:
    """Opcodes that put a string, a number or a tuple of numbers on the stack."""
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_pickled, value)) + b"t"
    if isinstance(value, str):
        content = value.encode()
        return b"X" + len(content).to_bytes(4, "little") + content
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def one_line(error: Exception) -> str:
    """Reason of an error of another library, for a sentence.

    Args:
      error: The error.

    Returns:
      The first line of what it says, or its kind if it says no sentence.
    """
    said = " ".join(str(error).split())
    return said[:200] if " " in said else f"{type(error).__name__} {said}".strip()


def supports(dtype: np.dtype) -> bool:
    """Checks that PyTorch has a format of numbers.

    Args:
      dtype: The format.

    Returns:
      True if it does.
    """
    return dtype in _DTYPES.values()
