"""Images that the flags opened are checked before anything is trained; floating ones are prepared as uint8 is."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import augment, data, models
from jaxkd.experiment import images, methods, transfer
from jaxkd.experiment.networks import LARGE_IMAGES, SMALL_IMAGES, make_network, read_teacher
from jaxkd.files import prepare_file

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 1), dtype=np.uint8)


def source(image=PIXELS, classes=3, **more):
    return data.open_source({"image": image, "label": np.arange(len(image)) % classes, **more})


@pytest.mark.parametrize(
    ("flags", "given", "message"),
    [
        ({"cache": 4}, [{}], "--cache is 4 but .* has 3 classes"),
        ({"crop": 5}, [{}], "--crop is 5 but images are of 6 x 5 pixels: give less than 5"),
        ({}, [{"classes": 1}], "has one class only"),
        ({}, [{}, {"classes": 4}], "has 4 classes but .*, which networks are trained on, has 3"),
        ({}, [{}, {"image": PIXELS[:, :4]}], r"images are \(4, 5, 1\) in .* but \(6, 5, 1\) in .*: give --image-size"),
    ],
)
def test_images_that_do_not_fit_are_refused(flags, given, message):
    images.check_images(SimpleNamespace(cache="full", crop=4), source(), source(classes=2))
    with pytest.raises(ValueError, match=message):
        images.check_images(SimpleNamespace(**flags), *(source(**one) for one in given))


def test_splits_to_evaluate_on_share_no_row_with_the_training_split():
    arrays = {"image": PIXELS, "label": np.arange(len(PIXELS)) % 3}
    rows = {split: data.open_source(arrays, split) for split in ("train", "train[:8]", "train[8:]", "train[6:]")}
    images.check_held_out(rows["train[:8]"], rows["train[8:]"], rows["train[8:]"])
    for training, other in (("train", "train"), ("train", "train[8:]"), ("train[:8]", "train[6:]")):
        with pytest.raises(ValueError, match=r"--train-split overlaps with a split to evaluate on: .* share .* rows"):
            images.check_held_out(rows[training], rows[other])


@pytest.mark.parametrize("own", [True, False], ids=["own statistics", "given ones"])
def test_floating_images_are_prepared_as_uint8_is(own):
    statistics = None if own else ([0.4], [0.2])
    batch = {"label": np.zeros(12, np.int32), "id": np.arange(12), "view": np.zeros(12, np.int32)}

    def outcome(pixels):
        made = images.prepared(source(pixels), [augment.random_crop(1)], seed=0, statistics=statistics)
        return [prepare({**batch, "image": jnp.asarray(pixels)})["image"] for prepare in made]

    expected = outcome(PIXELS)
    for scaled in (PIXELS / np.float32(255), PIXELS.astype(np.float32)):
        for one, other in zip(outcome(scaled), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=3e-5)


def test_floats_of_another_range_need_statistics_of_their_own():
    standardised = (PIXELS.astype(np.float32) - 100) / 50
    images.prepared(source(standardised), [], seed=0)
    with pytest.raises(ValueError, match=r"are floats from -2 to 3.*, which this recipe cannot normalise"):
        images.prepared(source(standardised), [], seed=0, statistics=([0.4], [0.2]))


def example(*shape):
    batch = {"label": jnp.zeros(shape[0], jnp.int32), "id": jnp.arange(shape[0])}
    return batch | {"image": jnp.zeros(shape)}


def test_a_network_that_cannot_take_the_images_is_named_with_its_flag():
    images.check_network("--teacher", "tiny", make_network("tiny", 3), example(2, 8, 8, 1))
    shrinks = models.mlp(3)._replace(apply=lambda v, b, k, t: (b["image"][:, 9:], {}))
    with pytest.raises(
        ValueError, match=r"--teacher x reduces images of \(8, 8, 1\) to nothing: give a larger --image"
    ):
        images.check_network("--teacher", "x", shrinks, example(2, 8, 8, 1))
    breaks = models.mlp(3)._replace(apply=lambda v, b, k, t: (b["image"] @ jnp.zeros((3, 3)), {}))
    with pytest.raises(ValueError, match=r"--student x cannot take images of \(8, 8, 1\) \(TypeError"):
        images.check_network("--student", "x", breaks, example(2, 8, 8, 1))


@pytest.mark.parametrize(
    ("teacher", "method", "reason"),
    [
        ("convnet", "fsp", "it needs the same channels"),
        ("mlp", "at", "there are 0 layers"),
        ("mlp", "fitnet", "there are too few stages"),
        ("convnet", "ofd", "there is no feature 'stage1_preact'"),
        ("mlp", "kd", ""),
        ("mlp", "crd", ""),
        ("convnet", "ft", ""),
    ],
)
def test_methods_that_do_not_fit_are_refused_on_shapes_alone(teacher, method, reason):
    networks = make_network(teacher, 3), make_network("tiny", 3)
    facts = {"examples": 12, "steps": 10, "labels": lambda: np.arange(12) % 3}
    given = ("--methods", [method], (teacher, "tiny"), *networks, example(4, 8, 8, 1))
    if not reason:
        methods.check_methods(*given, **facts)
        return
    with pytest.raises(
        ValueError, match=rf"--methods has '{method}', which does not fit {teacher} -> tiny \(.*{reason}"
    ):
        methods.check_methods(*given, **facts)


def test_a_file_of_weights_needs_a_network_with_published_ones(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.zeros(3, np.float32))
    config = SimpleNamespace(teacher_file=str(tmp_path / "w.npz"), teacher="tiny")
    for teacher, message in (
        ("tiny", "no published weights of tiny"),
        ("resnet8", "is not of --teacher resnet8: the tensors"),
    ):
        config.teacher, config.networks = teacher, SMALL_IMAGES
        with pytest.raises(ValueError, match=message):
            read_teacher(config, make_network(teacher, 3), example(2, 8, 8, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"per_class": 5}, "--per-class is 5 but a class of .* has 4 examples: give at most 4"),
        ({"source_classes": 4}, "--source-classes is 4 but .* has 3 classes"),
        ({"source_classes": 1}, "has one class only"),
        ({"target_classes": 9}, "--target-classes is 9 but .* has 3 classes"),
    ],
)
def test_classes_and_labels_of_a_transfer(given, message, tmp_path):
    np.savez(tmp_path / "t.npz", image=PIXELS, label=np.arange(12) % 3)
    spec, splits = f"npz:{tmp_path / 't.npz'}", ("train",) * 4
    with pytest.raises(ValueError, match=message):
        transfer.open_source_and_target(spec, spec, splits, **{"per_class": 2, **given})


def test_a_teacher_without_stages_cannot_be_thawed():
    config = SimpleNamespace(students=(), teacher="mlp", student="tiny")
    networks = make_network("mlp", 3), make_network("tiny", 3)
    with pytest.raises(ValueError, match="--teacher mlp cannot be thawed stage by stage"):
        transfer.check_kinds(config, {}, *networks, example(2, 8, 8, 1))


def test_networks_without_batch_norm_are_made_by_name_too():
    shapes = images.check_network("--student", "vit", make_network("vit_b_16", 3, LARGE_IMAGES), example(2, 32, 32, 3))
    assert shapes.params["head"]["kernel"].shape == (768, 3)


def test_a_place_that_cannot_hold_a_file_is_known_at_once(tmp_path):
    prepare_file(tmp_path / "a" / "b.json")
    assert (tmp_path / "a").is_dir()
    for path, reason in ((tmp_path, "it is a folder"), (tmp_path / "file" / "b.json", "exists")):
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=f"^cannot write {path} .*{reason}"):
            prepare_file(path)
