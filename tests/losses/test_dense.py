"""Dense losses against float64 twins, with masks, padding and odd sizes."""

import jax
import numpy as np
import pytest
from losses.programs import compiled, differentiated, run

from jaxkd.losses import dense, logits


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def in_float64(loss, *arrays, **options):
    with jax.enable_x64(True):
        return run(loss, *arrays, **options)


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def numpy_kl(t, s, temperature):
    p, q = softmax(t / temperature), softmax(s / temperature)
    return temperature**2 * np.sum(p * np.log(p / q), axis=-1)


def make_context(width, seed=0, hidden=2):
    shapes = ((width,), (), (width, hidden), (hidden,), (hidden,), (hidden,), (hidden, width), (width,))
    return dense.Context(*(draw(shape, seed + i) for i, shape in enumerate(shapes)))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_pixel_kd_equals_its_numpy_twin_with_and_without_a_mask(temperature):
    s, t = draw((2, 3, 4, 5), 0), draw((2, 3, 4, 5), 1)
    kl = numpy_kl(t, s, temperature)
    value = in_float64(dense.pixel_kd, s, t, temperature=temperature)
    np.testing.assert_allclose(value, kl.mean((1, 2)), rtol=1e-12)
    mask = np.random.default_rng(2).random((2, 3, 4)) < 0.5
    expected = [kl[i][mask[i]].mean() for i in range(2)]
    value = in_float64(dense.pixel_kd, s, t, temperature=temperature, mask=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_what_the_mask_drops_reaches_neither_value_nor_gradient():
    s, t = (draw((2, 3, 4, 5), seed).astype(np.float32) for seed in (3, 4))
    mask = np.ones((2, 3, 4), bool)
    mask[0, 1], mask[1] = False, False
    broken = s.copy()
    broken[0, 1] = np.nan
    clean = dense.pixel_kd(s, t, mask=mask)
    assert clean[1] == 0
    # Weights, since a product with a mask of booleans is turned into a choice by the compiler.
    by_weight = differentiated(lambda s, t, weight: dense.pixel_kd(s, t, mask=weight), 0)
    for weight in (mask, mask.astype(np.float32)):
        value, (gradient,) = by_weight(broken, t, weight)
        np.testing.assert_allclose(value, np.sum(clean), rtol=1e-6)
        assert np.all(np.isfinite(gradient))
        np.testing.assert_array_equal(gradient[~mask], 0)


def test_pixel_kd_takes_a_temperature_for_each_example():
    s, t = draw((2, 3, 5), 5), draw((2, 3, 5), 6)
    value = in_float64(dense.pixel_kd, s, t, temperature=np.array([1.0, 4.0]))
    np.testing.assert_allclose(value, [numpy_kl(t[i], s[i], T).mean() for i, T in enumerate((1.0, 4.0))], rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_is_the_divergence_over_positions_of_each_channel(temperature):
    s, t = draw((2, 3, 4, 5), 7), draw((2, 3, 4, 5), 8)
    by_channel = (x.reshape(2, 12, 5).transpose(0, 2, 1) for x in (t, s))
    expected = numpy_kl(*by_channel, temperature).mean(1)
    np.testing.assert_allclose(in_float64(dense.cwd, s, t, temperature=temperature), expected, rtol=1e-12)


def test_cwd_forgets_a_constant_of_each_channel_and_where_positions_are():
    s, t = draw((2, 3, 4, 5), 9), draw((2, 3, 4, 5), 10)
    value = in_float64(dense.cwd, s, t)
    np.testing.assert_allclose(in_float64(dense.cwd, s + draw((2, 1, 1, 5), 11), t), value, rtol=1e-10)
    np.testing.assert_allclose(in_float64(dense.cwd, s[:, ::-1], t[:, ::-1]), value, rtol=1e-10)


def test_ld_is_kd_over_bins_and_its_code_divides_by_them():
    s, t = draw((3, 4, 9), 12), draw((3, 4, 9), 13)
    value = in_float64(dense.ld, s, t)
    np.testing.assert_allclose(value, in_float64(logits.kd, s, t, temperature=10.0), rtol=1e-12)
    np.testing.assert_allclose(in_float64(dense.ld, s, t, mean_over_bins=True), value / 9, rtol=1e-12)
    np.testing.assert_allclose(in_float64(dense.ld, s, t, temperature=2.0), numpy_kl(t, s, 2.0), rtol=1e-12)


def numpy_variation(x, classes, num_classes):
    """Cosine of each position with its class's mean, positions in a loop."""
    cosines = np.ones(classes.shape)
    for place in np.ndindex(classes.shape):
        if 0 <= classes[place] < num_classes:
            f, mean = x[place], x[place[0]][classes[place[0]] == classes[place]].mean(0)
            cosines[place] = f @ mean / np.linalg.norm(f) / np.linalg.norm(mean)
    return cosines


@pytest.mark.parametrize("label_size", [(3, 5), (7, 11), (2, 3)])
def test_ifvd_equals_its_numpy_twin_at_any_label_size(label_size):
    s, t = draw((2, 3, 5, 4), 14), draw((2, 3, 5, 6), 15)
    labels = np.random.default_rng(16).integers(0, 3, (2, *label_size))
    labels[0, 0, 0] = 255
    rows, columns = ([i * size // n for i in range(n)] for size, n in zip(label_size, (3, 5), strict=True))
    classes = labels[:, rows][:, :, columns]
    expected = np.square(numpy_variation(s, classes, 3) - numpy_variation(t, classes, 3)).mean((1, 2))
    np.testing.assert_allclose(in_float64(dense.ifvd, s, t, labels, num_classes=3), expected, rtol=1e-9)


def test_ifvd_is_zero_without_labelled_positions():
    s, t = draw((2, 3, 5, 4), 17), draw((2, 3, 5, 6), 18)
    value = in_float64(dense.ifvd, s, t, np.full((2, 3, 5), 255), num_classes=3)
    np.testing.assert_allclose(value, 0, atol=1e-30)


def test_fgd_masks_weigh_a_cell_by_its_smallest_box_and_the_background_evenly():
    boxes, shapes = np.array([[[2.0, 2, 28, 28], [12, 12, 18, 18]]]), {"map_shape": (6, 5), "image_shape": (60, 50)}
    fgd_masks = compiled(dense.fgd_masks, **shapes)
    foreground, background = fgd_masks(boxes, np.ones((1, 2), bool))
    expected = np.zeros((6, 5))
    expected[:4, :4] = 1 / 16
    expected[1:3, 1:3] = 1 / 4
    np.testing.assert_allclose(foreground[0], expected, rtol=1e-6)
    np.testing.assert_allclose(background[0], (expected == 0) / 14, rtol=1e-6)
    alone, _ = fgd_masks(boxes, np.array([[True, False]]))
    np.testing.assert_allclose(alone[0], np.where(expected > 0, 1 / 16, 0), rtol=1e-6)


def test_fgd_masks_where_boxes_fill_the_map_or_are_absent():
    box, shapes = np.array([[[0.0, 0.0, 9.0, 9.0]]]), {"map_shape": (3, 3), "image_shape": (9, 9)}
    fgd_masks = compiled(dense.fgd_masks, **shapes)
    foreground, background = fgd_masks(box, np.ones((1, 1), bool))
    np.testing.assert_allclose(foreground, np.full((1, 3, 3), 1 / 16), rtol=1e-6)
    np.testing.assert_array_equal(background, np.zeros((1, 3, 3)))
    foreground, background = fgd_masks(box[:, :0], np.ones((1, 0), bool))
    np.testing.assert_array_equal(foreground, np.zeros((1, 3, 3)))
    np.testing.assert_allclose(background, np.full((1, 3, 3), 1 / 9), rtol=1e-6)


def test_fgd_attention_sums_to_the_number_of_positions_and_channels():
    positions, channels = compiled(dense.fgd_attention)(draw((2, 3, 4, 5), 19).astype(np.float32), 0.5)
    np.testing.assert_allclose(np.sum(positions, axis=(1, 2)), [12, 12], rtol=1e-5)
    np.testing.assert_allclose(np.sum(channels, axis=1), [5, 5], rtol=1e-5)


def test_fgd_context_starts_as_the_identity_and_adds_the_same_to_every_position():
    x, block = draw((2, 3, 4, 5), 20), make_context(5)
    start = block._replace(fc2_kernel=np.zeros((2, 5)), fc2_bias=np.zeros(5))
    np.testing.assert_array_equal(in_float64(dense.fgd_context, x, start), x)
    added = in_float64(dense.fgd_context, x, block) - x
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], x.shape), atol=1e-12)


def test_fgd_is_the_sum_of_its_weighted_parts_and_padding_boxes_do_not_count():
    s, t = draw((2, 3, 4, 5), 21), draw((2, 3, 4, 5), 22)
    boxes = np.random.default_rng(23).uniform(0, 12, (2, 3, 2))
    boxes = np.concatenate([boxes, boxes + 3], axis=-1)
    contexts = make_context(5), make_context(5, seed=9)

    @jax.jit
    def fgd(boxes, weights, valid):
        chosen = dict(zip(("alpha", "beta", "gamma", "lambda_"), weights, strict=True))
        return dense.fgd(s, t, boxes, *contexts, image_shape=(30, 40), valid=valid, **chosen)

    everywhere = np.ones((2, 3), bool)
    with jax.enable_x64(True):
        parts = np.stack([fgd(boxes, weights, everywhere) for weights in np.eye(4)])
        assert np.min(parts) > 0
        weights = np.array([2.0, 0.5, 3.0, 0.1])
        np.testing.assert_allclose(fgd(boxes, weights, everywhere), weights @ parts, rtol=1e-12)
        padded = np.concatenate([boxes, np.full((2, 1, 4), 25.0)], axis=1)
        valid = np.array([[True] * 3 + [False]] * 2)
        np.testing.assert_allclose(fgd(padded, weights, valid), weights @ parts, rtol=1e-12)
        assert np.all(np.abs(fgd(padded, weights, ~valid | valid) - weights @ parts) > 1e-3)


def test_shapes_that_do_not_fit_are_named():
    x, boxes = np.zeros((2, 3, 4, 5)), np.zeros((2, 1, 4))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3\).*give \(2, 3, 4\)"):
        dense.pixel_kd(x, x, mask=np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4, 5\).*shape \(2, 3, 4, 6\)"):
        dense.cwd(x, np.zeros((2, 3, 4, 6)))
    with pytest.raises(ValueError, match=r"teacher features \(2, 4, 3, 5\) and labels \(2, 3, 4\)"):
        dense.ifvd(x, np.zeros((2, 4, 3, 5)), np.zeros((2, 3, 4), np.int32), num_classes=2)
    with pytest.raises(ValueError, match=r"different numbers of classes \(5 and 4"):
        dense.ld(np.zeros((2, 5)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"boxes \(2, 1, 3\)"):
        dense.fgd(x, x, boxes[..., :3], make_context(5), make_context(5), image_shape=(9, 9))
