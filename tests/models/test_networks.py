"""The networks that come with the library: shapes, documented names, and sizes counted from the architecture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shapes

from jaxkd import models
from jaxkd.types import Variables


def dense(inputs, outputs):
    return (inputs + 1) * outputs


def conv_norm(size, inputs, outputs):
    """A convolution without bias and a batch norm's scale and bias."""
    return size * size * inputs * outputs + 2 * outputs


def resnet_size(depth, classes, widen):
    """Parameters of a CIFAR ResNet on RGB, and how many of them are in the 1x1 convolutions of its shortcuts."""
    blocks, width = (depth - 2) // 6, 16
    total, shortcuts = conv_norm(3, 3, 16), 0
    for out in (16 * widen, 32 * widen, 64 * widen):
        total += conv_norm(3, width, out) + (2 * blocks - 1) * conv_norm(3, out, out)
        shortcuts += conv_norm(1, width, out) if width != out else 0
        width = out
    return total + shortcuts + dense(width, classes), shortcuts


@pytest.mark.parametrize(
    ("depth", "classes", "widen", "count", "paper"),
    [
        (8, 10, 1, 78_042, None),
        (20, 10, 1, 272_474, 0.27),
        (56, 10, 1, 855_770, 0.85),
        (8, 10, 2, 304_154, None),
    ],
)
def test_resnet_has_the_size_of_its_architecture(depth, classes, widen, count, paper):
    logits, features, found = shapes(models.resnet(classes, depth=depth, widen=widen), (2, 32, 32, 3))
    expected, shortcuts = resnet_size(depth, classes, widen)
    assert found == expected == count
    if paper:  # its table has shortcuts without parameters
        assert round((found - shortcuts) / 1e6, 2) == paper
    assert logits == (2, classes)
    stages = {f"stage{i + 1}": (2, 32 // 2**i, 32 // 2**i, 2**i * 16 * widen) for i in range(3)}
    before = {f"{name}_preact": shape for name, shape in stages.items()}
    rest = {"stem": (2, 32, 32, 16), "last": stages["stage3"], "pooled": (2, 64 * widen)}
    assert features == {**stages, **before, **rest}


@pytest.mark.parametrize("depth", [-4, 2, 7, 18, 51])
def test_resnet_of_another_depth_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth 6n \+ 2 but depth is {depth}: choose 8, 14, 20, 32, 44, 56 or 110"):
        models.resnet(10, depth=depth)


@pytest.mark.parametrize("widths", [(4,), (4, 8), (4, 8, 6)])
def test_convnet_halves_between_stages(widths):
    logits, features, count = shapes(models.convnet(7, widths=list(widths)), (2, 8, 8, 3))
    assert logits == (2, 7)
    stages = {f"stage{i + 1}": (2, 8 // 2**i, 8 // 2**i, w) for i, w in enumerate(widths)}
    assert features == {**stages, "pooled": (2, widths[-1])}
    before = (3, *widths)
    convolutions = sum(conv_norm(3, a, b) + conv_norm(3, b, b) for a, b in zip(before, widths, strict=False))
    assert count == convolutions + dense(widths[-1], 7)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_mlp_has_a_feature_for_every_hidden_layer(hidden):
    logits, features, count = shapes(models.mlp(7, hidden=list(hidden)), (2, 4, 4, 3))
    assert logits == (2, 7)
    widths = (48, *hidden)
    assert features == {**{f"hidden{i}": (2, w) for i, w in enumerate(hidden, 1)}, "pooled": (2, widths[-1])}
    assert count == sum(dense(a, b) for a, b in zip(widths, (*hidden, 7), strict=True))


def forward(model, train=False, seed=0):
    batch = {"image": np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32)}
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    return variables, *jax.jit(model.apply, static_argnums=3)(variables, batch, jax.random.key(seed), train)


def test_mlp_equals_numpy():
    variables, out, _ = forward(models.mlp(3, hidden=(5, 4)))
    x = np.random.default_rng(0).standard_normal((6, 8, 8, 1)).astype(np.float32).reshape(6, -1)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    for i in (1, 2):
        x = np.maximum(x @ p[f"dense{i}"]["kernel"] + p[f"dense{i}"]["bias"], 0)
        np.testing.assert_allclose(out.features[f"hidden{i}"], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.logits, x @ p["head"]["kernel"] + p["head"]["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [models.mlp, models.convnet], ids=["mlp", "convnet"])
def test_features_are_taken_before_dropout_and_the_head_after_it(make):
    model = make(3, dropout=0.5, **({"hidden": (32,)} if make is models.mlp else {"widths": (32,)}))
    _, one, _ = forward(model, train=True, seed=1)
    _, other, _ = forward(model, train=True, seed=2)
    np.testing.assert_array_equal(one.features["pooled"], other.features["pooled"])
    assert float(jnp.abs(one.logits - other.logits).max()) > 1e-3


@pytest.mark.parametrize("make", [models.convnet, lambda k: models.resnet(k, depth=8)], ids=["convnet", "resnet"])
def test_pooled_is_the_mean_of_the_last_stage_and_feeds_the_head(make):
    variables, out, state = forward(make(3), train=True)
    last = np.asarray(out.features[max(n for n in out.features if n[-1].isdigit())], np.float64)
    np.testing.assert_allclose(out.features["pooled"], last.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
    head = variables.params["head"]
    expected = last.mean(axis=(1, 2)) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(out.logits, expected, rtol=1e-3, atol=1e-4)
    assert (last >= 0).all()
    assert (last == 0).any()  # the ReLU comes last
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state, variables.state)
    assert min(jax.tree.leaves(moved)) > 0  # every batch norm is in use
    assert isinstance(variables, Variables)
