"""A loss on a network's outputs inside one program has the value and the gradient that it has on them as arrays.

XLA may compute an output twice in one program, rounded in two ways: then the difference of an example and itself, or of
equal sides, is not 0 but a rounding error, of which nothing may come. Every loss with a declaration is tried.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxkd import losses, testing
from jaxkd.testing.draw import Draw, Sizes

PIXELS = 9  # 1 / 9 is not exact, so that a processor may fuse the mean with what follows and round it otherwise
B, D = 8, 5
OPTIMISED = {"xla_backend_optimization_level": 1}  # enough to fuse and to contract, as in users' programs
ENDS = ("mean", "softmax", "batch norm")


def network(pixels, end, whole):
    """Outputs [B, ...] of pixels [B, ..., PIXELS], of which the last layer is `ENDS[end]`.

    For losses of single examples it may be traced, so that one program has the mean and the batch norm by running
    statistics. For losses of pairs (`whole`) it is static: what is selected afterwards is rounded in one way.
    """
    x = jnp.mean(pixels, axis=-1)
    if not whole:
        return jnp.where(end == 0, x, 0.83 * (x - 0.05) + 0.1)
    if end < 2:
        return jax.nn.softmax(x, axis=-1) if end else x
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    return 0.7 * centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=0, keepdims=True) + 1e-5) + 0.1


def is_pixels(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def outputs(inputs, end, whole):
    """The inputs of a loss from pixels; labels and masks are as they are."""
    return jax.tree.map(lambda x: network(x, end, whole) if is_pixels(x) else x, inputs)


@functools.cache
def example(name):
    """A loss of (first input, other inputs), and these, as pixels; two rows are equal on both sides."""
    declared, rng = testing.declaration_of(getattr(losses, name)), np.random.default_rng(0)
    found = declared.example(Draw(Sizes(batch=B)))
    soft = [k for k in found.inputs if declared.kinds.get(k) == "probabilities"]  # labels, which no network makes

    def single(x):
        return np.asarray(x, np.float32) if getattr(x, "dtype", None) == np.float64 else x

    def pixels(x):
        x = np.array(x)
        if is_pixels(x):
            x = (x[..., None] * rng.uniform(0.5, 1.5, (*x.shape, PIXELS))).astype(np.float32)
        x[5] = x[2]
        return x

    sides = {k: v for k, v in found.inputs.items() if k not in soft}
    arrays = {k: [pixels(x) for x in v] if isinstance(v, list) else pixels(v) for k, v in sides.items()}
    fixed, first = jax.tree.map(single, {**found.fixed, **{k: found.inputs[k] for k in soft}}), next(iter(arrays))
    rest = {k: v for k, v in arrays.items() if k != first}

    def loss(x, rest):
        values = found.call(**{first: x, **rest}, **fixed)
        return jnp.sum(values * jnp.cos(jnp.arange(values.size, dtype=values.dtype)).reshape(values.shape))

    return loss, arrays[first], rest


def equal_sides(name):
    """The inputs with the second side's pixels set to the first's, where they have one shape."""
    _, first, rest = example(name)
    other = next((k for k, v in rest.items() if jax.tree.map(np.shape, v) == jax.tree.map(np.shape, first)), None)
    return first, {**rest, other: first} if other else rest


def inside(names, whole):
    """(pixels by name, end) -> values, and gradients in the first side's pixels, of outputs made inside the program."""

    def one(name, first, rest, end):
        loss = example(name)[0]
        return jax.value_and_grad(lambda x: loss(outputs(x, end, whole), outputs(rest, end, whole)))(first)

    return lambda pixels, end: {name: one(name, *pixels[name], end) for name in names}


def on_arrays(names):
    """(outputs by name) -> values, and gradients in the first side, of outputs that are given as arrays."""
    return lambda arrays: {name: jax.value_and_grad(example(name)[0])(*arrays[name]) for name in names}


make = jax.jit(network, static_argnums=(1, 2))


@functools.partial(jax.jit, static_argnums=(2, 3))
def pull(pixels, slope, end, whole):
    """Gradient in the pixels from that in the outputs."""
    return jax.vjp(lambda x: network(x, end, whole), pixels)[1](slope)[0]


def differences(found, expected, scales):
    """Names of the losses whose value or gradient differs, with what they are."""
    wrong = {}
    for name, (value, slope) in expected.items():
        off = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (found[name][1], slope)), strict=True))
        scale = scales[name]["value"], scales[name]["slope"]
        if not (abs(found[name][0] - value) <= 1e-4 * scale[0] and off <= 1e-3 * scale[1]):
            wrong[name] = f"{found[name][0]} for {value}, gradient off by {off} of {scale[1]}"
    return wrong


def scales_of(expected):
    size = lambda tree: max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))  # noqa: E731
    return {name: {"value": max(size(v), 1e-3), "slope": max(size(g), 1e-6)} for name, (v, g) in expected.items()}


def compare(names, whole, ends, place=lambda tree: tree):
    """Runs both programs for each last layer, with different and with equal sides; returns what differs."""
    fixed = 1 if whole else ()
    program = jax.jit(inside(names, whole), static_argnums=fixed, compiler_options=OPTIMISED)
    reference = jax.jit(on_arrays(names))
    wrong = {}
    for end, equal in itertools.product(ends, (False, True)):
        pixels = {name: equal_sides(name) if equal else example(name)[1:] for name in names}
        made = jax.tree.map(lambda x: np.asarray(make(x, end, whole)) if is_pixels(x) else x, pixels)  # noqa: B023
        expected = {
            name: (float(value), jax.tree.map(lambda x, d: np.asarray(pull(x, d, end, whole)), pixels[name][0], slope))  # noqa: B023
            for name, (value, slope) in reference(made).items()
        }
        if not equal:  # at equality most values and gradients are 0
            scales = scales_of(expected)
        found = jax.tree.map(np.asarray, program(place(pixels), end))
        wrong |= {(ENDS[end], equal, k): v for k, v in differences(found, expected, scales).items()}
    return wrong


def of_kind(coupled):
    kinds = {name: testing.declaration_of(getattr(losses, name)).kind for name in losses.__all__}
    return [name for name in losses.__all__ if (kinds[name] == "couples the batch") == coupled]


def module_of(name):
    return getattr(losses, name).__module__.rpartition(".")[2]


@pytest.mark.parametrize("module", sorted(set(map(module_of, of_kind(coupled=False)))))
def test_losses_of_single_examples(module):
    assert not compare([name for name in of_kind(coupled=False) if module_of(name) == module], False, (0, 2))


PLACES = {"mean": (1, slice(None)), "softmax": (8, slice(0, None, 2)), "batch norm": (8, slice(1, None, 2))}
"""Last layer -> devices, and which of the losses: all on each number of devices, half of them with each layer on 8."""


@pytest.mark.parametrize("end", ENDS)
def test_losses_that_couple_the_batch(end):
    devices, part = PLACES[end]
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    names = of_kind(coupled=True)[part]
    assert not compare(names, True, [ENDS.index(end)], lambda pixels: jax.device_put(pixels, rows))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("loss", [losses.rkd_angle, losses.rkd_distance])
def test_a_row_that_is_not_finite_is_seen_in_the_loss(loss, bad):
    student, teacher = np.random.default_rng(0).standard_normal((2, B, D)).astype(np.float32)
    student[2, 1] = bad
    assert not np.isfinite(jax.jit(loss)(student, teacher))
