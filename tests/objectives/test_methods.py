"""Terms with parameters or memories of their own: they train what they own, learn, and say what does not fit."""

import jax
import numpy as np
import optax
import pytest
from objectives.methods import BATCH, STUDENT, TEACHER, TERMS, K, draw, start, started

from jaxkd import losses, objectives
from jaxkd.types import Variables

# What a gradient does not reach in the first step, and why.
UNREACHED = {
    "fgd": ("fc1", "ln", "mask"),  # the block starts as the identity: its last layer is zero
}


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

    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(optimizer.init, moving))
    state, opt_state, values = owned.state, zeros, []  # Adam starts from zeros
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
