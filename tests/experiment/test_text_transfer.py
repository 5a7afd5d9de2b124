"""Ways to learn a new task on texts: their objectives by hand, their optimizer, and the floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, losses
from jaxkd.experiment import text_transfer, two_tasks
from jaxkd.experiment.texts import Splits
from jaxkd.experiment.tiny import sentences
from jaxkd.types import Outputs

RNG = np.random.default_rng(0)


def outputs():
    old, new, pooled = (RNG.standard_normal((6, size)).astype(np.float32) for size in (3, 2, 4))
    return Outputs(new, {"logits_old": old, "logits_new": new, "pooled": pooled})


STUDENT, TEACHER = outputs(), outputs()._replace(logits=RNG.standard_normal((6, 3)).astype(np.float32))
BATCH = {"label": np.array([0, 1, 1, 2, 0, 2]), "is_new": np.arange(6) < 3, "is_old": np.arange(6) >= 3}


def value(term, batch):
    key = jax.random.key(0)
    variables = term.init(key, STUDENT, TEACHER, batch)
    return float(term.apply(variables, STUDENT, TEACHER, batch, key, jnp.asarray(0))[0])


def test_objectives_are_those_of_their_papers():
    ways = two_tasks.make_ways(0.5, 2.0, 10.0, **text_transfer.FROZEN)
    features, batch = STUDENT.features, {"label": BATCH["label"] % 2}
    label = float(np.mean(losses.cross_entropy(features["logits_new"], batch["label"])))
    answers = float(np.mean(losses.kd(features["logits_old"], TEACHER.logits, temperature=2.0)))
    relations = float(losses.sp(features["pooled"], TEACHER.features["pooled"]))
    for name in ("nothing", "published", "frozen", "fine-tuned"):
        assert value(ways[name].term, batch) == pytest.approx(label, rel=1e-6)
    assert value(ways["lwf"].term, batch) == pytest.approx(label + 0.5 * answers, rel=1e-6)
    assert value(ways["lwf-relations"].term, batch) == pytest.approx(label + 0.5 * answers + 10 * relations, rel=1e-6)
    each = [
        float(np.mean(losses.cross_entropy(features[f"logits_{task}"][rows], BATCH["label"][rows])))
        for task, rows in (("new", slice(0, 3)), ("old", slice(3, 6)))
    ]
    assert value(ways["joint"].term, BATCH) == pytest.approx(sum(each), rel=1e-6)
    assert value(ways["joint-uncertainty"].term, BATCH) == pytest.approx(sum(each), rel=1e-6)  # it begins alike


def test_last_layers_learn_ten_times_as_fast_unless_all_is_new():
    params = {"student": {"encoder": jnp.ones(3), "heads": {"new": jnp.ones(3)}}, "term": {}}
    for alike, ratio in ((False, 10), (True, 1)):
        optimizer = two_tasks.adam(1e-3, 10, alike=alike)
        state = optimizer.init(params)
        for _ in range(2):  # the first rate is 0
            updates, state = optimizer.update(params, state, params)
        moved = updates["student"]
        np.testing.assert_allclose(moved["heads"]["new"], ratio * moved["encoder"], rtol=1e-5)
        np.testing.assert_allclose(moved["heads"]["new"], -1e-2, rtol=1e-4)


def test_the_floor_is_measured_on_the_test_split():
    parts = {split: data.open_texts(columns) for split, columns in sentences().items()}
    assert text_transfer.floor(Splits(**parts)) == {"accuracy": 1.0, "matthews": pytest.approx(1.0)}
    swapped = data.open_texts(
        {"sentence": parts["test"].texts, "label": [["positive", "negative"][k] for k in parts["test"].labels]}
    )
    found = text_transfer.floor(Splits(parts["train"], parts["validation"], swapped))
    assert found == {"accuracy": 0.0, "matthews": pytest.approx(-1.0)}


def test_test_texts_that_the_other_task_trains_on_are_said(caplog):
    parts = {split: data.open_texts(columns) for split, columns in sentences().items()}
    apart = Splits(**parts)
    text_transfer.say_shared({"old": apart, "new": apart})
    assert not caplog.messages
    text_transfer.say_shared({"old": apart, "new": apart._replace(train=parts["test"])})
    (said,) = caplog.messages
    assert said.startswith("32 of the 32 texts of")
    assert "of the old task, stand in" in said
