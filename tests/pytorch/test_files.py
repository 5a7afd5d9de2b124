"""Files of tensors: what is written is read, nothing pickled is run, and damage is said in a sentence."""

import argparse
import collections
import contextlib
import io
import json
import pathlib
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import Parameter, Tensor, save

from jaxkd import pytorch

TENSORS = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "conv.bias": np.ones(2, np.float64)}


def assert_same(found, expected=TENSORS):
    assert {n: (x.dtype, x.shape) for n, x in found.items()} == {n: (x.dtype, x.shape) for n, x in expected.items()}
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt"])
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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
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
def saved(tmp_path, monkeypatch):
    """Writes a checkpoint as PyTorch does, and reads it."""

    def write_and_read(contents, entry=None, name="x.pth", legacy=False):
        return pytorch.read_tensors(save(tmp_path / name, contents, monkeypatch, legacy), entry=entry)

    return write_and_read


def tensors(shift=0, wrap=Tensor, prefix=""):
    return {prefix + name: wrap(x + shift) for name, x in TENSORS.items()}


class Odd:
    """An object of a class that a reader of the checkpoint may not have."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


SIDE = {
    "epoch": 3,
    "accuracy": Tensor(np.float32(72.6)),
    "best": np.float64(72.3),
    "args": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("x")),
    "odd": Odd(lists=collections.defaultdict(list, {1: [{2, 3}]}), format=np.dtype("f4")),
    "optimizer": {
        "state": {0: {"step": Tensor(np.float32(1)), "exp_avg": Tensor(np.ones((2, 3)))}},
        "param_groups": [],
    },
}
"""What stands beside the weights in checkpoints."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_checkpoints_of_pytorch_are_read(saved, legacy):
    assert_same(saved(tensors() | {"step": Tensor(np.array(3))}, legacy=legacy))
    for entry in ("model", "state_dict", "net", "teacher"):
        assert_same(saved({entry: tensors(), **SIDE}, legacy=legacy))
    assert_same(saved({"checkpoint": {"weights": tensors(wrap=Parameter)}}, name="x.pth.tar", legacy=legacy))
    assert_same(saved((tensors(), 3), name="x.ckpt", legacy=legacy))
    assert_same(saved([(name, Parameter(x)) for name, x in TENSORS.items()], name="x.t7", legacy=legacy))
    assert_same(saved({"model": TENSORS, "other": 1}, legacy=legacy))  # arrays of NumPy


def test_whole_networks_are_read_by_the_names_of_their_state_dict(saved):
    inner = Odd(
        _parameters={"weight": Parameter(TENSORS["conv.weight"]), "none": None},
        _buffers={"bias": Tensor(TENSORS["conv.bias"]), "left": Tensor(np.ones(2))},
        _modules={},
        _non_persistent_buffers_set={"left"},
    )
    network = Odd(_parameters={}, _buffers={}, _modules={"conv": inner, "act": None}, training=True)
    assert_same(saved(network))
    assert_same(saved({"model": Odd(_parameters={}, _buffers={}, _modules={"module": network}), "epoch": 3}))


def test_several_sets_of_weights_are_never_passed_over(saved):
    for beside in (
        {"state_dict_ema": tensors(1)},
        {"ema": {"module": tensors(1), "updates": 3}},
        {"student": tensors(1, prefix="module.backbone.")},
        {"callbacks": {"Average": {"ema": tensors(1)}}},
    ):
        with pytest.raises(
            ValueError, match=r"several sets .* choose by entry= one of 'model' \(2 tensors\), '.*' \(2"
        ):
            saved({"model": tensors(), **beside, **SIDE})
    with pytest.raises(ValueError, match=r"choose by entry= one of '' \(2 tensors\), 'ema'"):
        saved({**tensors(), "ema": tensors(1)})
    both = {"model": tensors(), "ema": {"module": tensors(1)}, **SIDE}
    np.testing.assert_array_equal(saved(both, entry="ema.module")["conv.bias"], TENSORS["conv.bias"] + 1)
    assert_same(saved(both, entry="model"))
    with pytest.raises(ValueError, match=r"no weights at entry='optimizer': choose one of 'model' .*, 'ema.module'"):
        saved(both, entry="optimizer")
    assert_same(saved({"model": (same := tensors()), "state_dict": same}))  # one set of two names
    with pytest.raises(ValueError, match=r"holds a dict with 'epoch' but should hold a state dict"):
        saved({"epoch": 3})
    with pytest.raises(ValueError, match=r"holds a list but should hold a state dict"):
        saved([1])


