"""Losses for segmentation against float64 twins, and CIRKD's memory of pixels and regions."""

import jax
import numpy as np
import pytest
from losses.programs import compiled, differentiated, run

from jaxkd.losses import segmentation


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def in_float64(loss, *arrays, **options):
    with jax.enable_x64(True):
        return run(loss, *arrays, **options)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(z):
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def kl(t, s):
    p, q = softmax(t), softmax(s)
    return np.sum(p * np.log(p / q), axis=-1)


S, T = draw((3, 2, 4, 5), 0), draw((3, 2, 4, 6), 1)
LABELS = np.random.default_rng(2).integers(0, 5, (3, 2, 4)).astype(np.int32)


@pytest.mark.parametrize("ignore", [None, 4])
def test_dice_equals_its_numpy_twin(ignore):
    p = softmax(S)
    expected = []
    for b in range(3):
        kept = LABELS[b] != ignore
        parts = []
        for k in range(5):
            overlap, size = (p[b, ..., k] * (LABELS[b] == k))[kept].sum(), (p[b, ..., k] + (LABELS[b] == k))[kept].sum()
            parts.append((2 * overlap + 0.5) / (size + 0.5))
        expected.append(1 - np.mean(parts))
    np.testing.assert_allclose(in_float64(segmentation.dice, S, LABELS, smooth=0.5, ignore=ignore), expected, rtol=1e-9)


def test_dice_of_what_is_ignored_and_of_what_is_no_class():
    labels, broken = LABELS.copy(), S.astype(np.float32)
    labels[0, 0], broken[0, 0], labels[1, 0, 0] = 255, np.nan, 9
    value, (slope,) = differentiated(segmentation.dice, 0, ignore=255)(broken[[0, 2]], labels[[0, 2]])
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[0, 0], 0)
    assert np.isnan(run(segmentation.dice, broken, labels, ignore=255)[1])


def test_skd_pairwise_compares_the_cosines_of_all_pairs_of_positions():
    expected = []
    for b in range(3):
        s, t = unit(S[b].reshape(8, 5)), unit(T[b].reshape(8, 6))
        expected.append(np.mean([(s[i] @ s[j] - t[i] @ t[j]) ** 2 for i in range(8) for j in range(8)]))
    np.testing.assert_allclose(in_float64(segmentation.skd_pairwise, S, T), expected, rtol=1e-9)


def test_cirkd_pixels_compares_each_pixel_with_those_of_every_image():
    s, t = unit(S.reshape(3, 8, 5)), unit(T.reshape(3, 8, 6))
    expected = np.mean([kl(t[i] @ t[j].T / 0.3, s[i] @ s[j].T / 0.3).mean() for i in range(3) for j in range(3)])
    np.testing.assert_allclose(in_float64(segmentation.cirkd_pixels, S, T, temperature=0.3), expected, rtol=1e-9)


def test_cirkd_memory_compares_each_pixel_with_the_rows():
    memory, t = draw((7, 5), 3), draw(S.shape, 4)
    scores = [unit(x) @ unit(memory).T / (0.2 * 3) for x in (S, t)]
    each, mask = 3**2 * kl(scores[1], scores[0]), LABELS > 1
    options = {"temperature": 0.2, "kd_temperature": 3.0}
    value = in_float64(segmentation.cirkd_memory, S, t, memory, **options)
    np.testing.assert_allclose(value, each.mean((1, 2)), rtol=1e-9)
    value = in_float64(segmentation.cirkd_memory, S, t, memory, mask=mask, **options)
    np.testing.assert_allclose(value, [each[b][mask[b]].mean() for b in range(3)], rtol=1e-9)


def test_what_the_mask_drops_reaches_neither_value_nor_gradient():
    s, mask, memory = S.astype(np.float32), LABELS > 1, draw((7, 5), 3).astype(np.float32)
    broken = np.where(mask[..., None], s, np.nan).astype(np.float32)
    loss = differentiated(lambda s, t, weight: segmentation.cirkd_memory(s, t, memory, mask=weight), 0)
    weight = mask.astype(np.float32)
    (value, (slope,)), (expected, _) = loss(broken, s[::-1], weight), loss(s, s[::-1], weight)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.all(np.isfinite(slope))
    np.testing.assert_array_equal(slope[~mask], 0)


