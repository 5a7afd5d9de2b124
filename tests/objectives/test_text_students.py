"""Terms that teach a shallow, narrow transformer, together in one program for several students under token masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, objectives, train
from jaxkd.objectives import last_layers, layer_names, uniform_layers
from jaxkd.types import Model, Outputs, Variables

B, L, V = 4, 5, 9
LENGTHS = np.array([5, 3, 1, 0])  # the last text is empty
MASK = np.arange(L) < LENGTHS[:, None]
TOKENS = np.random.default_rng(0).integers(1, V, (B, L)).astype(np.int32)
BATCH = {"tokens": TOKENS * MASK, "token_mask": MASK, "label": np.array([0, 1, 1, 0], np.int32)}


def encoder(width):
    """A network with the features of a transformer of one block, which costs little to compile."""

    def init(key, batch):
        shapes = {"token": (V, width), "block": (width, width), "head": (width, 2)}
        return Variables({name: jnp.zeros(shape) for name, shape in shapes.items()}, {})

    def apply(variables, batch, key, train):
        p, mask = variables.params, batch["token_mask"]
        x = p["token"][batch["tokens"]]
        h = jnp.tanh(x @ p["block"])
        scores = jnp.stack([x @ h.swapaxes(1, 2), h @ h.swapaxes(1, 2)], axis=1)
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(scores.dtype).min)
        features = {"embedding": x, "block0": h, "qkv0": jnp.stack([x, h, x * h], axis=1), "attention0": scores}
        return Outputs(h[:, 0] @ p["head"], features), {}

    return Model(init, apply)


def drawn(model, *lead):
    """Variables of one network, or of a stack."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), BATCH).params
    rng = np.random.default_rng(1)
    return Variables(jax.tree.map(lambda x: 0.5 * rng.standard_normal((*lead, *x.shape), np.float32), shapes), {})


def test_students_learn_from_inner_layers_and_padding_is_not_there():
    qkv = ("student.qkv0", "teacher.qkv0", "batch.token_mask")
    hidden = {"student": "block0", "teacher": "block0", "project": objectives.linear()}
    term = objectives.weighted(
        kd=objectives.from_logits(losses.kd, temperature=2.0),
        pkd=objectives.pkd(uniform_layers(1, 1), project=objectives.linear()),
        tinybert=objectives.tinybert(**layer_names(1, 1), token_mask="token_mask"),
        minilm=objectives.from_outputs(losses.minilm, *qkv, attention_heads=2),
        hidden=objectives.from_features(losses.hidden_mse, **hidden, where="token_mask"),
    )
    teacher, student = encoder(8), encoder(4)
    known, parts = drawn(teacher), (student, teacher, term, optax.sgd(1e-2))
    given = {"batch": BATCH, "teacher_variables": known, "student_variables": drawn(student, 2)}
    state = train.init_state(*parts, key=jax.random.split(jax.random.key(0), 2), **given)
    step = jax.jit(train.students.vmap_students(train.make_train_step(*parts)))
    new, found = step(state, known, BATCH)
    for name in ("kd", "pkd", "tinybert", "minilm", "hidden"):
        values = np.asarray(found[name])
        assert np.isfinite(values).all(), name
        assert values.min() > 0, name
        assert values[0] != values[1], name
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params["term"], new.params["term"])
    assert all(jax.tree.leaves(moved))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new.params))
    padding = np.where(
        MASK | (LENGTHS == 0)[:, None], BATCH["tokens"], V - 1
    )  # of an empty text the logits read the first
    again, same = step(state, known, {**BATCH, "tokens": padding.astype(np.int32)})
    jax.tree.map(np.testing.assert_array_equal, (new.params, found), (again.params, same))


def test_blocks_of_a_teacher_are_spread_evenly():
    assert [uniform_layers(s, n) for s, n in ((3, 6), (6, 12), (1, 5), (4, 4))] == [
        (1, 3, 5),
        (1, 3, 5, 7, 9, 11),
        (4,),
        (0, 1, 2, 3),
    ]
    assert uniform_layers(4, 6) == (1, 2, 4, 5)
    assert uniform_layers(5, 7) == (0, 2, 3, 5, 6)
    assert last_layers(3, 6) == (3, 4, 5)
    for s in range(1, 9):
        for n in range(s, 13):
            found = uniform_layers(s, n)
            assert found[-1] == n - 1
            assert len(set(found)) == s
            assert list(found) == sorted(found)
            assert found[0] >= 0
    assert layer_names(2, 6) == {
        "student_attention": ["attention0", "attention1"],
        "teacher_attention": ["attention2", "attention5"],
        "student_hidden": ["embedding", "block0", "block1"],
        "teacher_hidden": ["embedding", "block2", "block5"],
    }


def test_impossible_layer_maps_get_a_sentence():
    for make in (uniform_layers, last_layers, layer_names):
        with pytest.raises(ValueError, match="the student has 4 blocks and the teacher 3"):
            make(4, 3)
        with pytest.raises(ValueError, match="the student has 0 blocks"):
            make(0, 3)
    with pytest.raises(ValueError, match="pkd compares no blocks"):
        objectives.pkd(())
