"""One network with last layers for several tasks: what they read, what is trained, what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_equal

from jaxkd import losses, models, objectives, train
from jaxkd.types import Model, Outputs, Variables

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.standard_normal((8, 4)).astype(np.float32), "label": np.arange(8) % 3, "id": np.arange(8)}
KEY = jax.random.key(0)


def made(seed):
    """Variables of the classifier: one hidden layer, three classes."""
    random = np.random.default_rng(seed)
    body, kernel = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 6), (6, 3)))
    return Variables({"body": body, "head": {"kernel": kernel, "bias": np.zeros(3, np.float32)}}, {})


def apply(variables, batch, key, train):
    pooled = jnp.tanh(batch["x"] @ variables.params["body"])
    head = variables.params["head"]
    return Outputs(pooled @ head["kernel"] + head["bias"][None], {"pooled": pooled}), {}


CLASSIFIER, OLD = Model(lambda key, batch: made(1), apply), made(0)


@pytest.fixture(scope="module")
def student():
    """A student with the old classifier's last layer and a third one, and its start."""
    model = models.with_heads(CLASSIFIER, old=3, other=2)
    return model, models.inherit(model.init(KEY, BATCH), models.keep_head(OLD, "old"), fresh="^head/|other")


def test_the_kept_head_gives_the_old_logits_and_the_own_one_begins_anew(student):
    model, start = student
    expected = CLASSIFIER.apply(OLD, BATCH, None, False)[0].logits
    outputs, _ = model.apply(start, BATCH, None, False)
    np.testing.assert_allclose(outputs.features["logits_old"], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        models.at_head(model, "old").apply(start, BATCH, None, False)[0].logits, outputs.features["logits_old"]
    )
    assert outputs.features["logits_other"].shape == (len(expected), 2)
    assert np.abs(outputs.logits - expected).max() > 1e-3
    assert np.abs(start.params["heads"]["other"]["kernel"]).max() > 0
    assert start.params["heads"]["old"] is not start.params["head"]


def test_learning_without_forgetting_keeps_the_old_answers_and_plain_tuning_does_not(student):
    model, start = student
    term = objectives.weighted(
        label=objectives.from_labels(losses.cross_entropy),
        old=objectives.from_outputs(losses.kd, "student.logits_old", "teacher.logits", temperature=2.0),
    )
    parts = (model, CLASSIFIER, term, optax.sgd(0.5))
    begin = train.init_state(*parts, key=KEY, batch=BATCH, teacher_variables=OLD, student_variables=start)
    step, before = jax.jit(train.make_train_step(*parts)), CLASSIFIER.apply(OLD, BATCH, None, False)[0].logits

    def moved(weight):
        own = begin.state["term"]
        weights = {**own["weights"], "old": jnp.asarray(weight)}
        state, values = begin.replace(state={**begin.state, "term": {**own, "weights": weights}}), []
        for _ in range(20):
            state, found = step(state, OLD, BATCH)
            values.append(float(found["label"]))
        after = Variables(state.params["student"], state.state["student"])
        assert_trees_equal(after.params["heads"]["other"], start.params["heads"]["other"])
        assert values[-1] < 0.8 * values[0]
        answers = model.apply(after, BATCH, None, False)[0].features["logits_old"]
        return float(np.mean(losses.kd(answers, before, temperature=2.0)))

    assert moved(1.0) < 0.5 * moved(0.0)


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(ValueError, match="give the number of classes of at least one"):
        models.with_heads(CLASSIFIER)
    with pytest.raises(ValueError, match=r"no feature 'gap' for last layers: it has .*pooled"):
        models.with_heads(CLASSIFIER, feature="gap", old=2).init(KEY, BATCH)
    with pytest.raises(ValueError, match=r"last layers for \[\] but the model for \['old'\]"):
        models.with_heads(CLASSIFIER, old=2).apply(OLD, BATCH, None, False)
    with pytest.raises(ValueError, match="no feature 'logits_old'"):
        models.at_head(CLASSIFIER, "old").apply(OLD, BATCH, None, False)
    with pytest.raises(ValueError, match=r"no last layer 'top' .* name it with head="):
        models.keep_head(OLD, "old", head="top")
