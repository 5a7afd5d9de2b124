"""Networks under attack: figures, curves, the range of pixels, and a floor that can be attacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, parallel
from jaxkd.experiment import robustness
from jaxkd.experiment.comparison import SMOKE, ComparisonConfig, compare


@pytest.fixture(scope="module")
def comparison():
    return compare(ComparisonConfig(**SMOKE), None, None, parallel.with_jit(parallel.make_mesh(jax.devices()[:1])))


@pytest.fixture(scope="module")
def floor(comparison):
    pixels = robustness.pixel_range(comparison.context, comparison.train)
    return pixels, *robustness.linear_floor(comparison.train, comparison.validation, pixels)


def test_prepared_pixels_go_back_to_0_to_1(comparison, floor):
    rows = comparison.test.read(np.arange(4))["image"]
    batch = {"image": rows, "id": np.arange(4), "view": np.zeros(4, np.int32)}
    prepared = comparison.context.eval_prepare(batch)["image"]
    np.testing.assert_allclose(floor[0].to_unit(jnp.asarray(prepared)), rows / 255, atol=1e-6)


def test_no_attack_leaves_more_right_answers_than_there_were(comparison, floor):
    """The linear floor is always right here, so that class 0 is made to win half of the others' images first."""
    pixels, model, variables = floor
    y = data.labels_of(comparison.test)
    z = comparison.answers(model, variables, comparison.test)
    gap = np.median((z[np.arange(y.size), y] - z[:, 0])[y != 0])
    wrong = variables._replace(params={**variables.params, "bias": variables.params["bias"] + gap * jnp.eye(4)[0]})
    right = (z + gap * np.eye(4)[0]).argmax(-1) == y
    assert 0.3 < right.mean() < 0.9
    fooled = robustness.attacker(comparison.context, model, pixels, steps=2)
    before = fooled(wrong, comparison.test, 0.0)
    for found in before.values():
        np.testing.assert_array_equal(found, ~right)
    scores, curve = robustness.over_radius(fooled, wrong, comparison.test, 0.05, (0.01, 0.05, 0.4))
    assert scores["clean"] == pytest.approx(right.mean())
    assert scores.keys() == robustness.COLUMNS.keys()
    assert scores["worst"] <= min(scores.values()) <= max(scores.values()) <= scores["clean"]
    assert curve[1] == pytest.approx(scores["worst"])
    assert (np.diff(curve) <= 0).all()
    assert curve[-1] < scores["clean"]


def test_an_image_is_robust_only_if_all_attacks_fail_and_stays_fooled_in_larger_balls():
    fooled = {"clean": np.array([0, 0, 0, 1], bool), "fgsm": np.array([1, 0, 0, 1], bool)}
    fooled["pgd"] = np.array([0, 1, 0, 1], bool)
    assert robustness.accuracies(fooled) == {"clean": 0.75, "fgsm": 0.5, "pgd": 0.5, "worst": 0.25}
    found = lambda variables, source, radius: {"clean": np.array([radius < 0.2, False, radius > 0.2])}  # noqa: E731
    _, curve = robustness.over_radius(found, None, None, 0.1, (0.1, 0.3))
    np.testing.assert_allclose(curve, [2 / 3, 1 / 3])


def test_the_floor_is_the_regression(comparison, floor):
    comparison.add_floor()
    _, model, variables = floor
    found = comparison.score(comparison.answers(model, variables, comparison.test))
    row = comparison.trials.rows[-1]
    assert (f"{found['nll']:.3f}", f"{100 * found['accuracy']:.2f}") == (row["nll"], row["accuracy"])


def test_two_classes_are_too_few_for_the_attacks(comparison, floor):
    two = data.of_classes(comparison.train, range(2))
    with pytest.raises(ValueError, match="has 2 classes, but APGD's difference of logits ratio needs three"):
        robustness.linear_floor(two, two, floor[0])
