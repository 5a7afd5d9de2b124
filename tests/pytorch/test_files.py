"""Files of tensors: what is written is read, nothing pickled is run, and damage is said in a sentence."""

import importlib.util
import pathlib
import pickle
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import pytorch

TENSORS = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "conv.bias": np.ones(2, np.float64)}


def assert_same(found, expected=TENSORS):
    assert {n: (x.dtype, x.shape) for n, x in found.items()} == {n: (x.dtype, x.shape) for n, x in expected.items()}
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_is_written_is_read(tmp_path, suffix):
    transposed = {"conv.weight": TENSORS["conv.weight"].transpose(3, 2, 1, 0)}  # a view in another order of memory
    for tensors in (TENSORS, transposed):
        pytorch.write_tensors(tmp_path / f"x{suffix}", tensors)
        assert_same(pytorch.read_tensors(str(tmp_path / f"x{suffix}")), tensors)


def test_bfloat16_is_read_and_counters_are_left_out(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    save_file({"w": np.array([1.5, -2.25], jnp.bfloat16), "bn.num_batches_tracked": np.array(3)}, path)
    assert_same(pytorch.read_tensors(path), {"w": np.array([1.5, -2.25], jnp.bfloat16)})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_parallel_and_compiled_networks_are_left_out(tmp_path, prefix):
    pytorch.write_tensors(tmp_path / "x.npz", {prefix + name: x for name, x in TENSORS.items()})
    assert_same(pytorch.read_tensors(tmp_path / "x.npz"))


class Evil:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("ran"),)


def test_pickled_objects_in_npz_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", w=np.array([Evil()], object))
    with pytest.raises(ValueError, match="no readable npz file of plain arrays"):
        pytorch.read_tensors("x.npz")
    assert not pathlib.Path("ran").exists()


@pytest.fixture
def torch(monkeypatch):
    """Stands in for PyTorch: keeps what `load` is called with, and returns or raises `found`."""

    class Tensor:
        def __init__(self, array):
            self.array = array

        is_floating_point = lambda self: self.array.dtype.kind == "f"  # noqa: E731
        element_size = lambda self: self.array.itemsize  # noqa: E731
        numpy = lambda self: self.array  # noqa: E731

        def float(self):
            return Tensor(self.array.astype(np.float32))

    fake = types.ModuleType("torch")
    fake.Tensor, fake.calls, fake.from_numpy = Tensor, [], Tensor

    def load(path, **options):
        fake.calls.append(options)
        if isinstance(fake.found, Exception):
            raise fake.found
        return fake.found

    def save(tensors, path):
        fake.found = tensors

    fake.load, fake.save = load, save
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


@pytest.mark.parametrize("entry", [None, "model", "state_dict"])
def test_checkpoints_of_pytorch_are_read_as_weights_only(torch, entry):
    tensors = {name: torch.Tensor(x) for name, x in TENSORS.items()} | {"step": torch.Tensor(np.array(3))}
    torch.found = {entry: tensors, "epoch": 3} if entry else tensors
    assert_same(pytorch.read_tensors("x.pth"))
    assert torch.calls == [{"map_location": "cpu", "weights_only": True}]


def test_tensors_are_written_for_pytorch(torch):
    pytorch.write_tensors("x.pt", TENSORS)
    assert_same(pytorch.read_tensors("x.pt"))


def test_what_pytorch_will_not_read_is_not_run(torch):
    torch.found = pickle.UnpicklingError("Weights only load failed. Run it instead.\nMore.")
    sentence = r"nothing else in it is run \(Weights only load failed\): where you trust it, load it and save"
    with pytest.raises(ValueError, match=sentence):
        pytorch.read_tensors("x.pth")
    torch.found = [1]
    with pytest.raises(ValueError, match="holds a list but should hold a state dict"):
        pytorch.read_tensors("x.pth")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="says what happens without PyTorch")
@pytest.mark.parametrize("call", [pytorch.read_tensors, lambda path: pytorch.write_tensors(path, TENSORS)])
def test_without_pytorch_its_files_are_refused(call):
    with pytest.raises(
        ModuleNotFoundError, match=r'pip install "jaxkd\[torch\]", or convert it to .safetensors or .npz'
    ):
        call("x.pth")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '.h5' but should end in .safetensors, .npz, .pth, .pt, .bin"):
        pytorch.read_tensors("x.h5")
    with pytest.raises(ValueError, match=r"ends in '.bin' but should end in .safetensors, .npz, .pth or .pt"):
        pytorch.write_tensors("x.bin", TENSORS)
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match=r"no readable safetensors file .*fetch it again"):
        pytorch.read_tensors(tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", n=np.arange(3))
    with pytest.raises(ValueError, match="holds no floating-point tensors"):
        pytorch.read_tensors(tmp_path / "x.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:50])
    with pytest.raises(ValueError, match="no readable npz file"):
        pytorch.read_tensors(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError):
        pytorch.read_tensors(tmp_path / "none.npz")
