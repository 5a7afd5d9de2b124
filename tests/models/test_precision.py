"""Number formats and rematerialisation: what is computed in which, and that nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, make_batch

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.types import Variables

TERM = objectives.weighted(
    label=(0.5, objectives.from_labels(losses.cross_entropy)),
    kd=objectives.from_logits(losses.kd, temperature=2.0),
    hint=objectives.from_features(losses.hint, student="stage2", teacher="stage2", project=objectives.linear()),
)


STUDENT, TEACHER = models.convnet(CLASSES, widths=(6, 8)), models.convnet(CLASSES, widths=(8, 10))


def trained(student, teacher, known, steps=20):
    """The last state, metrics of each step, and the step's program."""
    parts = (student, teacher, TERM, optax.sgd(0.1, momentum=0.9))
    state = train.init_state(*parts, key=jax.random.key(0), batch=make_batch(), teacher_variables=known)
    step, found = jax.jit(train.make_train_step(*parts)), []
    for _ in range(steps):
        state, metrics = step(state, known, make_batch())
        found.append(metrics)
    return state, found, step.trace(state, known, make_batch()).jaxpr


@pytest.fixture(scope="module")
def known():
    """Variables of a teacher that has seen the batch, so that its logits tell the classes apart."""
    parts = (TEACHER, models.no_teacher(), objectives.from_labels(losses.cross_entropy), optax.adam(3e-3))
    none = Variables({}, {})
    state = train.init_state(*parts, key=jax.random.key(9), batch=make_batch(), teacher_variables=none)
    step = jax.jit(train.make_train_step(*parts))
    for _ in range(60):
        state, _ = step(state, none, make_batch())
    return Variables(state.params["student"], state.state["student"])


@pytest.fixture(scope="module")
def exact(known):
    """Metrics of each step in float32."""
    return trained(STUDENT, TEACHER, known)[1]


def test_bfloat16_computes_low_and_keeps_everything_that_lasts_in_float32(known, exact):
    state, found, program = trained(models.in_dtype(STUDENT), models.in_dtype(TEACHER), known)
    assert all(
        x.dtype in (jnp.float32, jnp.int32) for x in jax.tree.leaves((state.params, state.state, state.opt_state))
    )
    assert all(m.dtype == jnp.float32 for m in jax.tree.leaves(found))
    convolutions = [line for line in str(program).splitlines() if "conv_general_dilated[" in line]
    assert len(convolutions) > 8
    assert all("bf16[" in line.split(" = ")[0] for line in convolutions)
    np.testing.assert_allclose(found[0]["loss"], exact[0]["loss"], rtol=0.02)
    np.testing.assert_allclose(found[-1]["loss"], exact[-1]["loss"], rtol=0.1)
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    assert float(found[0]["loss"]) != float(exact[0]["loss"])


def test_logits_stay_in_float32_and_features_do_not(known):
    usual, nothing = models.in_dtype(TEACHER), models.in_dtype(TEACHER, keep="nothing")
    out, low = jax.eval_shape(lambda *x: [m.apply(*x, None, False)[0] for m in (usual, nothing)], known, make_batch())
    assert (out.logits.dtype, out.features["stage1"].dtype) == (jnp.float32, jnp.bfloat16)
    assert low.logits.dtype == jnp.bfloat16


def bytes_of(variables):
    return sum(x.nbytes for x in jax.tree.leaves(variables.params))


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int8 computed in bfloat16"])
def test_a_teacher_of_small_weights_says_nearly_the_same(known, form):
    small = models.cast(known) if form == "bfloat16" else models.to_int8(known)
    model = TEACHER if form == "int8" else models.in_dtype(TEACHER)
    model = model if form == "bfloat16" else models.from_int8(model)
    found, exact = (
        np.asarray(jax.jit(m.apply, static_argnums=(2, 3))(v, make_batch(), None, False)[0].logits)
        for m, v in ((model, small), (TEACHER, known))
    )
    assert bytes_of(small) < (0.6 if form == "bfloat16" else 0.4) * bytes_of(known)  # biases, norms and head stay
    assert 0 < np.sqrt(np.mean((found - exact) ** 2)) / np.std(exact) < 0.03
    assert np.mean(np.argmax(found, -1) == np.argmax(exact, -1)) > 0.9


