"""Terms with parameters or banks of their own: they give the authors' numbers, train what they own, and learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from losses.test_golden import stored

from jaxkd import losses, objectives
from jaxkd.losses import dense
from jaxkd.objectives import networks, regressors
from jaxkd.types import Outputs, Variables

B, K, N = 8, 5, 32
RNG = np.random.default_rng(0)
BOTTLENECK = ("k1", "bn1_scale", "bn1_bias", "k2", "bn2_scale", "bn2_bias", "k3")
NAMES = ("kernel1", "scale1", "bias1", "kernel2", "scale2", "bias2", "kernel3")


def draw(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def side(width):
    """Two maps, an embedding, tokens and logits, all functions of a few numbers that can be trained."""
    features = {
        "stage1": draw(B, 8, 8, width),
        "stage2": draw(B, 4, 4, 2 * width),
        "pooled": draw(B, 2 * width),
        **{f"block{i}": draw(B, 9, width) for i in range(3)},
        **{f"attention{i}": draw(B, 2, 9, 9) for i in range(2)},
    }
    return Outputs(draw(B, K), features)


STUDENT, TEACHER = side(4), side(6)
BATCH = {
    "label": jnp.arange(B) % K,
    "id": jnp.arange(B) * 4,
    "boxes": jnp.asarray([[[2.0, 2.0, 20.0, 20.0], [8.0, 0.0, 30.0, 9.0]]] * B),
}
CLASSIFIER = (draw(12, K), draw(K))
NORMS = [(draw(6), draw(6)), (draw(12), draw(12))]
LAYERS = {"students": ["stage1", "stage2"], "teachers": ["stage1", "stage2"]}
MAP = {"student": "stage1", "teacher": "stage1"}
PARAPHRASER = {
    "kernels": [0.2 * draw(3, 3, 6, 6), 0.2 * draw(3, 3, 6, 3), 0.2 * draw(3, 3, 3, 3)],
    "biases": [jnp.zeros(6), jnp.zeros(3), jnp.zeros(3)],
}
TERMS = {
    "vid": objectives.vid(**MAP),
    "ab": objectives.ab(**LAYERS),
    "ofd": objectives.ofd(**LAYERS, norms=NORMS),
    "paraphrase": objectives.paraphrase(teacher="stage1"),
    "ft": objectives.ft(**MAP, paraphraser=PARAPHRASER),
    "mgd channels": objectives.mgd(**MAP, alpha=1e-3),
    "mgd positions": objectives.mgd(**MAP, hidden=0.5, over="positions", alpha=1e-3),
    "vitkd": objectives.vitkd(
        student_low=["block0", "block1"], teacher_low=["block0", "block1"], student_high="block2", teacher_high="block2"
    ),
    "uskd": objectives.uskd(feature="stage1"),
    "srd": objectives.srd(student="pooled", teacher="pooled"),
    "tinybert": objectives.tinybert(
        student_attention=["attention0"],
        teacher_attention=["attention0", "attention1"],
        student_hidden=["block0", "block1"],
        teacher_hidden=["block0", "block1", "block2"],
    ),
    "srrl": objectives.srrl(student="stage2", teacher="stage2", classifier=CLASSIFIER),
    "fgd": objectives.fgd(**MAP, image_shape=(32, 32)),
    "semckd": objectives.semckd(**LAYERS),
    "review": objectives.review(**LAYERS),
    "crd": objectives.crd(student="pooled", teacher="pooled", examples=N, width=5, negatives=16),
    "info_nce_queue": objectives.info_nce_queue(student="pooled", teacher="pooled", size=16, width=5),
    "info_nce": objectives.from_features(
        losses.info_nce,
        student="pooled",
        teacher="pooled",
        project=objectives.linear(width=5),
        project_teacher=objectives.mlp(hidden=(7,), width=5),
    ),
    "hint with a perceptron": objectives.from_features(losses.hint, **MAP, project=objectives.mlp(hidden=(7,))),
    "ickd": objectives.from_features(losses.ickd, **MAP, project=objectives.connector()),
    "fitnet": objectives.from_features(losses.hint, **MAP, project=objectives.regressor()),
    "fitnet, halved": objectives.from_features(
        losses.hint, student="stage1", teacher="stage2", project=objectives.regressor(halve=True, norm=True)
    ),
    "ctkd": objectives.curriculum_temperature(strength=1.0),
    "ctkd of instances": objectives.curriculum_temperature(strength=1.0, instance=True, hidden=8),
}
# What a gradient does not reach in the first step, and why.
UNREACHED = {
    "fgd": ("fc1", "ln", "mask"),  # the block starts as the identity: its last layer is zero
}


def start(term, student=STUDENT, teacher=TEACHER, batch=BATCH):
    shapes = jax.eval_shape(lambda: (student, teacher, batch))
    return jax.jit(lambda key: term.init(key, *shapes))(jax.random.key(0))


@functools.cache
def started(name):
    """What one of the terms above owns before the first step."""
    return start(TERMS[name])


def evaluate(term, owned, student=STUDENT, teacher=TEACHER, batch=BATCH, step=0):
    return jax.jit(term.apply)(owned, student, teacher, batch, jax.random.key(1), jnp.int32(step))


@pytest.mark.parametrize("name", TERMS)
def test_a_term_trains_what_it_owns_and_the_student_and_learns(name):
    term, owned, optimizer = TERMS[name], started(name), optax.adam(3e-2)
    moving = {"term": owned.params, "student": STUDENT}

    def loss(moving, state, step):
        key = jax.random.key(1)
        return term.apply(Variables(moving["term"], state), moving["student"], TEACHER, BATCH, key, step)[:2]

    @jax.jit
    def update(moving, state, opt_state, step):
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(moving, state, step)
        updates, opt_state = optimizer.update(grads, opt_state, moving)
        return optax.apply_updates(moving, updates), state, opt_state, value, grads

    state, opt_state, values = owned.state, jax.jit(optimizer.init)(moving), []
    for step in range(12):
        moving, state, opt_state, value, grads = update(moving, state, opt_state, step)
        values.append(float(value))
        if step == 0:
            still = [
                jax.tree_util.keystr(path)
                for path, g in jax.tree.leaves_with_path(grads["term"])
                if not np.any(np.asarray(g)) and not any(u in str(path) for u in UNREACHED.get(name, ()))
            ]
            assert not still, f"no gradient reaches {still}"
            reached = any(np.any(np.asarray(g)) for g in jax.tree.leaves(grads["student"]))
            assert reached == (name != "paraphrase"), "which is trained before there is a student"
    assert jax.tree.structure(state) == jax.tree.structure(owned.state)
    assert np.all(np.isfinite(values))
    assert np.mean(values[-3:]) < np.mean(values[:3])


# --- the authors' numbers, through the terms ---


def golden(method, case="case0"):
    description, arrays = stored(method, case)
    arrays = {k: jnp.asarray(v, jnp.float32 if v.dtype.kind == "f" else None) for k, v in arrays.items()}
    return description["hyperparameters"], arrays


def outputs(logits=None, **features):
    return Outputs(jnp.zeros((1, K)) if logits is None else logits, features)


def value_of(term, params, student, teacher, batch, alike=lambda own: None):
    """The term's value with other parameters in the places of its own, which `alike` may look at."""
    shapes = jax.eval_shape(lambda: (student, teacher, batch))

    @jax.jit
    def value(params, *inputs):
        owned = term.init(jax.random.key(0), *shapes)
        alike(owned.params)
        return term.apply(owned._replace(params=params), *inputs, jax.random.key(1), jnp.int32(0))[0]

    return float(value(params, student, teacher, batch))


