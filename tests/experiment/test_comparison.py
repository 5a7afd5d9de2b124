"""Comparisons of methods: their splits, their figures, and flags that do not fit."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, parallel
from jaxkd.experiment.comparison import SMOKE, ComparisonConfig, compare, open_splits, synthetic

CONFIG = ComparisonConfig(**SMOKE)


@pytest.fixture(scope="module")
def comparison():
    return compare(CONFIG, None, None, parallel.with_jit())


def test_splits_have_the_first_classes_and_share_no_row():
    train, validation, test = open_splits(dataclasses.replace(CONFIG, classes=3))
    assert (train.num_classes, validation.num_classes, test.num_classes) == (3, 3, 3)
    assert train.size + validation.size == 60, "three in four of 80 rows"
    assert set(np.unique(data.labels_of(test))) == {0, 1, 2}


@pytest.mark.parametrize("classes", [1, 5])
def test_a_number_of_classes_that_the_source_lacks_is_one_sentence(classes):
    with pytest.raises(ValueError, match=f"--classes is {classes} but synthetic has 4 classes: give 2 to 4"):
        open_splits(dataclasses.replace(CONFIG, classes=classes))


def test_the_pictures_of_smoke_runs_are_always_the_same():
    first, again = synthetic(), synthetic()
    assert all((first[name] == again[name]).all() for name in first)


def test_figures_of_logits_are_those_of_their_definitions(comparison):
    labels = data.labels_of(comparison.test)
    logits = np.asarray(jnp.log(jnp.full((32, 4), 0.1).at[jnp.arange(32), (labels + (labels == 0)) % 4].set(0.7)))
    found = comparison.score(logits)
    assert found["accuracy"] == pytest.approx(np.mean(labels != 0))
    assert found["nll"] == pytest.approx(-0.75 * np.log(0.7) - 0.25 * np.log(0.1), rel=1e-5)
    assert found["ece"] == pytest.approx(0.05, abs=1e-5)


def test_a_floor_is_a_row_of_its_own(comparison):
    comparison.add_floor()
    assert [row["network"] for row in comparison.trials.rows] == ["logistic regression"]