def test_small_teachers_train_students_on_many_devices(known, exact):
    plan = parallel.with_jit()
    parts = (STUDENT, models.from_int8(TEACHER), TERM, optax.sgd(0.1))
    small = models.to_int8(known)
    state = train.init_state(*parts, key=jax.random.key(0), batch=make_batch(), teacher_variables=small)
    step = plan.compile(train.make_train_step(*parts))
    placed = plan.put(small)
    assert {x.dtype for x in jax.tree.leaves(placed.params)} == {jnp.dtype(jnp.int8), jnp.dtype(jnp.float32)}
    _, found = step(plan.put(state), placed, plan.place(make_batch()))
    np.testing.assert_allclose(found["kd"], exact[0]["kd"], rtol=0.02)


def test_int8_is_within_half_a_step_of_every_weight():
    w = np.random.default_rng(0).standard_normal((3, 3, 4, 7)) * np.geomspace(1e-6, 1e3, 7)
    w[..., 2] = 0
    given = {"conv": {"kernel": w, "bias": np.ones(7)}, "head": {"kernel": w}}
    found = jax.jit(models.to_int8)(Variables(jax.tree.map(np.float32, given), {})).params
    q = jax.tree.map(np.asarray, found["conv"]["kernel"])
    assert q.values.dtype == np.int8
    assert np.all(np.abs(w - q.values * q.scale) <= 0.5001 * q.scale)
    assert np.all(np.max(np.abs(q.values), axis=(0, 1, 2)) == np.where(np.arange(7) == 2, 0, 127))
    assert found["conv"]["bias"].dtype == found["head"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_or_seen(bad):
    w = np.ones((3, 2), np.float32)
    w[1, 0] = bad
    given = Variables({"dense": {"kernel": w, "bias": np.zeros(2, np.float32)}}, {})
    with pytest.raises(ValueError, match=r"int8 cannot hold dense/kernel: 1 of its values are not finite"):
        models.to_int8(given)
    found = jax.tree.map(np.asarray, jax.jit(models.to_int8)(given).params["dense"]["kernel"])
    weights = found.values * found.scale
    assert np.all(np.isnan(weights[:, 0]))
    np.testing.assert_allclose(weights[:, 1], 1)


def test_formats_that_cannot_hold_the_weights_are_refused():
    large = Variables({"dense": {"kernel": np.full((2, 2), 1e5, np.float32)}}, {})
    with pytest.raises(ValueError, match=r"float16 cannot hold dense/kernel: 0 .* the largest other one is 1e\+05"):
        models.cast(large, jnp.float16)
    assert models.cast(large).params["dense"]["kernel"].dtype == jnp.bfloat16
    for call in (lambda: models.cast(large, jnp.int8), lambda: models.in_dtype(STUDENT, jnp.int8)):
        with pytest.raises(ValueError, match=r"int8 has no floating point: choose bfloat16, .* or to_int8"):
            call()


def test_rematerialised_stages_change_nothing_but_what_is_kept():
    batch = make_batch()
    found = []
    for remat in (False, True):
        model = models.resnet(CLASSES, depth=8, remat=remat)
        variables = jax.jit(model.init)(jax.random.key(0), batch)

        def loss(params, model=model, state=variables.state):
            out, state = model.apply(Variables(params, state), batch, jax.random.key(1), True)
            return jnp.mean(out.logits**2) + jnp.mean(out.features["stage2"] ** 2), state

        kept = jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p, has_aux=True)[1], variables.params)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
        found.append((variables, jax.jit(jax.value_and_grad(loss, has_aux=True))(variables.params), size))
    assert_trees_close(found[1][0], found[0][0], rtol=0)
    assert_trees_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)
    assert found[1][2] < 0.4 * found[0][2]