def test_views_and_formats_of_tensors_are_kept(saved):
    bits = np.arange(6, dtype=np.uint8).reshape(2, 3)
    given = {
        "view.weight": np.arange(24.0).reshape(4, 6).T,
        "half.weight": np.ones((2, 2), np.float16),
        "e4m3.weight": bits.view(jnp.float8_e4m3fn),
        "e5m2.weight": bits.view(jnp.float8_e5m2),
        "bf16.weight": np.ones(3, jnp.bfloat16),
        "complex.weight": np.ones(3, np.complex64),
        "scale": np.float32(2),
        "none.weight": np.ones((0, 3), np.float32),
    }
    wrapped = {
        n: Tensor(
            x, "_rebuild_tensor_v2" if x.dtype.name in ("float64", "float16", "float32") else "_rebuild_tensor_v3"
        )
        for n, x in given.items()
    }
    for legacy in (False, True):
        found = saved(wrapped, legacy=legacy)
        assert_same(
            {n: x.astype(np.complex128) for n, x in found.items()},
            {n: x.astype(np.complex128) for n, x in given.items()},
        )
        assert {n: x.dtype for n, x in found.items()} == {n: x.dtype for n, x in given.items()}


def test_tensors_that_are_no_plain_numbers_are_refused(saved):
    for tensor, said in (
        (Tensor(np.ones((2, 3), np.int8)), r"weights b.weight as integers \(int8\)"),
        (Tensor(np.ones((2, 3)), "_rebuild_sparse_tensor"), "b.weight as sparse, quantised or empty tensors"),
        (Tensor(np.ones((2, 3)), shape=(2, 4)), r"is damaged \(a tensor of shape \(2, 4\) ends after its storage"),
        (Tensor(np.ones((2, 3)), shape=(10**15, 3)), "is damaged .* ends after its storage"),
        (Tensor(np.ones((2, 3)), shape=(-1, 3)), r"is damaged \(a tensor of shape \(-1, 3\)"),
    ):
        with pytest.raises(ValueError, match=said):
            saved({**tensors(), "b.weight": tensor})


def test_what_a_checkpoint_names_is_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_same(saved({"model": tensors(), "evil": Evil()}))
    assert_same(saved({"model": tensors(), "evil": Evil()}, legacy=True))
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"x.pth holds a .*but should hold a state dict"):
        pytorch.read_tensors("x.pth")
    assert not pathlib.Path("ran").exists()


def test_pytorch_reads_what_is_written_and_is_read(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    given = {**TENSORS, "b": np.ones((2, 3), jnp.bfloat16), "f": np.arange(4, dtype=np.float32).astype(jnp.float8_e5m2)}
    pytorch.write_tensors(tmp_path / "x.pth", given)
    found = torch.load(tmp_path / "x.pth", weights_only=True)
    assert {n: str(x.dtype) for n, x in found.items()} == {n: f"torch.{x.dtype}" for n, x in given.items()}
    for name, x in given.items():
        np.testing.assert_array_equal(found[name].double().numpy(), x.astype(np.float64))
    pytorch.write_tensors(tmp_path / "z.npz", {"w": torch.nn.Parameter(found["f"].float())})
    assert_same(pytorch.read_tensors(tmp_path / "z.npz"), {"w": np.arange(4, dtype=np.float32)})
    torch.save({"model": found, "args": argparse.Namespace(a=1)}, tmp_path / "y.pth")
    assert_same(pytorch.read_tensors(tmp_path / "y.pth"), given)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".bin"])
