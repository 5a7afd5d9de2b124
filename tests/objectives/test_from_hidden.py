"""Distilling a large vocabulary without its logits: the step equals the dense one, and nothing that large exists."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, copied

from jaxkd import losses, models, objectives, parallel, train
from jaxkd.losses.sequence import next_tokens
from jaxkd.types import Outputs, Variables

B, L, V = 16, 8, 50
STUDENT = models.language_model(V, layers=1, width=8, heads=2, max_length=L)
TEACHER = models.language_model(V, layers=1, width=12, heads=3, max_length=L)
PAIR = models.with_head(STUDENT), models.with_head(TEACHER)
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
NUMBERS = {"temperature": 2.0, "alpha": 0.3}


def make_batch(size=B, length=L, classes=V, seed=0, **more):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, classes, (size, length)).astype(np.int32)
    mask = np.arange(length) < rng.integers(2, length + 1, (size, 1))
    label, valid = jax.jit(next_tokens)(tokens, mask)
    return {"tokens": tokens, "token_mask": mask, "label": np.asarray(label), "valid": np.asarray(valid), **more}


def both(s, t, y, *, temperature=1.0, alpha=0.5):
    """Labels and soft labels in one walk over the tokens."""
    return alpha * losses.cross_entropy(s, y) + (1 - alpha) * losses.kd(s, t, temperature=temperature)


@functools.cache
def teacher_variables(model=TEACHER):
    """Sharp enough that there is something to learn."""
    drawn = jax.jit(model.init)(jax.random.key(99), make_batch())
    return Variables(jax.tree.map(lambda x: 4 * np.asarray(x), drawn.params), drawn.state)


@functools.cache
def applied(model):
    known = teacher_variables(model)
    return jax.jit(lambda batch: model.apply(known, batch, None, False)[0])


def outputs_of(pair, batch):
    return [applied(model)(batch) for model in pair]


DENSE = objectives.from_outputs(both, "student.logits", "teacher.logits", "batch.label", where="valid", **NUMBERS)
HIDDEN = objectives.from_hidden(both, label="label", where="valid", chunk=24, **NUMBERS)


@functools.cache
def begun(term, pair):
    """The parts of a step, and the state before the first."""
    parts = (*pair, term, optax.sgd(0.5, momentum=0.9))
    known = teacher_variables(pair[1])
    return parts, train.init_state(*parts, key=jax.random.key(0), batch=make_batch(), teacher_variables=known)


@functools.cache
def stepper(term, pair, compile_, **options):
    return compile_(train.make_train_step(*begun(term, pair)[0], **options))


def run(term, pair, compile_, place, steps=3, batch=make_batch, **options):
    """Metrics and params after a few steps of momentum."""
    state, known = copied((begun(term, pair)[1], teacher_variables(pair[1])))
    step = stepper(term, pair, compile_, **options)
    mesh = parallel.make_mesh()
    state, known = parallel.put_replicated((state, known), mesh) if place is not None else (state, known)
    for number in range(steps):
        rows = batch(seed=number)
        state, metrics = step(state, known, rows if place is None else place(rows, mesh))
    return metrics, state.params


ONE = (jax.jit, None)


@functools.cache
def dense():
    return run(DENSE, (STUDENT, TEACHER), *ONE)


def eight(step):
    return parallel.compile_jit(step, parallel.make_mesh())


@pytest.mark.parametrize(
    ("compile_", "place", "options"),
    [
        (*ONE, {}),
        (eight, parallel.put_batch, {}),
        (parallel.compile_pmap, parallel.put_shards, {"axis_name": parallel.DATA}),
        (*ONE, {"micro_batches": 4}),
    ],
    ids=["one device", "jit on eight", "pmap on eight", "micro-batches"],
)
def test_steps_equal_the_dense_ones(compile_, place, options):
    found = run(HIDDEN, PAIR, compile_, place, **options)
    assert_trees_close(found, dense(), **CLOSE)


def test_comparison_with_the_dense_step_can_fail():
    other = objectives.from_hidden(both, label="label", where="token_mask", **NUMBERS)  # the last token counts too
    with pytest.raises(AssertionError):
        assert_trees_close(run(other, PAIR, *ONE), dense(), **CLOSE)


def test_padded_rows_do_not_count():
    padded = make_batch()
    padded["tokens"][12:] = 0
    term, paired = HIDDEN, {}
    for name, rows in (
        ("padded", {**padded, "mask": np.arange(B) < 12}),
        ("cut", {n: x[:12] for n, x in padded.items()}),
    ):
        outputs = outputs_of(PAIR, rows)
        owned = term.init(jax.random.key(0), *outputs, rows)
        paired[name], _, _ = jax.jit(term.apply)(owned, *outputs, rows, jax.random.key(0), jnp.int32(0))
    np.testing.assert_allclose(paired["padded"], paired["cut"], rtol=1e-5)


def test_numbers_are_state_and_static_options_stay_static():
    term = objectives.from_hidden(losses.kd, temperature=3.0)
    outputs = outputs_of(PAIR, make_batch())
    owned = term.init(jax.random.key(0), *outputs, make_batch())
    assert set(owned.state) == {"temperature"}
    seen = []

    def odd(s, t, *, flag=False):
        seen.append(flag)
        return losses.kd(s, t)

    objectives.from_hidden(odd, flag=True).apply(
        Variables({}, {}), *outputs, make_batch(), jax.random.key(0), jnp.int32(0)
    )
    assert set(seen) == {True}


def test_it_learns():
    first = dense()[0]["loss"]
    later, _ = run(HIDDEN, PAIR, *ONE, steps=40, batch=lambda seed=0: make_batch())
    assert later["loss"] < 0.9 * first


@functools.cache
def compiled(hidden, devices):
    """The step of 2,048 tokens and 8,192 classes, compiled only: one side's logits would take 64 MiB."""
    size, length, classes = 16, 128, 8192
    student, teacher = (models.language_model(classes, layers=n, width=8, heads=2, max_length=length) for n in (1, 1))
    if hidden:
        student, teacher = models.with_head(student), models.with_head(teacher)
    term = (
        objectives.from_hidden(losses.kd, where="valid") if hidden else objectives.from_logits(losses.kd, where="valid")
    )
    parts, batch = (student, teacher, term, optax.sgd(0.1)), make_batch(size, length, classes)
    known = jax.eval_shape(teacher.init, jax.random.key(0), batch)
    state = jax.eval_shape(lambda v, b: train.begin_state(*parts, jax.random.key(0), b, v), known, batch)
    step = parallel.compile_jit(train.make_train_step(*parts), parallel.make_mesh(jax.devices()[:devices]))
    return step.lower(state, known, batch).compile(), 4 * size * length * classes // devices


