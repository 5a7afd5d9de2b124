"""What the benchmarks count and how they take turns: against formulas of the architecture, and against a clock."""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "benchmarks"


@pytest.fixture(autouse=True, scope="module")
def here():
    """As for a script in that folder."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def count():
    import _costs

    return lambda function, *shapes: _costs.work(function, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


def test_products_are_counted_by_their_formulas(count):
    assert count(jnp.matmul, (3, 4), (4, 5)) == (2 * 3 * 4 * 5, 0)
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5)).products == 2 * 2 * 3 * 4 * 5


def convolve(stride):
    def call(x, w):
        return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return call


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_both_its_gradients_cost_the_same(count, stride):
    forward = 2 * 2 * (8 // stride) ** 2 * 9 * 3 * 5
    assert count(convolve(stride), (2, 8, 8, 3), (3, 3, 3, 5)).products == forward

    def gradients(x, w):
        y, back = jax.vjp(convolve(stride), x, w)
        return back(y)

    found = count(gradients, (2, 8, 8, 3), (3, 3, 3, 5)).products
    assert found == 3 * forward


def test_loops_branches_and_derivative_rules_are_counted_once(count):
    def looped(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    assert count(looped, (4, 4)).products == 7 * 2 * 4**3
    assert count(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), (4, 4)).products == 256
    assert count(jax.jit(jax.nn.relu), (4, 4)).elements == 16
    assert count(lambda x: jnp.sum(x + 1), (4, 4)).elements == 32


def test_bert_forward_is_what_its_architecture_says():
    import _costs

    B, L, D, layers, classes = 2, 16, 32, 3, 7
    model = models.bert(classes, vocabulary=50, layers=layers, width=D, heads=4)
    batch = {"tokens": jnp.zeros((B, L), jnp.int32), "token_mask": jnp.ones((B, L), bool)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    found = _costs.work(lambda v: model.apply(v, batch, None, False)[0].logits, variables)
    assert found.products == layers * (24 * B * L * D**2 + 4 * B * L**2 * D) + 2 * B * D * D + 2 * B * D * classes
    assert 0 < found.elements < found.products


def test_resnet_20_forward_is_what_its_architecture_says():
    import _costs

    model, image = models.resnet(10, depth=20), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), {"image": image})
    found = _costs.work(lambda v: model.apply(v, {"image": image}, None, False)[0].logits, variables)
    stages = [2 * 9 * 16 * 3 * 1024, 6 * 2 * 9 * 16 * 16 * 1024]
    for width, pixels in ((32, 256), (64, 64)):
        stages += [2 * 9 * width * (width // 2 + 5 * width) * pixels, 2 * width * width // 2 * pixels]
    assert found.products == sum(stages) + 2 * 64 * 10


def test_peers_take_turns_and_each_is_first_in_turn():
    import _timing

    order = []

    def slow(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    times = _timing.alternate({"a": slow("a", 0.002), "b": slow("b", 0.02)}, rounds=3, seconds=0)
    assert "".join(order) == "abbaab"
    assert np.all(times["b"] >= 0.02)
    assert times["a"].shape == (3,)


def test_tables_are_written_as_json_and_markdown(tmp_path, capsys):
    import json

    import _timing

    rows = [{"what": "x", "ms": _timing.spread([1.0, 2.0, 3.0]), "raw": np.arange(2)}]
    _timing.publish(str(tmp_path / "deep" / "t.json"), "A title", rows, {"what": "what", "ms": "ms"}, notes=["So."])
    written = json.loads((tmp_path / "deep" / "t.json").read_text())
    assert written["rows"] == [{"what": "x", "ms": "2 (1.5..2.5)", "raw": [0, 1]}]
    text = (tmp_path / "deep" / "t.md").read_text()
    assert text in capsys.readouterr().out
    assert "| x | 2 (1.5..2.5) |" in text


def test_every_loss_has_inputs_on_which_it_and_its_gradient_can_be_traced():
    import argparse

    import loss_costs

    from jaxkd import losses

    table = loss_costs.cases(loss_costs.Draw(argparse.Namespace(**loss_costs.SMALL)))
    assert set(table) == set(losses.__all__)
    for name, (function, arrays) in table.items():
        value, gradient = jax.eval_shape(loss_costs.forward_and_gradient(function)["gradient"], *arrays)
        assert value.shape == (), name
        assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, arrays[0]), name
