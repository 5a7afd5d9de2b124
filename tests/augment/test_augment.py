"""Augmentations: what they keep, what they change, and that (seed, id, view) alone decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from jaxkd import augment
from jaxkd.augment import pictures

H, W, K = 12, 10, 5

FLOAT_STAGES = {
    "random_crop": augment.random_crop(2),
    "flip": augment.flip(),
    "cutout": augment.cutout(4),
    "color_jitter": augment.color_jitter(0.4, 0.4, 0.4),
    "rand_augment": augment.rand_augment(2, 9.0),
}


def images(batch, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, H, W, channels)).astype(np.uint8)


def make_batch(size=16, channels=3, first_id=100):
    return {
        "image": images(size, channels).astype(np.float32) / 255,
        "label": np.arange(size, dtype=np.int32) % K,
        "id": np.arange(first_id, first_id + size, dtype=np.int32),
        "view": np.arange(size, dtype=np.int32) % 3,
        "weight": np.linspace(0, 1, size).astype(np.float32),
    }


def example(channels=3):
    return {k: v[0] for k, v in make_batch(1, channels).items()}


def keys(n):
    return jax.vmap(jax.random.key)(jnp.arange(n))


def over_keys(augmentation, one, n=400):
    """The images that n keys make of one example."""
    return np.asarray(jax.jit(jax.vmap(lambda key: augmentation(key, one)["image"]))(keys(n)))


@pytest.mark.parametrize("stage", FLOAT_STAGES.values(), ids=FLOAT_STAGES.keys())
@pytest.mark.parametrize("channels", [1, 3])
def test_stages_keep_shape_dtype_range_and_other_fields(stage, channels):
    one = example(channels)
    made = jax.jit(jax.vmap(stage, in_axes=(0, None)))(keys(50), one)
    image = np.asarray(made.pop("image"))
    assert image.shape == (50, H, W, channels)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert any(not np.array_equal(image[0], other) for other in image[1:])  # the key matters
    assert set(made) == {"label", "id", "view", "weight"}
    for field, value in made.items():
        np.testing.assert_array_equal(value[0], one[field])
        assert value.dtype == one[field].dtype
    np.testing.assert_array_equal(one["image"], example(channels)["image"])  # the input is left alone


@pytest.mark.parametrize("stage", [augment.random_crop(2), augment.flip(), augment.cutout(4)])
def test_geometric_stages_commute_with_to_float(stage):
    raw, key = {"image": images(1)[0]}, jax.random.key(3)

    @jax.jit
    def orders(raw):
        moved = stage(key, raw)
        return moved, augment.to_float()(None, moved), stage(key, augment.to_float()(None, raw))

    moved, early, late = (one["image"] for one in orders(raw))
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(early, late)


def test_to_float_leaves_floats_as_they_are():
    np.testing.assert_array_equal(augment.to_float()(None, EXAMPLE)["image"], EXAMPLE["image"])


def test_to_float_and_normalize_undo():
    raw = images(1)[0]
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    stage = augment.compose(augment.to_float(), augment.normalize(mean, std))
    out = np.asarray(jax.jit(stage)(jax.random.key(0), {"image": raw})["image"])
    assert out.dtype == np.float32
    np.testing.assert_allclose(out * std + mean, raw / 255, atol=1e-6)
    grey = augment.normalize(0.5, 0.25)(None, {"image": np.full((2, 2, 3), 0.75, np.float32)})["image"]
    np.testing.assert_allclose(grey, 1.0)


def test_random_crop_makes_exactly_the_windows_of_the_padded_image():
    one, p = example(1), 2
    padded = np.pad(one["image"], ((p, p), (p, p), (0, 0)))
    windows = {padded[i : i + H, j : j + W].tobytes() for i in range(2 * p + 1) for j in range(2 * p + 1)}
    assert {image.tobytes() for image in over_keys(augment.random_crop(p), one)} == windows
    np.testing.assert_array_equal(augment.random_crop(0)(jax.random.key(0), one)["image"], one["image"])


def test_flip_mirrors_half_of_the_time():
    one = example()
    made = over_keys(augment.flip(), one)
    mirrored = np.array([np.array_equal(image, one["image"][:, ::-1]) for image in made])
    kept = np.array([np.array_equal(image, one["image"]) for image in made])
    assert np.all(mirrored ^ kept)
    assert 150 < mirrored.sum() < 250  # five standard deviations


def test_cutout_removes_one_square_that_the_border_may_cut():
    one = {"image": np.ones((H, W, 3), np.float32)}
    size, centers = 4, set()
    for image in over_keys(augment.cutout(size), one, 600):
        hole = image[..., 0] == 0
        np.testing.assert_array_equal(image, np.repeat(1.0 - hole[..., None], 3, -1))
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= size
        assert 2 <= len(columns) <= size
        centers.add((rows[0], rows[-1], columns[0], columns[-1]))
    assert len(centers) > 0.9 * H * W  # nearly every pixel was a centre


def test_color_jitter_works_on_the_right_statistics():
    one = {"image": 0.25 + 0.5 * example()["image"]}
    grey = one["image"] @ np.array([0.299, 0.587, 0.114], np.float32)
    for image in over_keys(augment.color_jitter(brightness=0.2), one, 20):
        ratio = image / one["image"]
        np.testing.assert_allclose(ratio, ratio[0, 0, 0], rtol=1e-4)
        assert 0.8 <= ratio[0, 0, 0] <= 1.2
    for image in over_keys(augment.color_jitter(contrast=0.2), one, 20):
        ratio = (image - grey.mean()) / (one["image"] - grey.mean())
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=2e-2)
    for image in over_keys(augment.color_jitter(saturation=0.2), one, 20):
        np.testing.assert_allclose(image @ np.array([0.299, 0.587, 0.114], np.float32), grey, atol=1e-5)
    black = over_keys(augment.color_jitter(brightness=5.0), one, 20)
    assert black.max() == 1.0  # clipped


def test_identities():
    one, mono = example(3), example(1)
    np.testing.assert_array_equal(over_keys(augment.color_jitter(), one, 5), np.stack([one["image"]] * 5))
    np.testing.assert_array_equal(
        over_keys(augment.color_jitter(saturation=0.9), mono, 5), np.stack([mono["image"]] * 5)
    )
    np.testing.assert_array_equal(augment.compose()(jax.random.key(0), one)["image"], one["image"])
    np.testing.assert_allclose(
        over_keys(augment.rand_augment(1, 0.0), one, 180), np.stack([one["image"]] * 180), atol=1e-6
    )


def test_rand_augment_draws_all_of_its_operations():
    one = example()
    distinct = {image.tobytes() for image in over_keys(augment.rand_augment(1, 9.0), one, 400)}
    # Eleven operations; identity, posterise and solarise have no sign, so 3 + 8 * 2 outcomes.
    assert len(distinct) == 19
    assert any(np.array_equal(one["image"].tobytes(), image) for image in distinct)


def test_posterize_keeps_the_upper_bits_whatever_the_rounding():
    levels, posterize = np.arange(256), jax.jit(pictures._posterize)
    exact = (levels / 255).astype(np.float32)
    for image in (exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1))):
        out = posterize(image[:, None, None], np.float32(-1))
        np.testing.assert_allclose(out[:, 0, 0] * 255, levels // 16 * 16, atol=1e-3)


def test_rand_augment_warps_about_the_centre():
    image = example()["image"][:10]  # square
    affine = jax.jit(pictures._affine)
    np.testing.assert_allclose(
        affine(image, np.array([[0, -1, 0], [1, 0, 0]], np.float32)), np.rot90(image, -1), atol=1e-6
    )
    shifted = np.asarray(affine(image, np.array([[1, 0, 0.2], [0, 1, 0]], np.float32)))
    np.testing.assert_allclose(shifted[:8], image[2:], atol=1e-6)
    np.testing.assert_allclose(shifted[8:], 0, atol=1e-6)


def test_compose_folds_the_stage_number_into_the_key():
    one, key = example(), jax.random.key(7)
    crop, cut = augment.random_crop(2), augment.cutout(3)

    @jax.jit
    def both(one):
        by_hand = cut(jax.random.fold_in(key, 1), crop(jax.random.fold_in(key, 0), one))
        return augment.compose(crop, cut)(key, one)["image"], by_hand["image"]

    np.testing.assert_array_equal(*both(one))


STAGE = augment.compose(augment.random_crop(2), augment.flip(), augment.cutout(3))
traced = jax.jit(lambda seed, batch: augment.augment_batch(STAGE, seed=seed)(batch))


def test_batches_depend_on_seed_id_and_view_alone():
    batch = make_batch(16)
    whole = jax.jit(augment.augment_batch(STAGE, seed=5))(batch)
    order = np.random.default_rng(1).permutation(16)[:6]
    part = traced(5, {k: v[order] for k, v in batch.items()})
    np.testing.assert_array_equal(part["image"], np.asarray(whole["image"])[order])
    np.testing.assert_array_equal(part["weight"], batch["weight"][order])
    i = 3
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), batch["id"][i]), batch["view"][i])
    by_hand = jax.jit(STAGE)(key, {k: v[i] for k, v in batch.items()})
    np.testing.assert_array_equal(whole["image"][i], by_hand["image"])


@pytest.mark.parametrize("change", ["seed", "id", "view"])
def test_each_of_seed_id_and_view_matters(change):
    batch = make_batch(16)
    before = traced(5, batch)["image"]
    other = batch if change == "seed" else {**batch, change: batch[change] + 1000}
    after = traced(6 if change == "seed" else 5, other)["image"]
    same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(same) < 4


@pytest.mark.parametrize(
    ("stage", "mix"),
    [
        (augment.compose(augment.random_crop(2), augment.color_jitter(0.4, 0.4, 0.4)), augment.mixup(K, alpha=0.5)),
        (augment.compose(augment.rand_augment(1), augment.cutout(3)), None),
    ],
    ids=["crop-jitter-mixup", "rand_augment-cutout"],
)
def test_sharded_over_eight_devices_equals_unsharded(stage, mix):
    batch = make_batch(16)
    step = jax.jit(augment.augment_batch(stage, seed=5, mix=mix))
    alone = step(batch)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    sharded = step(jax.device_put(batch, sharding))
    assert len(sharded["image"].sharding.device_set) == 8
    for field in alone:
        np.testing.assert_allclose(alone[field], sharded[field], atol=1e-6, err_msg=field)


def test_mixup_blends_image_and_label_with_one_share():
    batch = make_batch(8)
    out = jax.jit(augment.augment_batch(augment.compose(), seed=0, mix=augment.mixup(K, alpha=1.0)))(batch)
    label, one_hot = np.asarray(out["label"]), np.eye(K)[np.arange(8) % K]
    assert label.shape == (8, K)
    np.testing.assert_allclose(label.sum(-1), 1, atol=1e-6)
    share = label[np.arange(8), np.arange(8) % K]
    partner = np.roll(np.arange(8), -1)
    blend = share[:, None, None, None] * batch["image"]
    blend = blend + (1 - share)[:, None, None, None] * batch["image"][partner]
    np.testing.assert_allclose(out["image"], blend, atol=1e-5)
    np.testing.assert_allclose(label, share[:, None] * one_hot + (1 - share)[:, None] * one_hot[partner], atol=1e-6)
    assert len(set(share.tolist())) == 8  # a share for each example


def test_mixup_share_is_beta_and_labels_may_be_soft():
    image = np.ones((1, 1, 1), np.float32)
    mix = augment.mixup(2, alpha=0.4)
    one = {"image": image, "label": np.array([1, 0], np.float32)}
    zero = {"image": 0 * image, "label": np.array([0, 1], np.float32)}
    share = np.asarray(jax.jit(jax.vmap(lambda key: mix(key, one, zero)["label"][0]))(keys(4000)))
    assert abs(share.mean() - 0.5) < 0.03
    assert abs(share.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01


def test_cutmix_replaces_one_box_and_labels_follow_its_area():
    mix = augment.cutmix(2)
    zero = {"image": np.zeros((H, W, 1), np.float32), "label": 0}
    one = {"image": np.ones((H, W, 1), np.float32), "label": 1}
    out = jax.jit(jax.vmap(lambda key: mix(key, zero, one)))(keys(1000))
    image, label = np.asarray(out["image"])[..., 0], np.asarray(out["label"])
    np.testing.assert_allclose(label[:, 1], image.mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(label.sum(1), 1, atol=1e-6)
    for pixels in image:
        assert pixels.sum() == pixels.any(0).sum() * pixels.any(1).sum()
    # The border takes part of most boxes, so that less than the half which Beta(1, 1) means is replaced.
    assert 0.2 < label[:, 1].mean() < 0.5


def test_mix_draws_apart_from_the_augmentation():
    """Of the whole, and of each stage that is composed."""

    def draw(name):
        return lambda key, one: {**one, name: jax.random.uniform(key)}

    def mix(key, one, partner):
        return {**one, "drawn_by_mix": jax.random.uniform(key), "partner": partner["id"]}

    def stage(key, one):
        return augment.compose(*map(draw, "abc"))(key, draw("whole")(key, one))

    out = jax.jit(augment.augment_batch(stage, seed=0, mix=mix))(make_batch(4))
    for name in ("whole", *"abc"):
        assert not np.any(np.isclose(out[name], out["drawn_by_mix"])), name
    np.testing.assert_array_equal(out["partner"], np.roll(out["id"], -1))


BATCH = make_batch(4)
KEY = jax.random.key(0)
EXAMPLE = example()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: augment.flip()(KEY, {"image": BATCH["image"]}), r"\(4, 12, 10, 3\).*augment_batch"),
        (lambda: augment.flip()(KEY, {"tokens": 0}), "no field 'image', only"),
        (lambda: augment.to_float()(None, {"image": np.zeros((2, 2, 1), np.int32)}), "int32.*uint8"),
        (lambda: augment.normalize(0, 1)(None, {"image": images(1)[0]}), "uint8.*to_float"),
        (lambda: augment.normalize([0, 0], 1)(None, EXAMPLE), "2 and 1 entries.*3 channels"),
        (lambda: augment.normalize(0, [1, 0, 1]), "positive"),
        (lambda: jax.eval_shape(augment.color_jitter(0.1), KEY, {"image": np.ones((2, 2, 4), np.float32)}), "1 or 3"),
        (lambda: augment.color_jitter(-0.1), "negative"),
        (lambda: augment.random_crop(-1), "-1"),
        (lambda: augment.cutout(0), "at least 1"),
        (lambda: augment.rand_augment(2, 11), "0 to 10"),
        (lambda: augment.mixup(K, alpha=0.0), "alpha"),
        (lambda: augment.mixup(3)(KEY, {**EXAMPLE, "label": np.ones(4)}, EXAMPLE), r"\(4,\).*3 prob"),
        (lambda: augment.cutmix(3)(KEY, {"image": EXAMPLE["image"]}, EXAMPLE), "no field 'label'"),
        (lambda: augment.augment_batch(STAGE, seed=0)({"image": BATCH["image"]}), "no field 'id'"),
        (lambda: augment.augment_batch(STAGE, seed=0)({**BATCH, "image": BATCH["image"][0]}), r"expected \[B, H, W"),
        (lambda: augment.augment_batch(STAGE, seed=0)({**BATCH, "id": np.arange(3)}), r"\(3,\).*4 images"),
        (lambda: augment.augment_batch(STAGE, seed=0)({**BATCH, "view": np.ones(4)}), "view.*float64.*integer"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_random_resized_crop_is_pillows_resizing_of_a_window():
    shape, size, area, ratio = np.array([20, 30]), 8, (0.1, 0.6), (0.5, 2.0)
    picture = np.random.default_rng(0).uniform(0, 1, (*shape, 1)).astype(np.float32)
    crop = augment.random_resized_crop(size, area=area, ratio=ratio)
    keys = jax.random.split(jax.random.key(0), 60)
    found = np.asarray(jax.jit(jax.vmap(lambda key: crop(key, {"image": picture})["image"]))(keys))

    def draw(key):
        of_area, of_ratio, of_place = jax.random.split(key, 3)
        share = jax.random.uniform(of_area, (), minval=area[0], maxval=area[1])
        log = jax.random.uniform(of_ratio, (), minval=np.log(ratio[0]), maxval=np.log(ratio[1]))
        return share, jnp.exp(log), jax.random.uniform(of_place, (2,))

    for image, share, r, place in zip(found, *map(np.asarray, jax.jit(jax.vmap(draw))(keys)), strict=True):
        height, width = window = np.minimum(np.sqrt(share * shape.prod() * np.array([1 / r, r])), shape)
        top, left = place * (shape - window)
        box = (left, top, min(left + width, shape[1]), min(top + height, shape[0]))
        expected = Image.fromarray(picture[..., 0]).resize((size, size), Image.Resampling.BILINEAR, box=box)
        np.testing.assert_allclose(image[..., 0], np.asarray(expected), atol=1e-4)


@pytest.mark.parametrize("stored", [(24, 24), (20, 30)])
def test_windows_of_a_stretched_image_have_the_shape_that_they_have_in_the_picture(stored):
    height, width, size = 16, 40, 12
    rows, columns = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    picture = np.stack([rows, columns], axis=-1).astype(np.float32)
    stretched = jax.image.resize(picture, (*stored, 2), "linear")
    crop = augment.random_resized_crop(size, area=(0.05, 0.2), ratio=(1.0, 1.0))
    keys = jax.random.split(jax.random.key(0), 40)

    def both(key):
        of_picture = crop(key, {"image": picture})
        of_stretched = crop(key, {"image": stretched, "aspect": jnp.float32(width / height)})
        assert set(of_stretched) == {"image"}, "of a square there is nothing more to know"
        return of_picture["image"], of_stretched["image"], crop(key, {"image": stretched})["image"]

    true, found, unaware = map(np.asarray, jax.jit(jax.vmap(both))(keys))
    # A window's slopes say how high and how wide it is, wherever it lies.
    slopes = [np.stack([np.ptp(x[..., 0], (1, 2)), np.ptp(x[..., 1], (1, 2))]) for x in (true, found, unaware)]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=0.1)
    assert np.median(np.abs(slopes[2] / slopes[0] - 1)) > 0.2
    np.testing.assert_allclose(found, true, atol=0.06)


def test_crops_of_everything_and_of_the_middle():
    image = {"image": jnp.asarray(np.random.default_rng(0).uniform(0, 1, (6, 6, 2)).astype(np.float32))}
    same = augment.random_resized_crop(6, area=(1.0, 1.0), ratio=(1.0, 1.0))(jax.random.key(0), image)
    np.testing.assert_allclose(same["image"], image["image"], atol=1e-6)
    middle = augment.center_crop(3)(jax.random.key(0), image)
    np.testing.assert_array_equal(middle["image"], image["image"][1:4, 1:4])
    with pytest.raises(ValueError, match="too small to cut out 7 x 7"):
        augment.center_crop(7)(jax.random.key(0), image)
    for options in ({"size": 0}, {"size": 4, "area": (0.0, 1.0)}, {"size": 4, "ratio": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="give a positive size"):
            augment.random_resized_crop(**options)
    with pytest.raises(ValueError, match="size is 0"):
        augment.center_crop(0)


def test_boxes_follow_their_pictures_when_they_are_mirrored():
    marked = np.zeros((6, 8, 1), np.uint8)
    marked[1:3, 2:7] = 1
    one = {"image": marked, "boxes": np.array([[2, 1, 7, 3], [0, 0, 0, 0]], np.float32), "label": np.array([0, -1])}
    made = jax.jit(jax.vmap(augment.flip_with_boxes(), in_axes=(0, None)))(keys(40), one)
    places = set()
    for image, boxes in zip(np.asarray(made["image"]), np.asarray(made["boxes"]), strict=True):
        x1, y1, x2, y2 = boxes[0].astype(int)
        expected = np.zeros_like(image)
        expected[y1:y2, x1:x2] = 1
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(boxes[1], 0, "padding stays")
        places.add((x1, y1))
    assert places == {(2, 1), (1, 1), (2, 3), (1, 3)}
    across = jax.vmap(augment.flip_with_boxes(vertical=False), in_axes=(0, None))(keys(20), one)
    assert set(np.asarray(across["boxes"])[:, 0, 1]) == {1}
    with pytest.raises(ValueError, match="example has no boxes with labels"):
        augment.flip_with_boxes()(keys(1)[0], {"image": marked})


def test_two_views_are_two_draws_of_one_preparation():
    def prepare(batch):
        return {**batch, "image": batch["image"] + batch["view"][:, None]}

    batch = {"image": np.zeros((2, 3)), "view": np.array([1, 2], np.int32)}
    found = augment.two_views(prepare, teacher_image="image")(batch)
    np.testing.assert_array_equal(found["image"], prepare(batch)["image"])
    assert (found["teacher_image"] > 2**29).all()
    np.testing.assert_array_equal(found["view"], batch["view"])
    with pytest.raises(ValueError, match="no field 'view'"):
        augment.two_views(prepare, teacher_image="image")({"image": batch["image"]})
    with pytest.raises(ValueError, match="no field 'sound'"):
        augment.two_views(prepare, teacher_sound="sound")(batch)
