"""Born-again networks: generation 0 is the teacher, each lineage learns from its own, and phases go on."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from helpers import CLASSES, assert_trees_close, assert_trees_equal, make_batch

from jaxkd import data, losses, models, objectives, parallel, train
from jaxkd.experiment import Context
from jaxkd.methods import born_again
from jaxkd.runs.directory import open_run
from jaxkd.runs.logger import Logger
from jaxkd.train import students
from jaxkd.types import Outputs

NET = models.mlp(CLASSES, hidden=(3,))
KD = objectives.from_logits(losses.kd, temperature=2.0)
BATCH = make_batch(16)
SOURCE = data.open_source({"image": BATCH["image"], "label": BATCH["label"]})


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"


@functools.cache
def first():
    return models.stack(*(jax.device_get(NET.init(jax.random.key(i), BATCH)) for i in (5, 6)))


def test_generation_0_is_the_teacher_and_every_generation_goes_on_where_it_was(tmp_path):
    made = functools.partial(born_again.generations, source=SOURCE, model=NET, first=first(), term=KD)
    with open_run(Config(), root=tmp_path) as run, Logger(run.path, tensorboard=False) as logger:
        context = Context(run, logger, parallel.with_jit(), 0, 16, dict, dict)
        given = functools.partial(made, context, optimizer=optax.sgd(0.5))
        assert_trees_equal(given("none", steps=1, count=0), [first()])
        whole = given("whole", steps=2, count=2)
        given("parts", steps=1, count=1)  # stopped in the middle of generation 1
        parts = given("parts", steps=2, count=2)
    assert_trees_equal(parts, whole)
    assert len(whole) == 3
    for seed in range(2):  # the first step of a lineage is that of a network alone with its own teacher
        one = students.pick_student(whole[1], seed)
        assert_trees_close(one, alone(seed, 1, 2), rtol=1e-4, atol=1e-6)


def test_every_generation_learns_from_the_one_before(monkeypatch):
    """Of the trainings alone: what they are given."""
    taught = []

    def train_phase(context, name, source, *, teacher_variables, key, **options):
        taught.append((name, float(jax.tree.leaves(teacher_variables)[0].sum()), key))
        return jax.tree.map(lambda x: x + 1, teacher_variables)

    monkeypatch.setattr(born_again, "train_phase", train_phase)
    monkeypatch.setattr(born_again, "variables_of", lambda state: state)
    context = Context(None, None, parallel.with_jit(), 0, 16, dict, dict)
    found = born_again.generations(context, "g", SOURCE, NET, first(), KD, optax.sgd(1.0), 1, count=2)
    assert [name for name, *_ in taught] == ["g-1", "g-2"]
    assert taught[1][1] == float(jax.tree.leaves(found[1])[0].sum()) != taught[0][1]
    assert (jax.random.key_data(taught[0][2]) != jax.random.key_data(taught[1][2])).any()


def alone(seed, generation, steps):
    """A network that distils generation 0 of one lineage, trained by itself."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), generation), seed)
    parts, known = (NET, NET, KD, optax.sgd(0.5)), students.pick_student(first(), seed)
    state = train.init_state(*parts, key=key, batch=BATCH, teacher_variables=known)
    step = jax.jit(train.make_train_step(*parts))
    for _ in range(steps):
        state, _ = step(state, known, BATCH)
    return train_variables(state)


def train_variables(state):
    return type(first())(state.params["student"], state.state["student"])


def test_the_ensemble_of_generations_is_the_mean_of_their_probabilities():
    model, variables = born_again.ensemble(NET, [first(), jax.tree.map(lambda x: 2 * x, first())], 1)
    found = model.apply(variables, BATCH, None, False)[0].logits
    one = students.pick_student(first(), 1)
    each = [NET.apply(jax.tree.map(lambda x, s=s: s * x, one), BATCH, None, False)[0].logits for s in (1, 2)]
    np.testing.assert_allclose(np.exp(found), np.mean(jax.nn.softmax(np.stack(each)), 0), rtol=1e-5)


def test_what_does_not_fit_fails_in_a_sentence():
    context = Context(None, None, parallel.with_jit(), 0, 16, dict, dict)
    given = {"term": KD, "optimizer": optax.sgd(1.0), "steps": 1}
    with pytest.raises(ValueError, match="give at least 0"):
        born_again.generations(context, "a", SOURCE, NET, first(), count=-1, **given)
    with pytest.raises(ValueError, match="no stack of this network"):
        born_again.generations(context, "a", SOURCE, NET, students.pick_student(first(), 0), count=1, **given)
    for teacher, message in ((Outputs(None, {"pooled": 1}), "no member's"), (Outputs(None, {}), "no members")):
        with pytest.raises(ValueError, match=message):
            born_again.taught_by(KD, 0).init(None, None, teacher, None)
