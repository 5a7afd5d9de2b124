"""Detectors: shapes and names, targets, non-maximum suppression, and a head that reads another network's features."""

import jax
import numpy as np
import pytest
from scipy.special import expit, softmax

from jaxkd import boxes, models
from jaxkd.models.detection.targets import centerness_of
from jaxkd.types import Outputs

SHAPE, STRIDES = (32, 48), (8, 16)
BATCH = {"image": np.random.default_rng(0).random((2, *SHAPE, 3), np.float32)}


@pytest.fixture(scope="module")
def network():
    """Its variables, what it says, and what its head says of its own features."""
    model = models.detector(3, width=4, blocks=1, strides=STRIDES)
    variables = models.init(model, jax.random.key(0), BATCH)

    def run(v, b):
        out = model.apply(v, b, None, False)[0]
        towers = [[out.features[f"{side}_tower{level}"] for level in (0, 1)] for side in ("class", "box")]
        return out, models.apply_head(v.params["head"], *towers, STRIDES)

    return variables, *jax.jit(run)(variables, BATCH)


def test_features_are_named_and_cover_all_locations(network):
    variables, out, _ = network
    shapes = {name: x.shape for name, x in out.features.items()}
    assert out.logits.shape == (2, 24 + 6, 3)
    assert shapes["neck0"] == shapes["class_tower0"] == shapes["box_tower0"] == (2, 4, 6, 4)
    assert shapes["neck1"] == (2, 2, 3, 4)
    assert [shapes[f"stage{i}"] for i in (1, 2, 3)] == [(2, 8, 12, 4), (2, 4, 6, 8), (2, 2, 3, 16)]
    assert shapes["found_boxes"] == shapes["distances"] == (2, 30, 4)
    assert shapes["bins"] == (2, 30, 4, 8)
    assert shapes["centerness"] == (2, 30)
    np.testing.assert_allclose(expit(out.logits).mean(), 0.01, atol=0.003)
    assert models.count_parameters(variables) < 12_000


def test_a_distance_is_the_mean_of_its_bins_and_boxes_lie_around_their_locations(network):
    _, out, _ = network
    weights = softmax(out.features["bins"], axis=-1)
    scale = np.repeat([8.0, 16.0], [24, 6])
    distances = (weights * (np.arange(8) - 1)).sum(-1) * scale[None, :, None]
    np.testing.assert_allclose(out.features["distances"], distances, rtol=1e-4)
    found = np.asarray(out.features["found_boxes"])
    np.testing.assert_allclose(found[:, 0], [4, 4, 4, 4] + np.array([-1, -1, 1, 1]) * distances[:, 0], rtol=1e-4)
    np.testing.assert_allclose(
        found[:, 24 + 4], np.array([24, 24, 24, 24]) + [-1, -1, 1, 1] * distances[:, 28], rtol=1e-4
    )


def test_a_head_gives_its_own_predictions_for_its_own_features(network):
    _, out, again = network
    np.testing.assert_allclose(again.logits, out.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again.features["found_boxes"], out.features["found_boxes"], rtol=1e-4, atol=1e-3)


PROGRAM = jax.jit(lambda b, c, crowd: models.assign(b, c, image_shape=SHAPE, strides=STRIDES, crowd=crowd))


def assigned(corners, label, crowd=()):
    """Targets of three boxes, of which those that are not given are not there."""
    boxes, classes, crowds = np.zeros((1, 3, 4), np.float32), np.full((1, 3), -1, np.int32), np.zeros((1, 3), bool)
    boxes[0, : len(corners)], classes[0, : len(label)], crowds[0, : len(crowd)] = corners, label, crowd
    return PROGRAM(boxes, classes, crowds)


def test_locations_near_the_centre_of_a_box_find_it_at_the_stride_of_its_size():
    target = assigned([[8, 8, 32, 24], [0, 0, 50, 32], [0, 0, 0, 0]], [1, 2, -1])
    fine, coarse = np.asarray(target.label[0, :24]).reshape(4, 6), np.asarray(target.label[0, 24:]).reshape(2, 3)
    expected = np.full((4, 6), -1)
    expected[1:3, 1:4] = 1  # at most 12 pixels from (20, 16)
    np.testing.assert_array_equal(fine, expected)
    np.testing.assert_array_equal(coarse, np.full((2, 3), 2))
    np.testing.assert_array_equal(target.boxes[0, 6 + 1], [8, 8, 32, 24])
    np.testing.assert_array_equal(target.distances[0, 6 + 1], [4, 4, 20, 12])
    np.testing.assert_allclose(target.centerness[0, 6 + 1], np.sqrt(4 / 20 * 4 / 12), rtol=1e-6)


