"""SimKD's student: a network, a projector, and its teacher's last layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from losses.test_golden import adapter, stored

from jaxkd import losses, models, numerics, objectives, train
from jaxkd.models.reused import Projector, reused_classifier
from jaxkd.types import Model, Outputs, Variables

RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.standard_normal((8, 8, 8, 3)).astype(np.float32),
    "label": np.arange(8) % 5,
    "id": np.arange(8),
}
CLASSIFIER = (RNG.standard_normal((12, 5)).astype(np.float32), RNG.standard_normal(5).astype(np.float32))
WEIGHTS = RNG.standard_normal((3, 12)).astype(np.float32)


def small():
    return models.convnet(5, widths=(4, 8))


def reused():
    return models.reuse_classifier(small(), CLASSIFIER, feature="stage2")


def fixed_teacher():
    """Its map is one product away from the image, its logits the classifier's."""

    def apply(variables, batch, key, train):
        last = jax.nn.relu(numerics.adaptive_average_pool(batch["image"], (4, 4)) @ WEIGHTS)
        return Outputs(reused_classifier(last, *CLASSIFIER), {"last": last}), {}

    return Model(lambda key, batch: Variables({}, {}), apply)


def mapped(feature):
    """A student whose map is given."""
    outputs = Outputs(jnp.zeros((len(feature), 5)), {"last": feature})
    return Model(lambda key, batch: Variables({}, {}), lambda variables, batch, key, train: (outputs, {}))


def test_the_projection_and_its_loss_are_the_authors():
    x = stored("simkd", "case0")[1]
    given = {name: x[key] for name, key in adapter.BOTTLENECK.items()}
    given |= {"scale3": x["bn3_scale"], "bias3": x["bn3_bias"]}
    channels = x["teacher_feature"].shape[-1]
    classifier = (jnp.zeros((channels, 5)), jnp.zeros(5))
    student = models.reuse_classifier(
        mapped(x["student_feature"]),
        classifier,
        size=x["teacher_feature"].shape[1:3],
        factor=channels // given["kernel1"].shape[-1],
    )
    params, state = student.init(jax.random.key(0), {})
    projector = {
        **{f"conv{i}": {"kernel": given[f"kernel{i}"]} for i in (1, 2, 3)},
        **{f"norm{i}": {"scale": given[f"scale{i}"], "bias": given[f"bias{i}"]} for i in (1, 2, 3)},
    }
    assert jax.tree.map(jnp.shape, projector) == jax.tree.map(jnp.shape, params["projector"])
    outputs, _ = student.apply(Variables({**params, "projector": projector}, state), {}, None, True)
    term = objectives.from_features(losses.simkd, student="projected", teacher="last", pool=True)
    teacher = Outputs(None, {"last": x["teacher_feature"]})
    found = term.apply(Variables({}, {}), outputs, teacher, {}, jax.random.key(0), jnp.int32(0))[0]
    assert found == pytest.approx(float(x["value"]), rel=1e-5)


def test_its_logits_are_the_teachers_layer_on_what_is_projected():
    student = reused()
    variables = jax.jit(student.init)(jax.random.key(0), BATCH)
    apply = jax.jit(student.apply, static_argnums=3)
    outputs, state = apply(variables, BATCH, None, True)
    inner, _ = jax.jit(small().apply, static_argnums=3)(
        Variables(variables.params["student"], variables.state["student"]), BATCH, None, True
    )
    own = {"params": variables.params["projector"], **variables.state["projector"]}
    projected, _ = Projector(6, 12, None).apply(own, inner.features["stage2"], True, mutable=["batch_stats"])
    np.testing.assert_allclose(outputs.features["projected"], projected, atol=1e-4)
    expected = np.asarray(projected).mean((1, 2)) @ CLASSIFIER[0] + CLASSIFIER[1]
    np.testing.assert_allclose(outputs.logits, expected, atol=1e-4)
    np.testing.assert_array_equal(outputs.features["stage2"], inner.features["stage2"])
    # What it will be deployed with: its own statistics, and the teacher's layer as it was.
    jax.tree.map(np.testing.assert_array_equal, state["classifier"], list(CLASSIFIER))
    for part in ("student", "projector"):
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), variables.state[part], state[part])
        assert all(jax.tree.leaves(moved)), part
    evaluated = apply(Variables(variables.params, state), BATCH, None, False)
    assert np.max(np.abs(evaluated[0].logits - outputs.logits)) > 1e-3
    jax.tree.map(np.testing.assert_array_equal, evaluated[1], state)


def test_it_learns_to_answer_as_its_teacher_without_labels():
    teacher, known, student = fixed_teacher(), Variables({}, {}), reused()
    term = objectives.from_features(losses.simkd, student="projected", teacher="last", pool=True)
    parts = (student, teacher, term, optax.adam(1e-2))
    step = jax.jit(train.make_train_step(*parts), donate_argnums=0)
    state = train.init_state(*parts, key=jax.random.key(0), batch=BATCH, teacher_variables=known)
    said = teacher.apply(known, BATCH, None, False)[0].logits
    for _ in range(100):
        state, _ = step(state, known, BATCH)
    own = Variables(state.params["student"], state.state["student"])
    found = jax.jit(student.apply, static_argnums=3)(own, BATCH, None, False)[0].logits
    assert np.mean(np.square(found - said)) < 0.5 * jnp.mean(jnp.var(said, axis=0))  # it tells the images apart
    jax.tree.map(np.testing.assert_array_equal, state.state["student"]["classifier"], list(CLASSIFIER))


def test_larger_maps_are_pooled_first_and_smaller_ones_are_not():
    maps = jnp.asarray(RNG.standard_normal((2, 8, 4, 6)), jnp.float32)
    for size, shape in (((4, 4), (2, 4, 4, 12)), ((16, 2), (2, 8, 2, 12)), (None, (2, 8, 4, 12))):
        student = models.reuse_classifier(mapped(maps), CLASSIFIER, size=size)
        found = student.apply(student.init(jax.random.key(0), {}), {}, None, True)[0].features["projected"]
        assert found.shape == shape


def test_what_does_not_fit_is_said_in_a_sentence():
    with pytest.raises(ValueError, match=r"shapes \[\(12, 5\), \(4,\)\]: give the kernel \[C, K\] and bias \[K\]"):
        models.reuse_classifier(small(), (CLASSIFIER[0], np.zeros(4)))
    for feature in ("last", "pooled"):
        student = models.reuse_classifier(small(), CLASSIFIER, feature=feature)
        with pytest.raises(
            ValueError, match=rf"has no map '{feature}' .*'stage2': \(8, 4, 4, 8\).*: name its last one"
        ):
            student.init(jax.random.key(0), BATCH)
