"""Pairs of pictures and sounds: of one class, without a leak; the figures of towers without classes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, parallel
from jaxkd.experiment import Context
from jaxkd.experiment.fields import modalities
from jaxkd.experiment.fields.tones import tones
from jaxkd.train.state import unprepared
from jaxkd.types import Model, Outputs, Variables

CONFIG = modalities.PairConfig(name="pairs", source="tones", train_images="train", seconds=0.2)


@pytest.fixture(scope="module")
def pairs():
    return modalities.open_pairs(CONFIG)


def whole(source):
    return source.read(np.arange(source.size))


def test_pairs_have_one_class_and_share_nothing_with_those_of_the_test(pairs):
    train, test = whole(pairs.train), whole(pairs.test)
    for batch in (train, test):
        brightest = [np.argmax([x[:6, :6].mean(), x[:6, 6:].mean(), x[6:, :6].mean()]) for x in batch["image"]]
        np.testing.assert_array_equal(brightest, batch["label"])
    for field in ("image", "log_mel"):
        seen = {x.tobytes() for x in train[field]}
        assert not seen & {x.tobytes() for x in test[field]}
    assert (pairs.train.size, pairs.test.size) == (60, 12)
    again = whole(modalities.open_pairs(CONFIG).train)
    np.testing.assert_array_equal(again["log_mel"], train["log_mel"])
    other = whole(modalities.open_pairs(dataclasses.replace(CONFIG, seed=1)).train)
    assert (other["log_mel"] != train["log_mel"]).any()


def test_partners_are_used_equally_often_and_are_missed_in_a_sentence(pairs):
    rows = modalities.drawn(pairs.train, pairs.test, 0)
    assert set(np.bincount(rows)) == {5}, "twenty pictures of a class for four recordings"
    some = data.of_classes(pairs.test, (0, 1))
    with pytest.raises(ValueError, match="has nothing of class 2"):
        modalities.drawn(pairs.train, some, 0)


def test_pictures_of_other_classes_are_refused(pairs):
    two = data.of_classes(pairs.train, (0, 1))
    with pytest.raises(ValueError, match=r"has 2 classes of pictures .* has 3 words: give pictures of the same"):
        modalities.pair(CONFIG, tones(0), [two, two])


def test_towers_are_judged_by_the_training_examples_of_the_other_modality(pairs):
    def apply(variables, batch, key, train):
        rows = jnp.eye(3)[batch["label"]]
        return Outputs(None, {"image": rows @ variables.params, "sound": rows}), {}

    towers = Model(lambda key, batch: Variables(jnp.eye(3), {}), apply)
    context = Context(None, None, parallel.with_jit(), 0, 8, unprepared, unprepared, CONFIG)
    score = modalities.zero_shot(context, towers, pairs)
    assert score(Variables(jnp.eye(3), {})) == {"image": 1.0, "sound": 1.0, "both": 1.0}
    turned = jnp.roll(jnp.eye(3), 1, axis=0)
    assert score(Variables(turned, {}))["image"] == 0.0
