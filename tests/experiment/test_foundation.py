"""Foundation teachers: what judges features, which teacher there is, and what students follow."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA

from jaxkd import data, models
from jaxkd.experiment.comparison import SMOKE, open_splits
from jaxkd.experiment.fields import foundation
from jaxkd.experiment.fields.foundation import FoundationConfig
from jaxkd.types import Model, Outputs, Variables

CONFIG = FoundationConfig(**{**SMOKE, "name": "few", "student_size": 6})


@pytest.fixture(scope="module")
def splits():
    names = ("train", "validation", "test")
    return types.SimpleNamespace(**dict(zip(names, open_splits(CONFIG), strict=True)), config=CONFIG)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_whitening_is_that_of_scikit_learn(shape):
    features = np.random.default_rng(0).normal(size=shape) @ np.diag(np.arange(1.0, shape[1] + 1))
    middle, axes = foundation.whitening(features, 4)
    wanted = PCA(4, whiten=True, svd_solver="full").fit_transform(features)[:, ::-1]  # the smallest first
    found = (features - middle) @ axes
    np.testing.assert_allclose(found * np.sign(found[0]), wanted * np.sign(wanted[0]), rtol=1e-8, atol=1e-10)


def test_features_are_judged_by_their_classes_alone(splits):
    labels = [data.labels_of(x) for x in (splits.train, splits.validation, splits.test)]
    random = np.random.default_rng(0)
    told = foundation.Features(*(np.eye(4)[y] + 0.1 * random.normal(size=(len(y), 4)) for y in labels))
    assert foundation.judged(splits, told) == {"neighbours": 1, "probe": 1}
    mute = foundation.Features(*(random.normal(size=(len(y), 4)) for y in labels))
    assert max(foundation.judged(splits, mute).values()) < 0.6
    few, rows = foundation.few_rows(splits, 2)
    np.testing.assert_array_equal(labels[0][rows], data.labels_of(few))
    assert np.bincount(labels[0][rows]).tolist() == [2, 2, 2, 2]
    assert foundation.linear_of_few(splits, told, rows) == 1


def test_pixels_are_those_of_small_images_less_the_mean_of_the_training_images(splits):
    found = foundation.pixels(splits)
    assert [x.shape for x in found] == [(72, 108), (8, 108), (32, 108)]
    np.testing.assert_allclose(found.train.mean(axis=0), 0, atol=1e-3)


def test_without_weights_a_teacher_is_trained_here(monkeypatch, caplog):
    def absent():
        raise ImportError("install the package.")

    config = FoundationConfig(name="few")
    monkeypatch.setattr(foundation, "published_file", absent)
    assert foundation.usable(config).teacher == "convnet"
    assert "install the package. Until then the teacher is a convnet" in caplog.text
    given = dataclasses.replace(config, teacher_file="weights.pth")
    assert foundation.usable(given) is given
    monkeypatch.setattr(foundation, "published_file", lambda: "weights.tflite")
    assert foundation.usable(config) is config


def test_weights_of_a_teacher_that_is_trained_here_are_refused(tmp_path):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ValueError, match="--teacher-file is given but --teacher is tiny"):
        dataclasses.replace(CONFIG, teacher_file=str(tmp_path / "weights.pth")).check()


def test_images_without_labels_have_the_channels_of_the_others(splits, tmp_path, caplog):
    assert foundation.open_unlabelled(CONFIG, splits) is splits.train
    for channels in (1, 3):
        file = tmp_path / f"{channels}.npz"
        images = np.zeros((5, 12, 12, channels), np.uint8)
        np.savez(file, train_image=images, train_label=np.arange(5, dtype=np.uint8))
        config = dataclasses.replace(CONFIG, unlabelled=f"npz:{file}")
        if channels == 3:
            assert foundation.open_unlabelled(config, splits).size == 5
            assert "5 images" in caplog.text
            continue
        with pytest.raises(ValueError, match=r"has images \(12, 12, 1\) but --source has \(12, 12, 3\)"):
            foundation.open_unlabelled(config, splits)


def test_the_last_map_is_the_one_that_is_pooled():
    maps = {"stage1": jnp.zeros((2, 4, 4, 3)), "stage2": jnp.ones((2, 2, 2, 5)), "pooled": jnp.ones((2, 5))}
    assert foundation.last_map(Outputs(jnp.zeros((2, 1)), maps)) is maps["stage2"]
    flat = Outputs(jnp.zeros((2, 1)), {"hidden": jnp.zeros((2, 7)), "pooled": jnp.ones((2, 5))})
    assert foundation.last_map(flat).shape == (2, 1, 1, 5)
    model = Model(lambda key, batch: Variables({}, {}), lambda variables, batch, key, train: (flat, {}))
    outputs, _ = foundation.with_last(model).apply(Variables({}, {}), {}, None, False)
    assert outputs.features["last"].shape == (2, 1, 1, 5)
    assert outputs.features["hidden"] is flat.features["hidden"]


@pytest.mark.parametrize("kind", ["cosine", "maps", "similarity"])
def test_students_follow_the_teacher_without_labels(kind):
    key, maps = jax.random.key(0), jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 5)), jnp.float32)
    term = foundation.terms(dataclasses.replace(CONFIG, queue=8))[kind]
    teacher = models.cached(logits=foundation.VECTOR, features=(foundation.MAP,))
    batch = {foundation.MAP: maps, foundation.VECTOR: maps.mean(axis=(1, 2))}
    known, _ = teacher.apply(Variables({}, {}), batch, None, False)
    student = Outputs(jnp.zeros((4, 3)), {"pooled": batch[foundation.VECTOR], "last": maps})
    variables = term.init(key, student, known, batch)
    gradient = jax.grad(lambda s: term.apply(variables, s, known, batch, key, jnp.int32(0))[0])(student)
    moved = {name for name, x in gradient.features.items() if np.abs(x).max() > 0}
    assert moved == {"last" if kind == "maps" else "pooled"}
    assert not np.any(gradient.logits)  # nor is the head of classes moved
