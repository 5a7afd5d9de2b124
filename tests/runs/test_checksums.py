"""What is noted of arrays: the same on any devices, another as soon as one bit is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.runs.checksums import Entry, differences, inventory

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "uint32", "int16", "int8", "bool", "complex64")


def checksum(x):
    return inventory(x)[""].checksum


def array(dtype, shape=(8, 6)):
    numbers = np.random.default_rng(0).integers(-40, 40, shape)
    return jnp.asarray(numbers % 2 if dtype == "bool" else numbers).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_bit_and_place_counts(dtype):
    x = array(dtype)
    host = np.asarray(x)
    sums = {checksum(x)}
    for byte in range(0, host.nbytes, 5):
        for bit in range(0, 1 if dtype == "bool" else 8, 3):
            changed = bytearray(host.tobytes())
            changed[byte] ^= 1 << bit
            sums.add(checksum(jnp.asarray(np.frombuffer(changed, host.dtype).reshape(host.shape))))
    flips = len(range(0, host.nbytes, 5)) * len(range(0, 1 if dtype == "bool" else 8, 3))
    assert len(sums) > 0.9 * flips
    assert checksum(x[::-1]) != checksum(x)
    assert checksum(jnp.swapaxes(x, 0, 1)) != checksum(x)


def test_it_equals_the_formula():
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    words = x.view(np.uint32).ravel().astype(object)
    expected = sum(int(w) * (2 * i + 1) for i, w in enumerate(words)) % 2**32
    assert checksum(jnp.asarray(x)) == expected


def test_bits_that_compare_equal_or_not_at_all_are_told_apart():
    assert checksum(jnp.array([0.0])) != checksum(jnp.array([-0.0]))
    assert checksum(jnp.array([jnp.nan])) == checksum(jnp.array([jnp.nan]))


@pytest.mark.parametrize("spec", [(), ("a",), (None, "b"), ("a", "b"), (("a", "b"),)])
def test_no_sharding_changes_it(spec):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    x = array("float32", (8, 6, 3))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert checksum(placed) == checksum(x)


def test_keys_scalars_and_empty_arrays_have_one_and_shapes_have_none():
    tree = {"key": jax.random.key(3), "step": jnp.int32(4), "none": None, "empty": jnp.zeros((0, 3))}
    found = inventory(tree)
    assert {path: entry.array for path, entry in found.items()} == {
        "key": "key<fry>[]",
        "step": "int32[]",
        "empty": "float32[0,3]",
    }
    assert found["key"] != inventory({"key": jax.random.key(4)})["key"]
    shapes = inventory(jax.eval_shape(lambda: tree))
    assert all(entry.checksum is None for entry in shapes.values())
    assert differences(found, shapes) == []


def test_differences_name_a_few_and_count_the_rest():
    there = {**{f"a{i}": Entry("int32[]", 1) for i in range(6)}, "b": Entry("int32[2]", 1), "c": Entry("int32[]", 1)}
    here = {"b": Entry("int32[3]", 1), "c": Entry("int32[]", 2), "d": Entry("int32[]", 1)}
    assert differences(there, here) == [
        "lacks d",
        "also holds a0, a1, a2 and 3 more",
        "holds in another shape or dtype b (int32[2], not int32[3])",
        "differs from the saved bits in c",
    ]
    assert differences(there, there) == []
