"""Parts of networks that are written otherwise than flax has them, beside flax's own and float64 twins."""

import ast
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close

from jaxkd import models
from jaxkd.kernels import dense
from jaxkd.kernels.dense import gelu
from jaxkd.models.layers import Dense, perceptron


def both(x, features=5):
    """Outputs and gradients of the library's layer and of flax's, as compiled functions of the same variables."""
    variables = nn.Dense(features).init(jax.random.key(0), x)

    def program(layer):
        def loss(variables, x):
            y = layer.apply(variables, x)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

    return variables, (program(Dense(features)), program(nn.Dense(features)))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (2, 3, 4), (0, 3)])
def test_dense_is_that_of_flax(lead):
    x = np.random.default_rng(0).standard_normal((*lead, 7)).astype(np.float32)
    variables, (ours, theirs) = both(x)
    assert_trees_close(ours(variables, x), theirs(variables, x), rtol=1e-6, atol=1e-6)


def test_dense_has_forward_mode_stacks_and_bfloat16():
    x = np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)
    variables, (ours, theirs) = both(x)
    tangents = jax.tree.map(jnp.cos, (variables, x))
    assert_trees_close(*(jax.jvp(f, (variables, x), tangents) for f in (ours, theirs)), rtol=1e-5, atol=1e-5)
    stack = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), variables)
    assert_trees_close(*(jax.vmap(f, (0, None))(stack, x) for f in (ours, theirs)), rtol=1e-5, atol=1e-5)
    assert Dense(5, dtype=jnp.bfloat16).apply(variables, x).dtype == jnp.bfloat16


def test_the_gradient_of_dense_brings_no_channels_to_the_front():
    """XLA's own does, for inputs of three axes; once it does not, `Dense` can be flax's again."""
    x = jnp.ones((8, 16, 24))
    variables, programs = both(x, features=40)
    in_front = ["f32[40,128]" in f.lower(variables, x).compile().as_text() for f in programs]
    assert in_front == [False, True]


def test_gelu_is_x_times_the_normal_distribution():
    x = np.linspace(-12, 12, 4001)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])
    slope = exact / np.where(x == 0, 1, x) + x * np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    slope[x == 0] = 0.5
    np.testing.assert_allclose(gelu(jnp.float32(x)), exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jnp.float32(x)), slope, rtol=1e-6, atol=1e-6)


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-6, 6, 2001).astype(jnp.bfloat16)
    exact = [0.5 * v * math.erfc(-v / math.sqrt(2)) for v in np.float64(x)]
    assert gelu(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(gelu(x)), exact, rtol=2**-8, atol=1e-6)


def test_a_perceptron_is_two_layers_of_flax():
    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            return perceptron(x, nn.initializers.normal(1.0))

    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(6, name="mlp2")(nn.gelu(nn.Dense(24, name="mlp1")(x), approximate=False))

    x = jax.random.normal(jax.random.key(1), (2, 3, 6))
    variables = Ours().init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, Theirs().init(jax.random.key(0), x))
    np.testing.assert_allclose(Ours().apply(variables, x), Theirs().apply(variables, x), rtol=1e-5, atol=1e-5)


MODELS = pathlib.Path(models.__file__).parent
WRAPPED = {"Conv", "Dense", "BatchNorm", "gelu"}
"""Layers and activations of flax and jax in whose place `layers` and `kernels` have their own."""


def unwrapped(text):
    """Uses of a wrapped layer under any name that a file gives to flax.linen or jax.nn."""
    tree, names = ast.parse(text), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            whole = {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname}
            names |= whole | {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            path = ast.unparse(node).split(".")
            full = ".".join([names.get(path[0], path[0]), *path[1:]])
            library, _, name = full.rpartition(".")
            if name in WRAPPED and library.startswith(("flax.linen", "jax.nn")):
                yield f"line {node.lineno}: {full}"


def test_what_layers_wraps_is_what_the_networks_must_not_use():
    """Else a wrapper that is added escapes the next test: of flax's layers, those that `layers` itself reads."""
    tree = ast.parse((MODELS / "layers.py").read_text())
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nn"}
    kernels = {name for name in vars(dense) if hasattr(nn, name) and callable(getattr(nn, name))}
    assert read | kernels == WRAPPED


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.py")), ids=lambda p: str(p.relative_to(MODELS)))
def test_networks_use_our_layers_where_there_are_any(path):
    if path.name not in ("layers.py", "statistics.py"):  # these name Flax's own, to make ours of it or to find it
        assert list(unwrapped(path.read_text())) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import flax.linen as nn\nnn.Dense(3)",
        "import flax\nflax.linen.Conv(3, (1, 1))",
        "from flax import linen\nlinen.BatchNorm()",
        "from flax.linen import Dense as Linear\nLinear(3)",
        "import jax\njax.nn.gelu(1.0)",
        "import flax.linen as nn\nactivation = nn.gelu",
    ],
)
def test_a_planted_layer_is_found(planted):
    assert len(list(unwrapped(planted))) == 1