def largest(program):
    """Bytes of the largest array in a compiled program, whatever it is for."""
    shapes = re.findall(r"\b(?:f32|f16|bf16|s32|u32|pred)\[([\d,]+)\]", program.as_text())
    return 4 * max(math.prod(map(int, shape.split(","))) for shape in shapes)


@pytest.mark.parametrize("devices", [1, 8])
def test_neither_side_s_logits_are_ever_held(devices):
    chunked, logits = compiled(True, devices)
    assert largest(chunked) <= logits / 8
    assert chunked.memory_analysis().temp_size_in_bytes < logits
    dense_step, _ = compiled(False, devices)  # a negative control: it is there to be found
    assert largest(dense_step) >= logits
    assert dense_step.memory_analysis().temp_size_in_bytes > 2 * logits


def test_what_is_missing_gets_a_sentence():
    outputs = outputs_of((STUDENT, TEACHER), make_batch())
    term = objectives.from_hidden(losses.kd)
    with pytest.raises(ValueError, match=r"the student does not tell its last layer: .*models\.with_head\(student\)"):
        term.apply(Variables({}, {}), *outputs, make_batch(), jax.random.key(0), jnp.int32(0))
    with pytest.raises(ValueError, match="no feature 'deep'"):
        objectives.from_hidden(losses.kd, student="deep").apply(
            Variables({}, {}), *outputs, make_batch(), jax.random.key(0), jnp.int32(0)
        )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tail", "the params have no 'tail': under the top there is encoder, head"),
        ("encoder/tail", "the params have no 'encoder/tail': under encoder there is block0, norm, position, token"),
        ("encoder/norm", "the params at 'encoder/norm' are no linear layer"),
    ],
)
def test_a_path_that_is_no_layer_is_refused(path, message):
    batch = make_batch()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda key: models.with_head(STUDENT, path).apply(STUDENT.init(key, batch), batch, None, False),
            jax.random.key(0),
        )


def test_a_tied_embedding_is_a_head():
    tied = models.with_head(STUDENT, "encoder/token")
    batch = make_batch()
    out = jax.eval_shape(lambda key: tied.apply(tied.init(key, batch), batch, None, False)[0], jax.random.key(0))
    assert out.head["kernel"].shape == (8, V)
    assert set(out.head) == {"kernel"}
    assert Outputs(out.logits).head is None