def given(term, params, student, teacher, batch=None):
    """The term's value with the authors' parameters, which have the shapes of its own."""

    def alike(own):
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)

    return value_of(term, params, student, teacher, batch or {}, alike)


def test_vid_is_the_authors():
    h, x = golden("vid")
    params = {"kernels": [x[f"kernel{i}"] for i in (1, 2, 3)], "log_scale": x["log_scale"]}
    term = objectives.vid(student="f", teacher="f", hidden=x["kernel1"].shape[-1], eps=h["eps"])
    found = given(term, params, outputs(f=x["student_feature"]), outputs(f=x["teacher_feature"]))
    assert found == pytest.approx(float(x["value"]), rel=1e-5)


def test_ofd_is_the_authors():
    _, x = golden("ofd")
    params = [{"kernel": x["conn_kernel"], "scale": x["conn_bn_scale"], "bias": x["conn_bn_bias"]}]
    norms = [(x["teacher_bn_scale"], x["teacher_bn_bias"])]
    term = objectives.ofd(students=["f"], teachers=["f"], norms=norms, scale=1.0)
    found = given(term, params, outputs(f=x["student_feature"]), outputs(f=x["teacher_feature"]))
    assert found * len(x["student_feature"]) == pytest.approx(float(x["value"]), rel=1e-5)