def pushed(memory, embedding, labels, **options):
    new = compiled(segmentation.cirkd_push, **options)(memory, embedding, labels, jax.random.key(1))
    return jax.tree.map(np.asarray, new)


def empty(**sizes):
    return jax.tree.map(np.asarray, segmentation.cirkd_init(jax.random.key(0), width=6, **sizes))


def test_the_memory_takes_means_and_pixels_of_each_class_in_a_ring():
    memory = empty(num_classes=3, pixels=5, regions=3)
    np.testing.assert_allclose(np.linalg.norm(memory.pixels, axis=-1), 1, rtol=1e-6)
    labels = np.full((2, 4, 8), 255, np.int32)  # twice as large as the map
    labels[0, :, :4], labels[1, :2], labels[0, :, 4:] = 1, 1, 7
    t = unit(T[:2]).astype(np.float32)
    new = pushed(memory, T[:2].astype(np.float32), labels, each=2)
    for name in ("pixels", "regions"):
        np.testing.assert_array_equal(getattr(new, name)[[0, 2]], getattr(memory, name)[[0, 2]])
    means = unit(np.stack([t[0, :, :2].reshape(-1, 6).mean(0), t[1, 0].mean(0)]))
    np.testing.assert_allclose(new.regions[1, :2], means, rtol=1e-5)
    np.testing.assert_array_equal(new.regions[1, 2], memory.regions[1, 2])
    places = [[np.abs(row - pixel).max() < 1e-6 for pixel in t.reshape(-1, 6)].index(True) for row in new.pixels[1, :4]]
    assert len(set(places)) == 4
    assert set(places[:2]) <= {0, 1, 4, 5}
    assert set(places[2:]) <= {8, 9, 10, 11}
    np.testing.assert_array_equal(new.pixels[1, 4], memory.pixels[1, 4])
    assert (new.next_pixel.tolist(), new.next_region.tolist()) == ([0, 4, 0], [0, 2, 0])
    again = pushed(new, T[:2].astype(np.float32), labels, each=2)
    np.testing.assert_allclose(again.regions[1], [means[1], new.regions[1, 1], means[0]], rtol=1e-5)
    np.testing.assert_array_equal(again.pixels[1, 3], new.pixels[1, 3])
    assert int(again.next_pixel[1]) == 3


def test_of_more_rows_than_the_ring_holds_the_last_stay():
    memory = empty(num_classes=2, pixels=4, regions=2)
    new = pushed(memory, T.astype(np.float32), np.zeros((3, 2, 4), np.int32), each=3)
    means = unit(unit(T).reshape(3, 8, 6).mean(1))
    np.testing.assert_allclose(new.regions[0], means[[2, 1]], rtol=1e-5)
    assert int(new.next_pixel[0]) == 9 % 4


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(3, 2, 4, 5\) and \(3, 4, 2, 5\): give two of shape \[B, H, W, C\]"):
        segmentation.cirkd_pixels(S, S.swapaxes(1, 2))
    with pytest.raises(ValueError, match=r"memory has shape \(7, 6\) but embeddings have \(3, 2, 4, 5\)"):
        segmentation.cirkd_memory(S, S, np.zeros((7, 6)))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\)"):
        segmentation.cirkd_memory(S, S, np.zeros((7, 5)), mask=np.ones(3))
    with pytest.raises(ValueError, match="not of pixels"):
        segmentation.dice(S[0, 0], LABELS[0, 0])
    memory = empty(num_classes=2, pixels=4, regions=2)
    with pytest.raises(ValueError, match=r"embeddings have shape \(3, 2, 4, 5\).*give \[B, H, W, 6\]"):
        segmentation.cirkd_push(memory, S, LABELS, jax.random.key(0))
    with pytest.raises(ValueError, match=r"labels have shape \(3, 8\)"):
        segmentation.cirkd_push(memory, T, LABELS.reshape(3, 8), jax.random.key(0))
