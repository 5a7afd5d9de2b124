"""Teachers made of several models, of what was written earlier, or of nobody."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CLASSES, Small, assert_trees_equal, make_batch

from jaxkd import losses, models, objectives
from jaxkd.types import Model, Outputs, Variables

LOGITS = np.random.default_rng(0).normal(0, 3, (3, 4, CLASSES)).astype(np.float32)


def init(model, batch, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), batch)


def run(model, variables, batch, seed=None, train=False):
    key = None if seed is None else jax.random.key(seed)
    return jax.jit(model.apply, static_argnums=3)(variables, batch, key, train)


def constant(classes, name="pooled"):
    """A model without variables that returns constants."""

    def apply(variables, batch, key, train):
        size = len(batch["image"])
        return Outputs(jnp.zeros((size, classes)), {name: jnp.zeros((size, 2))}), variables.state

    return Model(lambda key, batch: Variables({}, {}), apply)


def softmax(z):
    e = np.exp(np.asarray(z, np.float64) - np.max(z, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_mean_logits_is_the_geometric_mean_of_the_distributions():
    product = np.prod(softmax(LOGITS), axis=0) ** (1 / 3)
    found = softmax(models.mean_logits(list(LOGITS)))
    np.testing.assert_allclose(found, product / product.sum(axis=-1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(models.mean_logits(list(LOGITS)), LOGITS.astype(np.float64).mean(axis=0), rtol=1e-5)


def test_mean_probabilities_is_the_log_of_the_mean():
    found = np.asarray(models.mean_probabilities(list(LOGITS)))
    np.testing.assert_allclose(np.exp(found), softmax(LOGITS).mean(axis=0), rtol=1e-5)
    far = models.mean_probabilities([jnp.asarray([1e4, -1e4]), jnp.asarray([1e4, -1e4])])
    np.testing.assert_array_equal(far, [0.0, -2e4])


@pytest.mark.parametrize("combine", [models.mean_logits, models.mean_probabilities])
def test_combinations_compute_in_float32(combine):
    halves = [jnp.asarray(z, jnp.bfloat16) for z in LOGITS]
    assert combine(halves).dtype == jnp.float32
    np.testing.assert_allclose(combine(halves), combine([z.astype(jnp.float32) for z in halves]), rtol=1e-6)


@pytest.mark.parametrize("combine", [models.mean_logits, models.mean_probabilities])
def test_ensemble_combines_its_members(combine):
    members = [models.from_linen(Small(2)), models.from_linen(Small(3))]
    owned = [init(m, make_batch(), i) for i, m in enumerate(members)]
    outs = [run(m, v, make_batch())[0] for m, v in zip(members, owned, strict=True)]
    both = models.ensemble(*members, combine=combine)
    out, state = run(both, models.join(*owned), make_batch())
    np.testing.assert_allclose(out.logits, combine([o.logits for o in outs]), rtol=1e-6)
    expected = {f"{i}/{name}": f for i, o in enumerate(outs) for name, f in o.features.items()}
    assert set(expected) == {"0/stage1", "0/pooled", "1/stage1", "1/pooled"}
    expected |= {f"{i}/logits": o.logits for i, o in enumerate(outs)}
    assert_trees_equal(dict(out.features), expected)
    assert_trees_equal(state, models.join(*owned).state)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_keeps_the_likeliest_and_spreads_the_mass_of_the_others(k):
    whole, reduced = models.from_linen(Small(4)), models.top_k(models.from_linen(Small(4)), k)
    variables = init(whole, make_batch())
    exact = jax.nn.log_softmax(run(whole, variables, make_batch())[0].logits)
    out, _ = run(reduced, variables, make_batch())
    np.testing.assert_allclose(jnp.sum(jnp.exp(out.logits), axis=-1), np.ones(len(exact)), rtol=1e-6)
    order = np.argsort(-exact, axis=-1)
    kept, others = (np.take_along_axis(np.asarray(out.logits), part, -1) for part in (order[:, :k], order[:, k:]))
    np.testing.assert_allclose(kept, np.take_along_axis(np.asarray(exact), order[:, :k], -1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(others, np.broadcast_to(others[:, :1], others.shape))
    tail = np.exp(np.take_along_axis(np.asarray(exact), order[:, k:], -1)).sum(-1)
    np.testing.assert_allclose(np.exp(out.features["top_tail"]), tail, rtol=1e-5)
    assert out.features["top_ids"].shape == (len(exact), k)
    read, _ = models.cached(num_classes=5).apply(variables, dict(out.features), None, False)
    np.testing.assert_array_equal(read.logits, out.logits)


def test_ensemble_means_logits_unless_told_otherwise():
    members = [models.from_linen(Small(2))] * 2
    both = models.ensemble(*members)
    variables = init(both, make_batch())
    logits = [
        run(m, Variables(variables.params[i], variables.state[i]), make_batch())[0].logits
        for i, m in zip("01", members, strict=True)
    ]
    np.testing.assert_allclose(
        run(both, variables, make_batch())[0].logits, (logits[0] + logits[1]) / 2, rtol=1e-5, atol=1e-6
    )
    assert np.abs(logits[0] - logits[1]).max() > 1e-2  # the members start apart


def test_join_has_the_layout_of_an_ensembles_own_variables():
    members = [models.from_linen(Small(2)), models.from_linen(Small(3))]
    owned = [init(m, make_batch(), i) for i, m in enumerate(members)]
    made = init(models.ensemble(*members), make_batch())
    joined = models.join(*owned)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, joined)
    assert_trees_equal(joined.params["1"], owned[1].params)
    assert_trees_equal(joined.state["0"], owned[0].state)


def test_members_of_a_training_ensemble_have_keys_and_states_of_their_own():
    model = models.from_linen(Small(4))
    one = init(model, make_batch())
    pair = models.ensemble(model, model, combine=lambda logits: jnp.stack(logits, axis=1))
    out, state = run(pair, models.join(one, one), make_batch(), 0, True)
    assert float(jnp.abs(out.logits[:, 0] - out.logits[:, 1]).max()) > 1e-3
    assert_trees_equal(state["0"], state["1"])
    assert_trees_equal(state["0"], run(model, one, make_batch(), 5, True)[1])


def test_ensemble_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="at least one member"):
        models.ensemble()
    pair = models.ensemble(constant(3), constant(7))
    variables = init(pair, make_batch())
    with pytest.raises(ValueError, match=r"logits of shapes \(16, 3\), \(16, 7\): give all of them the same classes"):
        run(pair, variables, make_batch())


# --- teachers without a network ---


def test_cached_outputs_are_read_from_the_batch():
    batch = {**make_batch(), "teacher_logits": np.ones((16, 5), np.float32), "deep": np.zeros((16, 2), np.float32)}
    teacher = models.cached(features=("deep",))
    variables = init(teacher, batch)
    assert variables == Variables({}, {})
    out, state = teacher.apply(variables, batch, None, False)
    assert out.logits is batch["teacher_logits"]
    assert dict(out.features) == {"deep": batch["deep"]}
    assert state == {}
    renamed, _ = models.cached(logits="deep").apply(variables, batch, None, False)
    assert renamed.logits is batch["deep"]
    assert dict(renamed.features) == {}


@pytest.mark.parametrize(
    ("teacher", "field"),
    [(models.cached(), "teacher_logits"), (models.cached(logits="image", features=("map",)), "map")],
)
def test_cache_that_is_not_in_the_batch_is_missed_in_a_sentence(teacher, field):
    with pytest.raises(ValueError, match=rf"field '{field}' but the batch has id, image, label, view: .*`logits=` and"):
        teacher.apply(Variables({}, {}), make_batch(), None, False)


def test_without_a_teacher_terms_that_need_one_refuse():
    nobody = models.no_teacher()
    batch = make_batch()
    variables = init(nobody, batch)
    assert variables == Variables({}, {})
    out, state = run(nobody, variables, batch)
    assert state == {}
    student = Outputs(jnp.zeros((16, CLASSES)), {"pooled": jnp.zeros((16, 2))})
    alone = objectives.from_labels(losses.cross_entropy)
    value, *_ = alone.apply(alone.init(jax.random.key(0), student, out, batch), student, out, batch, None, 0)
    np.testing.assert_allclose(value, np.log(CLASSES), rtol=1e-6)
    needing = {
        "logits": objectives.from_logits(losses.kd),
        "pooled": objectives.from_features(losses.hint, student="pooled", teacher="pooled"),
    }
    for name, term in needing.items():
        with pytest.raises(ValueError, match=f"reads '{name}' of the teacher, but there is no teacher"):
            term.apply(Variables({}, {"temperature": 1.0}), student, out, batch, None, 0)


def test_parameters_are_counted_without_the_state():
    variables = jax.eval_shape(models.from_linen(Small(4)).init, jax.random.key(0), make_batch())
    assert models.count_parameters(variables) == 9 * 4 + 2 * 4 + (4 + 1) * CLASSES
    assert models.count_parameters(models.join(variables, variables)) == 2 * models.count_parameters(variables)
    assert models.count_parameters(Variables({}, {})) == 0
