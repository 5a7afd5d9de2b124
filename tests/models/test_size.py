"""What is counted of a program: against formulas of its architecture."""

import jax
import jax.numpy as jnp
import pytest

from jaxkd import models
from jaxkd.kernels import convolution
from jaxkd.models.size import count_work


def count(function, *shapes):
    return count_work(function, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))


def test_products_are_counted_by_their_formulas():
    assert count(jnp.matmul, (3, 4), (4, 5)) == (2 * 3 * 4 * 5, 0, 4 * (12 + 20 + 15), 1)
    assert count(jnp.sum, (3, 4)) == (0, 12, 4 * 12, 1)
    assert count(jnp.tanh, (3, 4)) == (0, 12, 0, 0), "an element is computed in a kernel that is there already"
    assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 4), (2, 4, 5)).products == 2 * 2 * 3 * 4 * 5


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 2), (2, 1)])
@pytest.mark.parametrize("form", [jax.lax.conv_general_dilated, convolution.convolve])
def test_a_convolution_and_both_its_gradients_cost_the_same(form, size, stride):
    forward = 2 * 2 * (size // stride) ** 2 * 9 * 3 * 5

    def convolve(x, w):
        return form(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradients(x, w):
        y, back = jax.vjp(convolve, x, w)
        return back(y)

    assert count(convolve, (2, size, size, 3), (3, 3, 3, 5)).products == forward
    assert count(gradients, (2, size, size, 3), (3, 3, 3, 5)).products == 3 * forward


def test_loops_branches_and_derivative_rules_are_counted_once():
    def looped(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    assert count(looped, (4, 4)) == (7 * 2 * 4**3, 0, 7 * 4 * 3 * 16, 7)
    assert count(lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x), (4, 4)).products == 256
    assert count(jax.jit(jax.nn.relu), (4, 4)).elements == 16
    assert count(lambda x: jnp.sum(x + 1), (4, 4)).elements == 32


def test_bert_forward_is_what_its_architecture_says():
    B, L, D, layers, classes = 2, 16, 32, 3, 7
    model = models.bert(classes, vocabulary=50, layers=layers, width=D, heads=4)
    batch = {"tokens": jnp.zeros((B, L), jnp.int32), "token_mask": jnp.ones((B, L), bool)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    found = count_work(lambda v: model.apply(v, batch, None, False)[0].logits, variables)
    assert found.products == layers * (24 * B * L * D**2 + 4 * B * L**2 * D) + 2 * B * D * D + 2 * B * D * classes
    assert 0 < found.elements < found.products


def test_resnet_20_forward_is_what_its_architecture_says():
    model, image = models.resnet(10, depth=20), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), {"image": image})
    found = count_work(lambda v: model.apply(v, {"image": image}, None, False)[0].logits, variables)
    stages = [2 * 9 * 16 * 3 * 1024, 6 * 2 * 9 * 16 * 16 * 1024]
    for width, pixels in ((32, 256), (64, 64)):
        stages += [2 * 9 * width * (width // 2 + 5 * width) * pixels, 2 * width * width // 2 * pixels]
    assert found.products == sum(stages) + 2 * 64 * 10
