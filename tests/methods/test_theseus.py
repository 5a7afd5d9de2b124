"""BERT-of-Theseus: which modules run, which are trained, and that the predecessor is the step's teacher."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses, models, objectives, train
from jaxkd.experiment.trainer import variables_of
from jaxkd.methods import theseus
from jaxkd.runs.checkpoint import Checkpoints
from jaxkd.types import TEACHER, Variables

N, S = 4, 2
SIZES = {"vocabulary": 9, "width": 4, "heads": 2, "max_length": 4, "dropout": 0.0}
MASK = np.arange(4) < np.array([[4], [2], [1]])
BATCH = {
    "tokens": np.random.default_rng(0).integers(0, 9, (3, 4)).astype(np.int32) * MASK,
    "token_mask": MASK,
    "label": np.array([0, 1, 1], np.int32),
}
BERTS = [models.bert(2, layers=layers, **SIZES) for layers in (2, 1)]


class Block(nn.Module):
    """A block that costs little to compile."""

    @nn.compact
    def __call__(self, x, allowed, train):
        y = nn.Dropout(0.0, deterministic=not train)(nn.Dense(4, name="mlp")(x))
        return x + jnp.tanh(y) * allowed, {"inner": y}


class Encoder(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, tokens, mask, train):
        x = nn.Embed(9, 4, name="token")(tokens)
        for i in range(self.layers):
            x, _ = Block(name=f"block{i}")(x, mask[:, :, None], train)
        return x


class Classifier(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, tokens, mask, train):
        return nn.Dense(2, name="head")(Encoder(self.layers, name="encoder")(tokens, mask, train).sum(1))


PREDECESSOR, SUCCESSOR = (models.from_linen(Classifier(n), inputs=("tokens", "token_mask")) for n in (N, S))
TERM = objectives.from_labels(losses.cross_entropy)
SCHEDULE = optax.linear_schedule(0.0, 1.0, 2)  # 0, 1/2, then 1


@functools.cache
def teacher():
    shapes = jax.eval_shape(PREDECESSOR.init, jax.random.key(0), BATCH).params
    rng = np.random.default_rng(1)
    return Variables(jax.tree.map(lambda x: 0.5 * rng.standard_normal(x.shape, np.float32), shapes), {})


def successor():
    """The predecessor's first blocks, moved a little, between its embeddings and its last layers."""
    params = teacher().params
    encoder = {name: x for name, x in params["encoder"].items() if not name.startswith("block")}
    for i in range(S):
        encoder[f"block{i}"] = jax.tree.map(lambda x: x + 0.1, params["encoder"][f"block{i}"])
    return Variables({**params, "encoder": encoder}, {})


def distance(student, teacher, batch):
    return jnp.max(jnp.abs(student.logits - teacher.logits)), 1.0


@functools.cache
def started():
    """State and compiled step of the first phase; rate 1 shows the gradients."""
    student = theseus.replacing(PREDECESSOR, SUCCESSOR, SCHEDULE)
    parts = (student, PREDECESSOR, TERM, optax.sgd(1.0))
    start = theseus.begin(successor())
    given = {"batch": BATCH, "teacher_variables": teacher(), "student_variables": start}
    state = train.init_state(*parts, key=jax.random.key(0), **given)
    return state, jax.jit(train.make_train_step(*parts, metrics={"distance": distance}))


def at(batches, seed=0):
    """The first state, moved on to another number of training batches, with another key."""
    state, _ = started()
    student = {**state.state["student"], "batches": jnp.int32(batches)}
    return dataclasses.replace(state, state={**state.state, "student": student}, key=jax.random.key(seed))


def run(state, batch=BATCH):
    return started()[1](state, teacher(), batch)


def moved(new):
    """Names of the layers that a step has changed."""
    own, student = successor().params, theseus.finish(variables_of(new)).params
    layers, after = ({**tree["encoder"], "head": tree["head"]} for tree in (own, student))
    same = {n: jax.tree.map(np.array_equal, x, after[n]) for n, x in layers.items()}
    return {name for name, found in same.items() if not all(jax.tree.leaves(found))}


def test_without_replacement_it_is_the_predecessor_and_nothing_is_trained():
    new, found = run(at(0))
    assert found["distance"] < 1e-6
    assert moved(new) == set()


def test_with_all_modules_replaced_it_is_the_successor():
    new, found = run(at(2))
    out, _ = SUCCESSOR.apply(successor(), BATCH, None, False)
    assert found["loss"] == pytest.approx(float(losses.cross_entropy(out.logits, BATCH["label"]).mean()), rel=1e-5)
    assert found["distance"] > 1e-3
    assert moved(new) == {"block0", "block1"}
    again, _ = run(at(99))
    jax.tree.map(np.testing.assert_array_equal, again.params, new.params)


