"""Rows of arrays, where a CPU back end takes them without a copy."""

import jax
import numpy as np
import pytest

from jaxkd import data
from jaxkd.kernels.rows import take

LARGE = (40, 32, 32, 3)


def values(dtype, shape=LARGE):
    return (np.random.default_rng(0).standard_normal(shape) * 100).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float32", "complex64", "bool", "U7", object])
@pytest.mark.parametrize("shape", [LARGE, (40,), (40, 0)])
def test_rows_are_those_of_indexing(dtype, shape):
    given, rows = values(dtype, shape), np.array([3, 39, 0, 3, 17, 21])
    found = take(given, rows)
    assert found.dtype == given.dtype
    assert not np.shares_memory(found, given)
    np.testing.assert_array_equal(found, given[rows])


@pytest.mark.parametrize("order", ["F", "strided", "read only"])
def test_however_the_array_lies(order):
    given = {
        "F": np.asfortranarray(values("uint8")),
        "strided": values("uint8")[:, ::2, ::-1],
        "read only": values("uint8"),
    }[order]
    given.flags.writeable = False
    rows = np.arange(40)[::-1]
    np.testing.assert_array_equal(take(given, rows), given[rows])


def test_rows_from_behind_no_rows_and_rows_that_are_not_there():
    given = values("uint8")
    rows = np.arange(-40, 0)
    np.testing.assert_array_equal(take(given, rows), given)
    assert take(given, np.arange(0)).shape == (0, 32, 32, 3)
    with pytest.raises(IndexError, match="40"):
        take(given, np.arange(1, 41))


def test_a_device_needs_no_copy_of_a_batch():
    source = data.open_source({"image": values("uint8"), "label": np.zeros(40, np.int64)}, num_classes=2)
    for read in (source.read, data.in_memory(source).read):
        for _ in range(8):  # one in four lies right by chance
            batch = read(np.arange(6, 36))
            placed = jax.device_put(batch["image"], jax.devices()[0])
            assert placed.unsafe_buffer_pointer() == batch["image"].ctypes.data