def test_srrl_is_the_authors():
    h, x = golden("srrl")
    params = {"kernel": x["conn_kernel"], "scale": x["bn_scale"], "bias": x["bn_bias"]}
    classifier = (x["teacher_fc_kernel"], x["teacher_fc_bias"])
    term = objectives.srrl(student="f", teacher="f", classifier=classifier, beta=float(h["weight"]))
    teacher = outputs(x["teacher_logits"], f=x["teacher_feature"])
    assert given(term, params, outputs(f=x["student_feature"]), teacher) == pytest.approx(float(x["value"]), rel=1e-5)


def test_semckd_is_the_authors():
    h, x = golden("semckd")
    S, T = h["layers_s"], h["layers_t"]
    each = ("kernel1", "bias1", "kernel2", "bias2")
    params = {
        "queries": [{n: x[f"query_{i}_{n}"] for n in each} for i in range(S)],
        "keys": [{n: x[f"key_{j}_{n}"] for n in each} for j in range(T)],
        "projections": [
            [{n: x[f"reg_{i}{j}_{k}"] for n, k in zip(NAMES, BOTTLENECK, strict=True)} for j in range(T)]
            for i in range(S)
        ],
    }
    names = {"students": [f"f{i}" for i in range(S)], "teachers": [f"f{j}" for j in range(T)]}
    term = objectives.semckd(**names, soft=float(h["soft"]))
    student = outputs(**{f"f{i}": x[f"student_feature_{i}"] for i in range(S)})
    teacher = outputs(**{f"f{j}": x[f"teacher_feature_{j}"] for j in range(T)})
    assert value_of(term, params, student, teacher, {}) == pytest.approx(float(x["value"]), rel=1e-4)


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


def test_tinybert_is_the_authors():
    h, x = golden("tinybert", next(c for c in ("case0", "case1") if "proj_kernel" in stored("tinybert", c)[1]))
    S, N = h["layers_s"], h["layers_t"]
    sides = []
    for name, layers in (("student", S), ("teacher", N)):
        attention = {f"a{i}": x[f"{name}_att_{i}"] for i in range(layers)}
        sides.append(outputs(**attention, **{f"h{i}": x[f"{name}_hidden_{i}"] for i in range(layers + 1)}))
    term = objectives.tinybert(
        student_attention=[f"a{i}" for i in range(S)],
        teacher_attention=[f"a{i}" for i in range(N)],
        student_hidden=[f"h{i}" for i in range(S + 1)],
        teacher_hidden=[f"h{i}" for i in range(N + 1)],
    )
    params = {"kernel": x["proj_kernel"], "bias": x["proj_bias"]}
    assert given(term, params, *sides) == pytest.approx(float(x["value"]), rel=1e-5)


def test_srd_projects_and_normalises_both_sides():
    owned = started("srd")
    s = np.asarray(STUDENT.features["pooled"], np.float64) @ np.asarray(owned.params["kernel"], np.float64)
    t = np.asarray(TEACHER.features["pooled"], np.float64)
    s, t = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-4) for x in (s, t))
    expected = jax.jit(losses.srd)(s.astype(np.float32), t.astype(np.float32), STUDENT.logits, TEACHER.logits)
    assert float(evaluate(TERMS["srd"], owned)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_uskd_reads_its_weak_logits_from_the_pooled_map():
    owned = started("uskd")
    weak = np.mean(STUDENT.features["stage1"], axis=(1, 2)) @ np.asarray(owned.params["kernel"])
    expected = jax.jit(losses.uskd)(STUDENT.logits, weak, BATCH["label"])
    assert float(evaluate(TERMS["uskd"], owned)[0]) == pytest.approx(float(expected), rel=1e-5)


def test_ft_meets_the_paraphrasers_factor():
    term, owned = TERMS["ft"], started("ft")

    @jax.jit
    def expected(student, teacher):
        s, t = regressors.ft_factor(student, **owned.params), regressors.ft_factor(teacher, **PARAPHRASER)
        return jnp.mean(losses.ft(s, t))

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
        generator = (p[n] for n in ("kernel1", "bias1", "kernel2", "bias2"))
        made = networks.mgd_generator(aligned, jnp.ones((B, 1, 1, 6)), *generator)
        return *hidden, jnp.mean(losses.mgd(made, TEACHER.features["stage1"]))

    one, other, expected = values(owned.params)
    assert float(one) != float(other), "the mask is drawn"
    assert float(evaluate(nothing, owned)[0]) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="over='pixels' is not known"):
        objectives.mgd(**MAP, over="pixels")


