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
    """The trained classifier with two further last layers, and its start."""
    model = models.with_heads(CLASSIFIER, new=3, other=2)
    return model, models.inherit(model.init(KEY, BATCH), OLD, fresh="^heads/")


def test_the_further_heads_begin_anew_and_the_classifier_stays(student):
    model, start = student
    expected = CLASSIFIER.apply(OLD, BATCH, None, False)[0].logits
    outputs, _ = model.apply(start, BATCH, None, False)
    np.testing.assert_array_equal(outputs.logits, expected)
    new = outputs.features["logits_new"]
    head = start.params["heads"]["new"]
    np.testing.assert_allclose(new, outputs.features["pooled"] @ head["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(models.at_head(model, "new").apply(start, BATCH, None, False)[0].logits, new)
    assert outputs.features["logits_other"].shape == (8, 2)
    other = model.init(jax.random.key(1), BATCH).params["heads"]
    assert np.abs(other["new"]["kernel"] - head["kernel"]).max() > 0
    assert np.abs(start.params["heads"]["other"]["kernel"] - head["kernel"][:, :2]).max() > 0


def test_learning_without_forgetting_keeps_the_old_answers_and_plain_tuning_does_not(student):
    model, start = student
    term = objectives.weighted(
        label=objectives.from_outputs(losses.cross_entropy, "student.logits_new", "batch.label"),
        old=objectives.from_logits(losses.kd, temperature=2.0),
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
        answers = model.apply(after, BATCH, None, False)[0].logits
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
