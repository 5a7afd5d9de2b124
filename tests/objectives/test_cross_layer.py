"""Terms of methods on several layers: the authors' numbers, and formulas by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.test_golden import adapter
from objectives.methods import (
    LAYERS,
    NORMS,
    STUDENT,
    TEACHER,
    B,
    draw,
    evaluate,
    given,
    golden,
    outputs,
    start,
    started,
    value_of,
)

from jaxkd import losses, objectives
from jaxkd.losses.maps import ofd_margin
from jaxkd.objectives import networks


def test_ofd_is_the_authors():
    _, x = golden("ofd")
    params = [{"kernel": x["conn_kernel"], "scale": x["conn_bn_scale"], "bias": x["conn_bn_bias"]}]
    norms = [(x["teacher_bn_scale"], x["teacher_bn_bias"])]
    term = objectives.ofd(students=["f"], teachers=["f"], norms=norms, scale=1.0)
    found = given(term, params, outputs(f=x["student_feature"]), outputs(f=x["teacher_feature"]))
    assert found * len(x["student_feature"]) == pytest.approx(float(x["value"]), rel=1e-5)


def test_semckd_is_the_authors():
    h, x = golden("semckd")
    S, T = h["layers_s"], h["layers_t"]
    each = ("kernel1", "bias1", "kernel2", "bias2")
    params = {
        "queries": [{n: x[f"query_{i}_{n}"] for n in each} for i in range(S)],
        "keys": [{n: x[f"key_{j}_{n}"] for n in each} for j in range(T)],
        "projections": [
            [{n: x[f"reg_{i}{j}_{k}"] for n, k in adapter.BOTTLENECK.items()} for j in range(T)] for i in range(S)
        ],
    }
    names = {"students": [f"f{i}" for i in range(S)], "teachers": [f"f{j}" for j in range(T)]}
    term = objectives.semckd(**names, soft=float(h["soft"]))
    student = outputs(**{f"f{i}": x[f"student_feature_{i}"] for i in range(S)})
    teacher = outputs(**{f"f{j}": x[f"teacher_feature_{j}"] for j in range(T)})
    assert value_of(term, params, student, teacher, {}) == pytest.approx(float(x["value"]), rel=1e-4)


def test_deeper_layers_count_twice_in_ofd():
    term = objectives.ofd(**LAYERS, norms=NORMS, scale=0.5)
    owned = start(term)

    @functools.partial(jax.jit, static_argnums=0)
    def of_layer(name, p, norm):
        made = objectives.connector().apply(p, STUDENT.features[name])
        return jnp.mean(losses.ofd(made, TEACHER.features[name], ofd_margin(*norm)))

    each = [of_layer(*layer) for layer in zip(LAYERS["students"], owned.params, NORMS, strict=True)]
    assert float(evaluate(term, owned)[0]) == pytest.approx(0.5 * float(0.5 * each[0] + each[1]), rel=1e-5)


@pytest.mark.parametrize(("feature", "shape"), [("stage2", (B, 4, 4)), ("pooled", (B, 1, 1))])
def test_review_without_deeper_stages_is_the_hierarchical_loss_of_a_connector(feature, shape):
    term = objectives.review(students=[feature], teachers=[feature])
    owned = start(term)

    @jax.jit
    def expected(fusion):
        s, t = (side.features[feature].reshape(*shape, -1) for side in (STUDENT, TEACHER))
        made, residual = networks.fusion().apply(fusion, s, None)
        assert residual.shape == (*shape, 8)
        return jnp.mean(losses.review_hcl(made, t))

    (fusion,) = owned.params
    assert float(evaluate(term, owned)[0]) == pytest.approx(float(expected(fusion)), rel=1e-5)


def test_fusion_mixes_by_its_attention():
    fusion = started("review").params[0]
    deeper = draw(B, 4, 4, 8)
    only = {**fusion, "attention_kernel": jnp.zeros((1, 1, 16, 2)), "attention_bias": jnp.asarray([50.0, -50.0])}
    alone = {k: v for k, v in fusion.items() if not k.startswith("attention")}
    feature = STUDENT.features["stage1"]
    fuse = jax.jit(networks.fusion().apply)
    one, two = fuse(only, feature, deeper), fuse(alone, feature, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
    swapped = {**only, "attention_bias": jnp.asarray([-50.0, 50.0])}
    _, residual = fuse(swapped, feature, deeper)
    np.testing.assert_allclose(residual, np.repeat(np.repeat(deeper, 2, 1), 2, 2), atol=1e-5)
    with pytest.raises(ValueError, match="needs attention_kernel and attention_bias"):
        networks.fusion().apply(alone, feature, deeper)
