"""Fingerprints see what changes the targets, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import augment
from jaxkd.cache.fingerprints import differences, fingerprint_variables, probe, probe_ids
from jaxkd.data import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(100) % 4
SOURCE = open_source({"image": IMAGES, "label": LABELS}, "train[10:]")


def prepare(*moves, seed=0, mean=0.5, mix=None):
    stages = augment.compose(augment.to_float(), *moves, augment.normalize(mean, 0.25))
    return augment.augment_batch(stages, seed=seed, mix=mix)


@pytest.fixture(scope="module")
def cropped():
    return seen(prepare(augment.random_crop(1)))


def seen(prepared, source=SOURCE, **options):
    return probe(source, prepared, probe_ids(SOURCE), **options)


def test_examples_are_spread_over_the_source():
    ids = probe_ids(SOURCE)
    assert (len(ids), ids[0], ids[-1], len(set(ids.tolist()))) == (32, 10, 99, 32)
    np.testing.assert_array_equal(probe_ids(open_source({"image": IMAGES[:3], "label": LABELS[:3]})), [0, 1, 2])


def test_the_same_preparation_looks_the_same(cropped):
    assert not differences(cropped, seen(prepare(augment.random_crop(1))))
    assert not differences(cropped, seen(prepare(augment.random_crop(1)), backwards=True))
    # What another device's rounding may change.
    assert not differences(seen(prepare()), seen(prepare(mean=0.5 + 1e-6)))


@pytest.mark.parametrize(
    "other",
    [
        prepare(augment.flip()),
        prepare(augment.random_crop(1), seed=1),
        prepare(augment.random_crop(2)),
        prepare(augment.random_crop(1), mean=0.501),
        prepare(),
    ],
)
def test_another_preparation_looks_different(other, cropped):
    assert set(differences(cropped, seen(other))) == {"image"}


def test_a_preparation_without_views_looks_different_in_the_second(cropped):
    crop = prepare(augment.random_crop(1))
    ((field, (view, _)),) = differences(cropped, seen(lambda batch: crop({**batch, "view": 0 * batch["view"]}))).items()
    assert (field, view) == ("image", 1)


def test_other_data_look_different_at_their_example():
    images = IMAGES.copy()
    images[probe_ids(SOURCE)[5], 0, 0, 0] ^= 128
    changed = open_source({"image": images, "label": LABELS}, "train[10:]")
    assert differences(seen(prepare()), seen(prepare(), changed)) == {"image": (0, 5)}


def test_a_lost_field_is_a_difference_and_a_new_one_is_not():
    numbers = seen(prepare())
    assert differences(numbers, {"image": numbers["image"]}) == {"label": (0, 0)}
    assert not differences({"image": numbers["image"]}, numbers)
    assert set(differences(numbers, {**numbers, "image": np.nan * numbers["image"]})) == {"image"}


def test_mixing_shows_when_the_batch_is_turned_round():
    mixing = prepare(mix=augment.mixup(4))
    assert set(differences(seen(mixing), seen(mixing, backwards=True))) == {"image", "label"}


def test_fingerprint_sees_names_shapes_dtypes_and_bytes():
    tree = {"a": jnp.arange(6.0), "b": (jnp.ones((2, 3), jnp.bfloat16), jax.random.key(0)), "c": None}
    digest = fingerprint_variables(tree)
    assert len(digest) == 64
    assert digest == fingerprint_variables(jax.tree.map(lambda x: x, tree))
    assert digest == fingerprint_variables({**tree, "a": np.arange(12.0, dtype=np.float32)[::2] / 2}), (
        "layout is no matter"
    )
    others = [
        {**tree, "a": jnp.arange(6.0).at[5].add(1e-6)},
        {**tree, "a": jnp.arange(6.0).reshape(2, 3)},
        {**tree, "a": jnp.arange(6)},
        {"z": tree["a"], "b": tree["b"]},
        {"aa": tree["a"], "b": tree["b"], "c": None},  # whose arrays come in the same order
        {**tree, "b": (tree["b"][0], jax.random.key(1))},
    ]
    assert fingerprint_variables(np.zeros(3, np.int32)) != fingerprint_variables(np.zeros(3, np.float32))
    assert len({digest, *map(fingerprint_variables, others)}) == 1 + len(others)


def test_missing_labels_are_equal_and_other_nan_is_not():
    numbers = np.where(LABELS == 1, np.nan, LABELS)
    source = open_source({"image": IMAGES, "label": numbers}, "train[10:]", ignore=float("nan"))
    found = seen(dict, source)
    assert not differences(found, seen(dict, source, backwards=True))
    other = open_source({"image": IMAGES, "label": np.where(LABELS == 2, np.nan, LABELS)}, "train[10:]", ignore=np.nan)
    assert set(differences(found, seen(dict, other))) == {"label"}
    broken = seen(lambda batch: {**batch, "label": jnp.full(batch["label"].shape, jnp.nan)}, SOURCE)
    assert set(differences(broken, broken)) == {"label"}
