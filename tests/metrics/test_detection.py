"""Average precision of boxes equals pycocotools' on random cases, and its rules on cases made by hand."""

import contextlib
import io

import numpy as np
import pytest

from jaxkd import metrics


def random_case(seed, pictures=6, most=5, found=8, classes=4):
    """Boxes on a coarse grid, so that scores and IoUs tie; the last class is absent, some pictures are empty."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        low = rng.integers(0, 6, (pictures, count, 2))
        return np.concatenate([low, low + rng.integers(1, 5, (pictures, count, 2))], axis=-1).astype(np.float64)

    true, mine = boxes(most), boxes(found)
    labels, guessed = rng.integers(-1, classes - 1, (pictures, most)), rng.integers(-1, classes, (pictures, found))
    near = rng.random((pictures, found)) < 0.6
    pick = rng.integers(0, most, (pictures, found))
    mine = np.where(near[..., None], np.take_along_axis(true, pick[..., None], axis=1), mine)
    mine[..., 2:] += (rng.random((pictures, found, 2)) < 0.3) * 0.5
    guessed = np.where(near, np.take_along_axis(labels, pick, axis=1), guessed)
    labels[0], guessed[1], labels[2], guessed[2] = -1, -1, -1, -1
    crowd = (rng.random((pictures, most)) < 0.2) & (seed % 2 == 1)
    return mine, rng.integers(1, 6, (pictures, found)) / 8, guessed, true, labels, crowd


def reference(mine, scores, guessed, true, labels, crowd, classes, limit=100):
    """pycocotools' precision of each threshold and class, [10, K], NaN where it says -1; and its two means."""
    coco, cocoeval = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    one = coco.COCO()
    pairs = [(n, m) for n in range(len(true)) for m in range(true.shape[1]) if labels[n, m] >= 0]

    def bbox(box):
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    one.dataset = {
        "images": [{"id": n + 1} for n in range(len(true))],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
        "annotations": [
            {
                "id": i,
                "image_id": n + 1,
                "category_id": int(labels[n, m]) + 1,
                "bbox": bbox(true[n, m]),
                "area": float(np.prod(true[n, m, 2:] - true[n, m, :2])),
                "iscrowd": int(crowd[n, m]),
            }
            for i, (n, m) in enumerate(pairs, 1)
        ],
    }
    results = [
        {
            "image_id": n + 1,
            "category_id": int(guessed[n, d]) + 1,
            "bbox": bbox(mine[n, d]),
            "score": float(scores[n, d]),
        }
        for n in range(len(mine))
        for d in range(mine.shape[1])
        if guessed[n, d] >= 0
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        one.createIndex()
        run = cocoeval.COCOeval(one, one.loadRes(results), "bbox")
        run.params.maxDets = [limit]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"][..., 0, -1]  # all areas, the most boxes
    each = precision.mean(axis=1)
    return np.where(each < 0, np.nan, each), precision[precision > -1].mean(), precision[0][precision[0] > -1].mean()


@pytest.mark.parametrize("seed", range(12))
def test_equals_pycocotools_on_random_cases(seed):
    case = random_case(seed)
    limit = 2 if seed % 3 == 0 else 100
    each, mean, at_half = reference(*case, classes=4, limit=limit)
    *given, crowd = case
    ours = metrics.detection_ap(*given, num_classes=4, crowd=crowd, limit=limit)
    np.testing.assert_allclose(ours.each, each, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose([ours.value(), ours.at(0.5)], [mean, at_half], rtol=1e-12)
    assert np.isnan(ours.per_class()[3]), "a class without boxes has no figure"
    assert 0.05 < ours.value() < 0.95, "the case tells nothing"


def test_a_class_that_is_never_found_has_zero_and_no_boxes_at_all_nan():
    true, none = np.array([[[0.0, 0, 4, 4]]]), np.zeros((1, 1, 4))
    found = metrics.detection_ap(none, [[0.0]], [[-1]], true, [[0]], num_classes=2)
    np.testing.assert_array_equal(found.per_class(0.5), [0, np.nan])
    assert found.value() == 0
    assert np.isnan(metrics.detection_ap(true, [[1.0]], [[0]], none, [[-1]], num_classes=2).value())


def test_a_second_box_of_one_object_is_wrong_and_one_in_a_crowd_is_neither():
    true = np.array([[[0.0, 0, 4, 4], [10, 10, 20, 20]]])
    mine = np.array([[[0.0, 0, 4, 4], [0, 0, 4, 4], [11, 11, 13, 13], [14, 14, 16, 16]]])
    scores, labels = [[0.9, 0.8, 0.95, 0.94]], [[0, 0, 0, 0]]
    given = (mine, scores, labels, true, [[0, 0]])
    assert metrics.detection_ap(*given, num_classes=1, crowd=[[False, True]]).value() == pytest.approx(1)
    assert metrics.detection_ap(*given, num_classes=1).value() < 0.3


def test_shapes_scores_and_thresholds_that_do_not_fit_are_named():
    boxes = np.zeros((1, 2, 4))
    with pytest.raises(ValueError, match=r"scores \(1, 3\)"):
        metrics.detection_ap(boxes, np.zeros((1, 3)), np.zeros((1, 2)), boxes, np.zeros((1, 2)), num_classes=1)
    with pytest.raises(ValueError, match="a score of a found box is NaN"):
        metrics.detection_ap(boxes, np.full((1, 2), np.nan), np.zeros((1, 2)), boxes, np.zeros((1, 2)), num_classes=1)
    with pytest.raises(ValueError, match="a class is 1 or more"):
        metrics.detection_ap(boxes, np.zeros((1, 2)), np.zeros((1, 2)), boxes, np.array([[0, 1]]), num_classes=1)
    given = boxes, np.zeros((1, 2)), np.zeros((1, 2)), boxes, np.zeros((1, 2))
    found = metrics.detection_ap(*given, num_classes=1, thresholds=(0.5,))
    with pytest.raises(ValueError, match=r"0.6 is none of \(0.5,\)"):
        found.at(0.6)
