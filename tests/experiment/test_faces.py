"""Faces: users' own folders, people who are held out, floors, and figures."""

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from jaxkd import data, losses, metrics
from jaxkd.experiment.fields import faces

CONFIG = faces.FaceConfig(source=faces.SYNTHETIC, image_size=None, validation_people=2, test_people=3)


@pytest.fixture(scope="module")
def source():
    return faces.open_faces(CONFIG)


def with_arrays(monkeypatch, **changed):
    arrays = faces.synthetic() | changed
    monkeypatch.setattr(faces, "synthetic", lambda: arrays)


def test_a_folder_of_people_and_an_archive_with_another_field_open_alike(tmp_path, source, monkeypatch):
    arrays = faces.synthetic()
    for number, (image, who) in enumerate(zip(arrays["image"], arrays["label"], strict=True)):
        (tmp_path / f"person {who}").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / f"person {who}" / f"{number}.png")
    np.savez(tmp_path / "faces.npz", image=arrays["image"][..., 0], subject=arrays["label"].astype(np.uint8) + 7)
    options = {"image_size": 12, "validation_people": 2, "test_people": 3}
    folder = faces.open_faces(faces.FaceConfig(source=f"folder:{tmp_path}", **options))
    archive = faces.open_faces(faces.FaceConfig(source=f"npz:{tmp_path}/faces.npz", label_field="subject", **options))
    for one, channels in ((folder, 3), (archive, 1)):
        assert (one.num_classes, one.size, one.image_shape) == (9, 36, (12, 12, channels))
        np.testing.assert_array_equal(np.bincount(data.labels_of(one)), 4)
    with pytest.raises(ValueError, match=r"has no whole numbers `label` .* but .*subject.*: name .* by --label-field"):
        faces.open_faces(faces.FaceConfig(source=f"npz:{tmp_path}/faces.npz", **options))


def test_pictures_that_are_read_twice_are_refused():
    with pytest.raises(ValueError, match="--parts has 'train' twice: give each once"):
        faces.FaceConfig(parts=("train", "train")).check()


def test_too_few_people_are_refused_and_single_pictures_said(monkeypatch, caplog):
    with pytest.raises(ValueError, match=r"has 9 people, but 2 of --validation-people, 6 of --test-people .* make 10"):
        faces.open_faces(faces.FaceConfig(source=faces.SYNTHETIC, image_size=None, validation_people=2, test_people=6))
    labels = np.repeat(np.arange(9), 4)
    labels[:4] = [0, 9, 10, 11]
    with_arrays(monkeypatch, label=labels)
    assert faces.open_faces(CONFIG).num_classes == 12
    assert "4 of 12 people have one picture" in caplog.text
    with_arrays(monkeypatch, label=np.arange(36))
    with pytest.raises(ValueError, match="none of the 2 people of --validation-people has two pictures"):
        faces.divide(CONFIG, faces.open_faces(CONFIG), 0)


def test_nobody_is_in_two_groups_and_each_division_is_another(source):
    def shown(number):
        groups = faces.divide(CONFIG, source, number)
        return [{x.tobytes() for x in group.read(np.arange(group.size))["image"]} for group in groups]

    first, second = shown(0), shown(1)
    assert [len(group) for group in first] == [16, 8, 12]
    assert len(set.union(*first)) == 36
    assert first == shown(0)
    assert first[2] != second[2]
    assert [group.num_classes for group in faces.divide(CONFIG, source, 0)] == [4, 2, 3]


def test_figures_take_their_threshold_from_validation_people(source):
    people, rng = faces.divide(CONFIG, source, 0), np.random.default_rng(0)
    validation, test = (
        np.eye(4)[data.labels_of(group)] + 0.6 * rng.standard_normal((group.size, 4)) for group in people[1:]
    )
    found = faces.figures(CONFIG, people, validation, test)
    pairs, chosen = (
        metrics.pairs_of(x, data.labels_of(group))
        for x, group in ((test, people.test), (validation, people.validation))
    )
    false, true, thresholds = roc_curve(chosen.same, chosen.scores, drop_intermediate=False)
    accepted = pairs.scores >= thresholds[np.argmax(true - false)]
    assert set(found) == set(CONFIG.columns)
    assert found["auc"] == pytest.approx(roc_auc_score(pairs.same, pairs.scores))
    assert found["accuracy"] == pytest.approx((accepted[pairs.same].mean() + 1 - accepted[~pairs.same].mean()) / 2)


def test_floors_project_pictures_by_what_training_people_vary_in(source):
    people = faces.divide(CONFIG, source, 0)
    found = faces.floors(people)
    assert list(found) == ["pixels", "eigenfaces", "eigenfaces, LDA"]
    for floor in found.values():
        assert (len(floor.validation), len(floor.test)) == (8, 12)
    assert found["eigenfaces"].test.shape[1] <= 15
    pixels = faces.figures(CONFIG, people, *found["pixels"])
    assert pixels["auc"] > 0.9


def test_a_loss_on_directions_ignores_lengths():
    rng = np.random.default_rng(0)
    s, t = rng.standard_normal((2, 5, 4)).astype(np.float32)
    loss = jax.jit(faces.normalised(losses.rkd_distance))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t)]
    expected = jax.jit(losses.rkd_distance)(*unit)
    np.testing.assert_allclose(loss(s, t), expected, rtol=1e-5)
    np.testing.assert_allclose(loss(s * rng.uniform(1, 3, (5, 1)).astype(np.float32), t), expected, rtol=1e-5)