def test_of_boxes_at_one_place_the_smallest_is_found_and_those_without_a_place_are_told():
    target = assigned([[4, 4, 20, 20], [8, 8, 16, 16], [9, 9, 15, 15]], [0, 1, 2])
    assert int(target.label[0, 6 + 1]) == 2
    np.testing.assert_array_equal(target.missed, [[False, True, False]])
    tiny = assigned([[7, 7, 9, 9]], [1])
    assert (np.asarray(tiny.label) == 1).any(), "a box narrower than a cell has a location"


def test_locations_in_a_crowd_are_asked_for_nothing():
    target = assigned([[8, 8, 32, 24], [16, 8, 24, 16]], [1, 1], crowd=[True, False])
    ignored, label = np.asarray(target.ignored[0, :24]).reshape(4, 6), np.asarray(target.label[0, :24]).reshape(4, 6)
    assert label[1, 2] == 1
    assert not ignored[1, 2]
    assert ignored[2, 2]
    assert not ignored[0, 0]
    assert not np.asarray(target.missed).any()


def test_centerness_is_one_at_the_centre_and_zero_beyond_an_edge():
    found = jax.jit(centerness_of)(np.float32([[3.0, 5, 3, 5], [1, 1, 4, 1], [-1, 2, 5, 2]]))
    np.testing.assert_allclose(found, [1, 0.5, 0], rtol=1e-6)


def greedy(found, scores, label, overlap):
    """Suppression in a loop."""
    kept = []
    for i in sorted(np.flatnonzero(scores > 0), key=lambda i: -scores[i]):
        for j in kept:
            low, high = np.maximum(found[i, :2], found[j, :2]), np.minimum(found[i, 2:], found[j, 2:])
            both = np.prod(np.maximum(high - low, 0))
            union = np.prod(found[i, 2:] - found[i, :2]) + np.prod(found[j, 2:] - found[j, :2]) - both
            if label[i] == label[j] and both > overlap * union:
                break
        else:
            kept.append(i)
    return kept


def test_suppression_equals_a_loop_in_order_and_pads():
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 10, (40, 2))
    found = np.concatenate([low, low + rng.uniform(2, 6, (40, 2))], axis=-1).astype(np.float32)
    scores, label = rng.random(40, np.float32), rng.integers(0, 2, 40).astype(np.int32)
    scores[:5] = 0
    expected = greedy(found, scores, label, 0.3)
    kept = jax.jit(lambda *given: models.suppress(*given, limit=40, overlap=0.3))(found, scores, label)
    assert 5 < len(expected) < 30
    np.testing.assert_array_equal(kept.boxes[: len(expected)], found[expected])
    np.testing.assert_array_equal(kept.label, [*label[expected], *[-1] * (40 - len(expected))])
    np.testing.assert_array_equal(kept.scores[len(expected) :], 0)


def test_detections_are_cut_to_the_picture_and_have_a_least_score():
    corners = np.float32([[[-9, 2, 10, 12], [20, 20, 60, 40], [5, 5, 5, 9], [1, 1, 9, 9]]])
    logits = np.float32([[[5, -9], [-9, 4], [9, -9], [-9, -9]]])
    out = Outputs(logits, {"found_boxes": corners, "centerness": np.full((1, 4), 9, np.float32)})
    found = jax.jit(lambda o: models.detect(o, image_shape=SHAPE, limit=3, threshold=0.5))(out)
    np.testing.assert_array_equal(found.label, [[0, 1, -1]])
    np.testing.assert_allclose(found.boxes[0, :2], [[0, 2, 10, 12], [20, 20, 48, 32]])
    np.testing.assert_allclose(found.scores[0, 0], np.sqrt(1 / (1 + np.exp(-5.0)) / (1 + np.exp(-9.0))), rtol=1e-5)


def test_overlap_of_boxes():
    both, union = jax.jit(boxes.overlap)(np.float32([[0, 0, 4, 4]]), np.float32([[2, 2, 6, 6], [5, 5, 3, 9]]))
    np.testing.assert_array_equal(both, [4, 0])
    np.testing.assert_array_equal(union, [28, 16])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (16, 8)}, r"strides are \(16, 8\)"),
        ({"strides": (8, 32)}, "give some of 4, 8, 16"),
        ({"bins": 2}, "at least 3 bins"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_options_that_make_no_detector_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        models.detector(3, **options)
    model = models.detector(3, width=4)
    with pytest.raises(ValueError, match=r"multiples of 16 but images are 20 x 32"):
        jax.eval_shape(model.init, jax.random.key(0), {"image": np.zeros((1, 20, 32, 3), np.float32)})