def test_what_is_no_file_of_tensors_is_said(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    for content, said in (
        (b"", "empty: fetch it again"),
        (b"hello", "a text file"),
        (b"<!DOCTYPE html>", "a page of HTML or XML, as a failed download"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of git-lfs .* run git lfs pull"),
        (bytes(range(99)), "no (readable )?[a-z]+ file"),
        (b"PK\3\4", "no readable [a-z]+ file"),
        (b"\x80\x02ab" * 9, "no readable checkpoint of PyTorch"),
        (b"\xff" * 8 + b"{", r"no readable safetensors file \("),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x{suffix} is {said}"):
            pytorch.read_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"")
    with pytest.raises(ValueError, match=r"no array|is a zip archive of a.txt, no checkpoint"):
        pytorch.read_tensors(path)
    pytorch.write_tensors(tmp_path / "good.pth", TENSORS)
    path.write_bytes((tmp_path / "good.pth").read_bytes())  # what it holds counts, not its name
    assert_same(pytorch.read_tensors(path))
    path.unlink()
    path.mkdir()
    (path / "good.npz").touch()
    with pytest.raises(IsADirectoryError, match=r"is a folder .* choose a file in it, such as good.npz"):
        pytorch.read_tensors(path)


def _npy(shape):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.npy", _npy("(1000000000000000,)"), "a.npy"),
        ("a.npy", _npy("(4611686018427387904, 4)"), "a.npy"),
        ("a.npy", _npy("(-1,)"), "a.npy"),
        ("a.npy", b"\x93NUMPY\1\0", "a.npy"),
        ("a", b"hello", "a: it is no array"),
        ("a.npy", None, "a.npy: it holds <U1 and not numbers"),
    ],
    ids=["huge", "overflowing", "negative", "cut", "no array", "strings"],
)
def test_damaged_arrays_in_npz_are_named(tmp_path, name, content, said):
    if content is None:
        np.save(buffer := io.BytesIO(), np.array(["x"]))
        content = buffer.getvalue()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(ValueError, match=rf"x.npz is no readable npz file of plain arrays \({said}.*write it again"):
        pytorch.read_tensors(tmp_path / "x.npz")


def test_npz_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match=r"is a single array \(.npy\)"):
        pytorch.read_tensors(path)
    pytorch.write_tensors(path, TENSORS)
    for at, value, said in ((6, 1, "encrypted"), (8, 99, "compression")):
        content = bytearray(path.read_bytes())
        for start, further in ((content.find(b"PK\3\4"), 0), (content.find(b"PK\1\2"), 2)):
            content[start + at + further] = value
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=f"no readable npz file .*{said}"):
            pytorch.read_tensors(tmp_path / "bad.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt"])
def test_formats_are_kept_or_refused(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    given = {"file": np.array([1.5, -2.25], jnp.bfloat16), "w": np.ones((2, 1), np.float16), "scale": np.float32(3)}
    pytorch.write_tensors(path, given)
    assert_same(pytorch.read_tensors(path), given)
    small = {"w": np.arange(4, dtype=np.float32).astype(jnp.float8_e4m3fn)}
    if suffix == ".npz":
        with pytest.raises(ValueError, match=r"w is float8_e4m3fn, which .npz files cannot hold: write .safetensors"):
            pytorch.write_tensors(path, small)
        assert_same(pytorch.read_tensors(path), given)  # the file that was there stays
    else:
        pytorch.write_tensors(path, small)
        assert_same(pytorch.read_tensors(path), small)
    for wrong, said in (
        ({"w": np.array(["x"])}, "'w' is a ndarray and no named array of numbers"),
        ({0: np.ones(2)}, "0 is a ndarray and no named array of numbers"),
        ({"model": {"w": np.ones(2)}}, "'model' is a dict and no named array of numbers: pass the state dict itself"),
        ([np.ones(2)], "the tensors are a list and no state dict: pass model.state_dict"),
    ):
        with pytest.raises(TypeError, match=said):
            pytorch.write_tensors(path, wrong)
    with pytest.raises(OSError, match=r"cannot write .*none"):
        pytorch.write_tensors(tmp_path / "none" / f"x{suffix}", given)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_formats_of_safetensors_are_read_or_named(tmp_path):
    path = tmp_path / "x.safetensors"
    for code, said in (("F8_E5M2", ""), ("F8_E4M3", ""), ("I8", "as integers"), ("F6_E2M3", "no readable|F6_E2M3")):
        head = json.dumps({"a.weight": {"dtype": code, "shape": [4], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + b"\x38\x3c\0\0")
        with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
            found = pytorch.read_tensors(path)["a.weight"].astype(np.float32)
            np.testing.assert_array_equal(found, [0.5, 1, 0, 0] if code == "F8_E5M2" else [1, 1.5, 0, 0])


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
    with pytest.raises(
        FileNotFoundError, match=r"there is no file .*none.npz: give one of weights \(.safetensors, .npz"
    ):
        pytorch.read_tensors(tmp_path / "none.npz")