def test_gradients_reach_the_successors_that_ran():
    seen = [tuple(sorted(moved(run(at(1, seed))[0]))) for seed in range(40)]
    counts = {names: seen.count(names) for names in ((), ("block0",), ("block1",), ("block0", "block1"))}
    assert sum(counts.values()) == 40
    assert min(counts.values()) > 0, counts


def test_steps_draw_anew_follow_the_schedule_and_go_on_from_a_checkpoint(tmp_path):
    state, step = started()
    compiled = step._cache_size()
    states = [state]
    for _ in range(3):
        states.append(run(states[-1])[0])
    assert [int(s.state["student"]["batches"]) for s in states] == [0, 1, 2, 3]
    assert moved(states[1]) == set()
    assert step._cache_size() == max(compiled, 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, states[2])
        restored = checkpoints.restore(state)
    jax.tree.map(np.testing.assert_array_equal, run(restored)[0].params, states[3].params)
    own = sum(x.size for x in jax.tree.leaves(successor().params))
    held = sum(x.size for x in jax.tree.leaves((state.params, state.state, state.opt_state)))
    assert held - own < 10  # a few counters: nothing of the predecessor


def test_steps_of_every_kind_show_the_student_its_teacher():
    term = objectives.weighted(label=TERM, kd=objectives.from_logits(losses.kd))
    parts = (theseus.replacing(PREDECESSOR, SUCCESSOR), PREDECESSOR, term, optax.sgd(1.0))
    given = {"batch": BATCH, "teacher_variables": teacher(), "student_variables": theseus.begin(successor())}
    state = jax.eval_shape(lambda: train.init_state(*parts, key=jax.random.key(0), **given))
    new, _ = jax.eval_shape(train.make_train_step(*parts, micro_batches=3), state, teacher(), BATCH)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    report = train.gradients.make_gradient_report(*parts[:3])
    assert "gradient_cosine/kd" in jax.eval_shape(report, state, teacher(), BATCH)


def test_evaluated_it_is_the_successor_alone():
    student = theseus.replacing(PREDECESSOR, SUCCESSOR, 0.3)
    variables = theseus.begin(successor())
    out, state = student.apply(variables, BATCH, None, False)
    own, _ = SUCCESSOR.apply(successor(), BATCH, None, False)
    np.testing.assert_array_equal(out.logits, own.logits)
    assert state == variables.state
    jax.tree.map(np.testing.assert_array_equal, theseus.finish(variables), successor())


def test_blocks_of_berts_are_replaced_in_bfloat16_too():
    student = models.in_dtype(theseus.replacing(*BERTS, 0.3))
    known, own = (jax.eval_shape(model.init, jax.random.key(0), BATCH) for model in BERTS)
    variables = jax.eval_shape(theseus.begin, own)

    def run(variables, known):
        return student.apply(variables, {**BATCH, TEACHER: known}, jax.random.key(0), True)

    program, (out, state) = jax.make_jaxpr(run, return_shape=True)(variables, known)
    assert out.logits.shape == (3, 2)
    assert out.features["block0"].dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, variables.state)
    assert str(program).count("cond[") == 1


def test_what_does_not_fit_gets_a_sentence():
    def start(successor, predecessor=BERTS[0]):
        student = theseus.replacing(predecessor, successor)
        known = jax.eval_shape(predecessor.init, jax.random.key(0), BATCH)
        train.check_parts(student, predecessor, TERM, batch=BATCH, teacher_variables=known)

    with pytest.raises(ValueError, match="the successor has 3 blocks and the predecessor 2: give a divisor of 2"):
        start(models.bert(2, layers=3, **SIZES))
    with pytest.raises(ValueError, match="block 0 of the predecessor reads arrays of shapes"):
        start(models.bert(2, layers=1, **{**SIZES, "width": 8}))
    with pytest.raises(ValueError, match="the same number of heads"):
        start(models.bert(2, layers=1, **{**SIZES, "heads": 1}))
    student, key = theseus.replacing(PREDECESSOR, SUCCESSOR), jax.random.key(0)
    with pytest.raises(ValueError, match="the params have no encoder/block0 but dense1, head"):
        theseus.begin(Variables({"dense1": {}, "head": {}}, {}))
    with pytest.raises(ValueError, match="needs the variables of its predecessor"):
        student.apply(theseus.begin(successor()), BATCH, key, True)
    with pytest.raises(ValueError, match="make them by theseus"):
        student.apply(successor(), BATCH, key, True)
    with pytest.raises(ValueError, match=r"probability of replacement is 1\.5"):
        theseus.replacing(PREDECESSOR, SUCCESSOR, 1.5)