def test_deeper_layers_count_twice_in_ofd():
    term = objectives.ofd(**LAYERS, norms=NORMS, scale=0.5)
    owned = start(term)

    @functools.partial(jax.jit, static_argnums=0)
    def of_layer(name, p, norm):
        made = regressors.ofd_connector(STUDENT.features[name], *(p[k] for k in ("kernel", "scale", "bias")))
        return jnp.mean(losses.ofd(made, TEACHER.features[name], regressors.ofd_margin(*norm)))

    each = [of_layer(*layer) for layer in zip(LAYERS["students"], owned.params, NORMS, strict=True)]
    assert float(evaluate(term, owned)[0]) == pytest.approx(0.5 * float(0.5 * each[0] + each[1]), rel=1e-5)


def test_vitkd_mimics_two_blocks_and_generates_the_last():
    names = {"student_low": ["block0", "block1"], "teacher_low": ["block0", "block1"]}
    last = {"student_high": "block2", "teacher_high": "block2"}
    mimic = objectives.vitkd(**names, **last, beta=0.0, alpha=0.5)
    # Hiding every token leaves nothing of the student, so that one generated map stands for all of its examples.
    generate = objectives.vitkd(**names, **last, alpha=0.0, beta=1.0, lam=1.0)
    owned = start(mimic)

    @jax.jit
    def expected(p):
        errors = [
            jnp.sum(jnp.square(objectives.linear().apply(a, STUDENT.features[n]) - TEACHER.features[n])) / B
            for a, n in zip(p["align_low"], names["student_low"], strict=True)
        ]
        generator = (p[n] for n in ("kernel1", "bias1", "kernel2", "bias2"))
        made = networks.vitkd_generator(jnp.zeros((B, 9, 6)), jnp.ones((B, 9)), p["mask_token"], *generator)
        return 0.5 * sum(errors), jnp.sum(jnp.square(made - TEACHER.features["block2"])) / B

    errors, generated = expected(owned.params)
    assert float(evaluate(mimic, owned)[0]) == pytest.approx(float(errors), rel=1e-5)
    found = evaluate(generate, start(generate)._replace(params=owned.params))[0]
    assert float(found) == pytest.approx(float(generated), rel=1e-5)


@pytest.mark.parametrize(("feature", "shape"), [("stage2", (B, 4, 4)), ("pooled", (B, 1, 1))])
def test_review_without_deeper_stages_is_the_hierarchical_loss_of_a_connector(feature, shape):
    term = objectives.review(students=[feature], teachers=[feature])
    owned = start(term)

    @jax.jit
    def expected(fusion):
        s, t = (side.features[feature].reshape(*shape, -1) for side in (STUDENT, TEACHER))
        made, residual = networks.review_fusion(s, None, **fusion)
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
    fuse = jax.jit(networks.review_fusion)
    one, two = fuse(feature, deeper, **only), fuse(feature, None, **alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, two)
    swapped = {**only, "attention_bias": jnp.asarray([-50.0, 50.0])}
    _, residual = fuse(feature, deeper, **swapped)
    np.testing.assert_allclose(residual, np.repeat(np.repeat(deeper, 2, 1), 2, 2), atol=1e-5)
    with pytest.raises(ValueError, match="needs attention_kernel and attention_bias"):
        networks.review_fusion(feature, deeper, **alone)


# --- what does not fit ---


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            objectives.ab(students=["stage1"], teachers=["stage1", "stage2"]),
            "compares layers in pairs.* 1 of the student",
        ),
        (
            objectives.srrl(student="stage2", teacher="stage2", classifier=(draw(7, K), draw(K))),
            r"\(7, 5\).*12 channels",
        ),
        (objectives.review(students=["stage1", "stage2"], teachers=["stage1"]), "review compares stages in pairs"),
        (objectives.info_nce_queue(student="pooled", teacher="pooled", size=4), "the queue holds 4 embeddings"),
        (
            objectives.from_features(losses.hint, student="stage2", teacher="stage1", project=objectives.regressor()),
            "a convolution with stride 1 does not lead",
        ),
        (
            objectives.from_features(losses.hint, student="pooled", teacher="stage1", project=objectives.connector()),
            "made for feature maps",
        ),
        (
            objectives.from_features(
                losses.hint, student="stage1", teacher="stage2", project=objectives.mlp(hidden=(3,))
            ),
            "a perceptron changes the last axis only",
        ),
    ],
)
def test_what_does_not_fit_is_said_on_shapes_alone(term, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: start(term))
