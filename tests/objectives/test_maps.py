"""Terms of methods on maps: the authors' numbers, formulas by hand, maps of other sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses.test_golden import stored
from objectives.methods import (
    BATCH,
    MAP,
    PARAPHRASER,
    STUDENT,
    TEACHER,
    TERMS,
    B,
    K,
    draw,
    evaluate,
    given,
    golden,
    outputs,
    start,
    started,
)

from jaxkd import losses, objectives
from jaxkd.losses import dense
from jaxkd.objectives import networks
from jaxkd.types import Outputs


def test_vid_is_the_authors():
    h, x = golden("vid")
    params = {"kernels": [x[f"kernel{i}"] for i in (1, 2, 3)], "log_scale": x["log_scale"]}
    term = objectives.vid(student="f", teacher="f", hidden=x["kernel1"].shape[-1], eps=h["eps"])
    found = given(term, params, outputs(f=x["student_feature"]), outputs(f=x["teacher_feature"]))
    assert found == pytest.approx(float(x["value"]), rel=1e-5)


def test_srrl_is_the_authors():
    h, x = golden("srrl")
    params = {"kernel": x["conn_kernel"], "scale": x["bn_scale"], "bias": x["bn_bias"]}
    classifier = (x["teacher_fc_kernel"], x["teacher_fc_bias"])
    term = objectives.srrl(student="f", teacher="f", classifier=classifier, beta=float(h["weight"]))
    teacher = outputs(x["teacher_logits"], f=x["teacher_feature"])
    assert given(term, params, outputs(f=x["student_feature"]), teacher) == pytest.approx(float(x["value"]), rel=1e-5)


def test_fgd_is_the_authors():
    h, x = golden("fgd", next(c for c in ("case0", "case1") if "align_kernel" in stored("fgd", c)[1]))
    blocks = {
        name: dense.Context(*(x[f"{prefix}_{field}"] for field in dense.Context._fields))
        for name, prefix in (("student", "s"), ("teacher", "t"))
    }
    params = {"align": {"kernel": x["align_kernel"][0, 0], "bias": x["align_bias"]}, **blocks}
    options = {
        "alpha": h["alpha"],
        "beta": h["beta"],
        "gamma": h["gamma"],
        "lambda_": h["lam"],
        "temperature": h["temp"],
    }
    term = objectives.fgd(student="f", teacher="f", image_shape=tuple(h["img_shape"]), **options)
    sides = outputs(f=x["student_feature"]), outputs(f=x["teacher_feature"])
    assert given(term, params, *sides, {"boxes": x["boxes"]}) == pytest.approx(float(x["value"]), rel=1e-5)


def test_ft_meets_the_paraphrasers_factor():
    term, owned = TERMS["ft"], started("ft")

    @jax.jit
    def expected(student, teacher):
        translate = networks.translator().apply
        return jnp.mean(losses.ft(translate(owned.params, student), translate(PARAPHRASER, teacher)))

    found = float(evaluate(term, owned)[0])
    assert found == pytest.approx(float(expected(STUDENT.features["stage1"], TEACHER.features["stage1"])), rel=1e-5)


def test_mgd_hides_the_share_that_it_says():
    term = objectives.mgd(**MAP, hidden=0.25, over="positions")
    nothing = objectives.mgd(**MAP, hidden=0.0)
    owned = start(nothing)

    @jax.jit
    def values(p):
        hidden = [term.apply(owned, STUDENT, TEACHER, BATCH, jax.random.key(k), jnp.int32(0))[0] for k in (1, 2)]
        aligned = objectives.linear().apply(p["align"], STUDENT.features["stage1"])
        made = networks.generator().apply(p, aligned, jnp.ones((B, 1, 1, 6)))
        return *hidden, jnp.mean(losses.mgd(made, TEACHER.features["stage1"]))

    one, other, expected = values(owned.params)
    assert float(one) != float(other), "the mask is drawn"
    assert float(evaluate(nothing, owned)[0]) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="over='pixels' is not known"):
        objectives.mgd(**MAP, over="pixels")


def with_heads(*sides):
    """Both sides with last maps and last layers of their own widths."""
    maps = [side.features["stage2"] for side in sides]
    return [Outputs(o.logits, {"last": x}, {"kernel": draw(x.shape[-1], K)}) for o, x in zip(sides, maps, strict=True)]


def test_cat_kd_compares_the_maps_that_the_last_layers_make():
    s, t = with_heads(STUDENT, TEACHER)
    term = objectives.cat_kd(resolution=2)
    owned = start(term, s, t)
    value, _, _ = evaluate(term, owned, s, t)
    maps = [
        np.einsum("bhwc,ck->bhwk", *(np.asarray(x, np.float64) for x in (o.features["last"], o.head["kernel"])))
        for o in (s, t)
    ]
    small = [m.reshape(B, 2, 2, 2, 2, K).mean((2, 4)) for m in maps]
    unit = [m / np.sqrt((m**2).sum((1, 2), keepdims=True)) for m in small]
    np.testing.assert_allclose(value, np.mean((unit[0] - unit[1]) ** 2), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda s: evaluate(term, owned, s, t)[0]))(s)
    assert np.any(np.asarray(grads.head["kernel"]))
    with pytest.raises(ValueError, match=r"the teacher does not tell its last layer: .*models.with_head\(teacher\)"):
        start(term, s, t._replace(head=None))


LARGER = Outputs(
    TEACHER.logits,
    {
        name: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        for name, x in TEACHER.features.items()
        if x.ndim == 4 and name.startswith("stage")
    },
)
POOLING = {
    "hint": objectives.from_features(losses.hint, **MAP, project=objectives.linear(), pool=True),
    "ickd": objectives.from_features(losses.ickd, **MAP, project=objectives.connector(), pool=True),
    **{name: TERMS[name] for name in ("ab", "ofd", "ft", "mgd channels")},
}


@pytest.mark.parametrize("name", POOLING)
def test_a_teachers_larger_map_is_pooled_to_the_students(name):
    """What is repeated and pooled again is what it was."""
    term = POOLING[name]
    owned = start(term, teacher=LARGER)
    for one, other in zip(jax.tree.leaves(owned), jax.tree.leaves(start(term)), strict=True):
        assert one.shape == other.shape
    np.testing.assert_allclose(evaluate(term, owned, teacher=LARGER)[0], evaluate(term, owned)[0], rtol=1e-5)
