"""Files as `torch.save` writes them, without PyTorch: in the format of today and of before PyTorch 1.6."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np


def _module(name, *functions):
    """A module whose functions and classes can be pickled by name."""
    module = types.ModuleType(name)
    for function in functions:
        made = type(function, (), {"__module__": name})
        setattr(module, function, made)
    return module


MODULES = {
    "torch": _module("torch", "FloatStorage", "DoubleStorage", "HalfStorage", "LongStorage", "CharStorage"),
    "torch.storage": _module("torch.storage", "UntypedStorage"),
    "torch._utils": _module(
        "torch._utils", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_sparse_tensor"
    ),
}
STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage", "i1": "CharStorage"}


class Tensor:
    """Pickles like a tensor of PyTorch that views an array; `rebuild` and `shape` tell how."""

    def __init__(self, array, rebuild="_rebuild_tensor_v2", shape=None):
        self.array, self.rebuild, self.shape = np.asarray(array), rebuild, shape or np.shape(array)

    def __reduce_ex__(self, protocol):
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        args = (Storage(self.array), 0, self.shape, strides, False, collections.OrderedDict())
        if self.rebuild == "_rebuild_tensor_v3":
            args = (*args, MODULES["torch"].__dict__.setdefault(*_format(self.array.dtype.name)))
        return getattr(MODULES["torch._utils"], self.rebuild), args


def _format(name):
    """A number format of PyTorch, pickled by its name."""
    return name, type(name, (), {"__module__": "torch"})


class Parameter(Tensor):
    """Pickles like a parameter of PyTorch."""

    def __reduce_ex__(self, protocol):
        return MODULES["torch._utils"]._rebuild_parameter, (Tensor(self.array), True, collections.OrderedDict())


class Storage:
    """Stands for the numbers of a tensor."""

    def __init__(self, array):
        self.array = array


def save(path, contents, monkeypatch, legacy=False):
    """Writes what `torch.save(contents, path)` writes, where arrays are tensors if they are wrapped in `Tensor`."""
    storages = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            storages.append(value.array)
            name = STORAGES.get(value.array.dtype.str[1:]) if value.array.dtype.kind in "fi" else None
            kind = MODULES["torch"].__dict__[name] if name else MODULES["torch.storage"].UntypedStorage
            size = value.array.size if name else value.array.nbytes
            return ("storage", kind, str(len(storages) - 1), "cpu", size, *((None,) if legacy else ()))

    written = io.BytesIO()
    with monkeypatch.context() as patch:
        for name, module in MODULES.items():
            patch.setitem(sys.modules, name, module)
        Pickler(written, 2).dump(contents)
    raws = [x.ravel(order="K").tobytes() for x in storages]
    if legacy:
        start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
        keys = [str(i) for i in range(len(storages))]
        rest = [struct.pack("<q", x.size) + raw for x, raw in zip(storages, raws, strict=True)]
        parts = [*(pickle.dumps(x, 2) for x in start), written.getvalue(), pickle.dumps(keys, 2), *rest]
        path.write_bytes(b"".join(parts))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", written.getvalue())
        for number, raw in enumerate(raws):
            archive.writestr(f"x/data/{number}", raw)
        archive.writestr("x/version", "3\n")
    return path
