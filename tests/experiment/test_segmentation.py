"""Parts of experiments on segmentation: what flags refuse, scores and floors, masks of a black box."""

import types

import numpy as np
import pytest

from jaxkd import data
from jaxkd.experiment.fields import pixels, seen_masks, segmentation
from jaxkd.experiment.fields.segmentation import SegmentationConfig
from jaxkd.experiment.trials import Trials

IMAGES = np.linspace(0, 255, 8 * 6 * 4).reshape(8, 6, 4, 1).astype(np.uint8)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"masks": "m", "black_box": "litert:x"}, "--masks and --black-box are both given"),
        ({"students": ("kd", "hard")}, "no way to teach 'hard': choose one of alone, kd, cwd, cirkd, skd, ifvd"),
        ({"students": ("kd",), "black_box": "litert:x"}, "no way to teach 'kd': choose one of hard, soft"),
        ({"depth": 1}, "--depth is 1: give at least 2"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        SegmentationConfig(**given).check()


def test_scores_of_a_network_that_is_right_and_of_floors(monkeypatch):
    monkeypatch.setattr(pixels, "_PIXELS", 90)
    test = segmentation.synthetic((8, 8), count=2)["test"]
    board = pixels.board_of(test)
    logits = np.eye(3, dtype=np.float32)[board.label]
    assert board.score("right", logits) == {"miou": 1, "iou0": 1, "iou1": 1, "iou2": 1, "accuracy": 1}
    trials = Trials(None, 1, segmentation.columns_of(test.class_names), [])
    pixels.add_floors(board, trials, test)
    always, *others = trials.rows
    assert [float(always[key]) for key in ("iou1", "iou2")] == [0, 0]
    assert float(always["accuracy"]) == pytest.approx(100 * np.mean(board.label == 0), abs=0.1)
    assert all(float(row["miou"]) > 60 for row in others)  # whose colours tell the classes


def network(place, inputs, output, channels_first):
    """Says of the brighter half of the pixels, at 12 x 12, that they are foreground."""
    asked = []

    def answer(batch):
        asked.append(len(batch["image"]))
        return batch["image"].mean(axis=-1, keepdims=True) if place == "file" else batch["image"] - 3

    return types.SimpleNamespace(name=place, fingerprint=place, answer=answer, asked=asked)


def test_masks_of_a_black_box_are_asked_for_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(seen_masks, "_NETWORKS", {"litert": lambda *args: made.append(network(*args)) or made[-1]})
    np.savez(tmp_path / "faces.npz", train_image=IMAGES, test_image=IMAGES[::2])
    config = SegmentationConfig(
        pictures=f"npz:{tmp_path / 'faces.npz'}", black_box="litert:file", black_box_size=12, height=6, width=4
    )
    run = types.SimpleNamespace(path=tmp_path / "run", settle=lambda: None)
    found = seen_masks.open_seen(config, run)
    assert [len(found[split]) for split in ("train", "val", "test")] == [7, 1, 4]
    rows = found["test"].read(np.arange(4))
    p = np.exp(rows["teacher_logits"])
    assert p.shape == (4, 6, 4, 2)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-3)
    assert np.corrcoef(p[..., 1].ravel(), IMAGES[::2].ravel())[0, 1] > 0.98
    np.testing.assert_array_equal(rows["label"], p[..., 1] > p[..., 0])
    seen_masks.open_seen(config, run)
    assert sum(made[0].asked) >= 12
    assert not made[1].asked
    other = SegmentationConfig(pictures=config.pictures, black_box="litert:other", black_box_size=12)
    elsewhere = types.SimpleNamespace(path=tmp_path / "other", settle=lambda: None)
    with pytest.raises(ValueError, match=r"for example 0 is no probability"):
        seen_masks.open_seen(other, elsewhere)
    with pytest.raises(ValueError, match="--black-box is 'file': write litert:PATH"):
        seen_masks.open_seen(SegmentationConfig(black_box="file"), run)


def test_pictures_without_boxes_or_masks_are_refused_in_a_sentence(tmp_path, monkeypatch):
    empty = {"train": data.from_masks("x", np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 2, 2), int), ("a", "b"))}
    asked = []
    monkeypatch.setattr(segmentation, "open_boxes", lambda *args, **options: asked.append(options) or empty)
    names = ("file", "-", "kind", "x0", "y0", "x1", "y1")
    with pytest.raises(ValueError, match=r"csv:boxes\.csv has no pictures of the split 'val'"):
        segmentation.open_pictures(SegmentationConfig(columns=names))
    assert asked[0]["columns"] == names
