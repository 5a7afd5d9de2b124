"""Adapters of low rank: the base's outputs at first, merged exactly, and nothing but adapters in the optimizer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import assert_trees_equal

from jaxkd import losses, models, objectives, train
from jaxkd.models.precision import Int8
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.train import students
from jaxkd.types import TEACHER, Variables

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
BATCH = {"image": jnp.asarray(RANDOM.random((4, 8, 8, 3)), jnp.float32), "label": jnp.arange(4) % 3}
RULES, DENSE = ("stage", "^head/kernel"), ("dense", "^head/kernel")
LABEL, NONE = objectives.from_labels(losses.cross_entropy), Variables({}, {})


class Net(nn.Module):
    """A convolution with a batch norm, one in groups, attention, and a last layer."""

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), strides=2, name="stage1")(image)))
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="stage2")(x).reshape(len(image), -1, 4)
        x = nn.MultiHeadDotProductAttention(2, name="stage3")(x).mean(axis=1)
        return nn.Dense(3, name="head")(x), {"pooled": x}


MODEL, SMALL = models.from_linen(Net()), models.mlp(3, hidden=(4,))


@pytest.fixture(scope="module")
def base():
    return models.init(MODEL, KEY, BATCH)


@pytest.fixture(scope="module")
def small():
    return models.init(SMALL, KEY, BATCH)


def disturbed(variables, seed=1):
    """Variables whose adapters are no longer at their start."""
    leaves, tree = jax.tree.flatten(variables.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return variables._replace(params=jax.tree.unflatten(tree, moved))


def outputs(model, variables, train=False):
    return jax.jit(lambda v: model.apply(v, BATCH, KEY if train else None, train))(variables)


def test_first_outputs_are_the_base_s_bit_for_bit_and_merged_ones_the_adapted(base):
    model, start = models.lora(MODEL, RULES, 2), models.add_lora(KEY, base, RULES, 2)
    (out, state), (own, moved) = outputs(model, start, True), outputs(MODEL, base, True)
    assert_trees_equal(out, own)
    assert_trees_equal(state["batch_stats"], moved["batch_stats"])
    assert start.params.keys() == {"lora"}
    assert "bias" not in start.params["lora"]["stage3"]["query"]
    assert "bias" not in start.params["lora"]["stage1"]
    other = disturbed(start)
    merged = models.merge_lora(other)
    assert_trees_equal(jax.tree.map(jnp.shape, merged), jax.tree.map(jnp.shape, base))
    adapted = outputs(model, other)[0].logits
    np.testing.assert_allclose(outputs(MODEL, merged)[0].logits, adapted, rtol=1e-5)
    assert np.abs(adapted - outputs(MODEL, base)[0].logits).max() > 1e-3
    assert_trees_equal(models.merge_lora(start).params, base.params)


@pytest.mark.parametrize("alpha", [None, 6.0])
def test_a_kernel_changes_by_the_scaled_product_of_two_of_low_rank(base, alpha):
    other = disturbed(models.add_lora(KEY, base, RULES, 2, alpha=alpha))
    merged = models.merge_lora(other).params
    for path, inputs in (("stage1", 27), ("stage2", 18), ("head", 4)):
        change = np.asarray(merged[path]["kernel"] - base.params[path]["kernel"]).reshape(inputs, -1)
        A, B = (np.asarray(other.params["lora"][path]["kernel"][name]) for name in "AB")
        np.testing.assert_allclose(change, (3 if alpha else 1) * A.reshape(inputs, 2) @ B, atol=1e-6)
        assert np.linalg.matrix_rank(change, tol=1e-4) == 2
    query = other.params["lora"]["stage3"]["query"]["kernel"]  # [D, heads, D / heads]: the heads are outputs
    assert (query["A"].shape, query["B"].shape) == ((4, 2), (2, 2, 2))
    out = other.params["lora"]["stage3"]["out"]["kernel"]
    assert (out["A"].shape, out["B"].shape) == ((2, 2, 2), (2, 4))


def test_steps_train_the_adapters_alone_and_resume_from_a_checkpoint(small, tmp_path):
    base = models.to_int8(small)
    start = models.add_lora(KEY, base, DENSE, 2, trained="head/bias")
    assert isinstance(start.state["frozen"]["dense1"]["kernel"], Int8)
    parts = models.lora(SMALL, DENSE, 2, trained="head/bias"), models.no_teacher(), LABEL, optax.adam(0.1)
    state = train.init_state(*parts, key=KEY, batch=BATCH, teacher_variables=NONE, student_variables=start)
    count = models.count_parameters(start)
    assert count == 2 * (192 + 4) + 2 * (4 + 3) + 3
    assert sum(x.size for x in jax.tree.leaves(state.opt_state)) == 2 * count + 1
    step = jax.jit(train.make_train_step(*parts))
    first, _ = step(state, NONE, BATCH)
    assert_trees_equal(first.state["student"]["frozen"], start.state["frozen"])
    with Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(1, first)
        restored = checkpoints.restore(state)
    assert_trees_equal(step(restored, NONE, BATCH)[0], step(first, NONE, BATCH)[0])
    merged = models.merge_lora(Variables(first.params["student"], first.state["student"]))
    assert merged.params["dense1"]["kernel"].dtype == jnp.float32
    assert np.any(merged.params["head"]["bias"] != small.params["head"]["bias"])


def test_students_of_several_seeds_share_one_base(small):
    model = models.lora(SMALL, DENSE, 2, shared=True, trained="head/bias")
    start = models.without_base(models.add_lora(KEY, small, DENSE, 2, trained="head/bias"))
    assert jax.eval_shape(model.init, KEY, BATCH).state.keys() == start.state.keys()
    sweep = students.sweep(lambda: (model, SMALL, LABEL, optax.sgd(0.1)), students.grid(seed=(0, 1)))
    state = sweep.init(key=KEY, batch=BATCH, teacher_variables=small, student_variables=start)
    assert "frozen" not in state.state["student"]
    new, _ = jax.jit(students.vmap_students(sweep.make_step()))(state, small, BATCH)
    found = Variables(*(students.pick_student(x["student"], 1) for x in (new.params, new.state)))
    whole = model.apply(found, {**BATCH, TEACHER: small}, None, False)[0].logits
    merged = SMALL.apply(models.merge_lora(found, small), BATCH, None, False)[0].logits
    np.testing.assert_array_equal(whole, merged)
    trained = found.params["head"]["bias"]
    np.testing.assert_array_equal(models.merge_lora(found, small).params["head"]["bias"], trained)
    assert np.any(trained != small.params["head"]["bias"])
    assert np.abs(merged - SMALL.apply(small, BATCH, None, False)[0].logits).max() > 1e-3
    with pytest.raises(ValueError, match="no base, which is the teacher of their step"):
        model.apply(found, BATCH, None, False)


def test_last_layers_of_other_tasks_are_trained_beside_the_adapters(small):
    for model in (
        models.lora(models.with_heads(SMALL, new=2), "dense", 1, trained="^heads/"),
        models.with_heads(models.lora(SMALL, "dense", 1), new=2),
    ):
        variables = models.init(model, KEY, BATCH)
        assert variables.params.keys() == {"lora", "heads"}
        assert outputs(models.at_head(model, "new"), variables)[0].logits.shape == (4, 2)
    told = models.lora(models.with_head(SMALL), "head", 1)
    moved = disturbed(models.add_lora(KEY, small, "head", 1))
    merged = models.merge_lora(moved).params["head"]["kernel"]
    np.testing.assert_array_equal(outputs(told, moved)[0].head["kernel"], merged)


def test_networks_of_nnx_have_adapters_too():
    model = models.from_nnx(lambda rngs: nnx.Conv(3, 2, (8, 8), padding="VALID", rngs=rngs))
    adapted = models.lora(model, "kernel", 2)
    variables = adapted.init(KEY, BATCH)
    moved = disturbed(variables)
    assert outputs(adapted, moved)[0].logits.shape == (4, 1, 1, 2)
    np.testing.assert_array_equal(outputs(adapted, moved)[0].logits, outputs(model, models.merge_lora(moved))[0].logits)


def test_what_cannot_be_adapted_gets_a_sentence(base):
    for options, said in (
        ({"rules": "nowhere"}, r"`rules` has the pattern 'nowhere', .* of no kernel .*head/kernel"),
        ({"rules": "bias"}, "`rules` has the pattern 'bias'"),
        ({"rules": "head", "trained": "nowhere"}, "`trained` has the pattern 'nowhere'"),
        ({"rules": "head", "trained": "head"}, "that is not trained itself"),
        ({"rules": ()}, "there is no rule"),
        ({"rules": "head", "rank": 4}, "rank is 4, but head/kernel is a kernel of 4 x 3: give at most 3"),
        ({"rules": "head", "rank": 0}, "rank is 0: give an integer of at least 1"),
        ({"rules": "head", "alpha": 0.0}, "alpha is 0.0: give a positive number"),
    ):
        with pytest.raises(ValueError, match=said):
            models.add_lora(KEY, base, **{"rank": 1, **options})
    with pytest.raises(ValueError, match=r"no adapters: make them by models\.add_lora"):
        outputs(models.lora(MODEL, "head", 1), base)
    adapted = models.add_lora(KEY, base, "head", 1)
    with pytest.raises(ValueError, match="have adapters already: merge them first"):
        models.add_lora(KEY, adapted, "head", 1)
    less = Variables({"head": {"kernel": jnp.zeros((4, 5))}}, {})
    with pytest.raises(ValueError, match=r"made for a kernel \(4, 3\), but the base has \(4, 5\)"):
        models.merge_lora(models.without_base(adapted), less)
    with pytest.raises(ValueError, match="the base has no head/kernel"):
        models.merge_lora(models.without_base(adapted), Variables({"other": {"kernel": jnp.zeros((4, 5))}}, {}))
