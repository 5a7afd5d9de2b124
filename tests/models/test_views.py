"""Models that see other channels or another resolution, or give some of their classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import augment, losses, models, objectives
from jaxkd.train import check_parts
from jaxkd.types import Outputs, Variables

RANDOM = np.random.default_rng(0)
GREY = {"image": RANDOM.random((2, 4, 4, 1)).astype(np.float32)}
RGB = {"image": RANDOM.random((2, 4, 4, 3)).astype(np.float32)}
MLP = models.mlp(6, hidden=(3,))


def logits(model, variables, batch):
    return np.asarray(model.apply(variables, batch, None, False)[0].logits)


def test_grey_becomes_three_equal_channels_and_colour_its_luminance():
    for batch, other, channels in ((GREY, RGB, 3), (RGB, GREY, 1)):
        model = models.with_channels(MLP, channels)
        variables = model.init(jax.random.key(0), batch)
        change = augment.grey_to_rgb() if channels == 3 else augment.rgb_to_grey()
        seen = jnp.stack([change(jax.random.key(0), {"image": x})["image"] for x in batch["image"]])
        wanted = (
            np.repeat(batch["image"], 3, -1)
            if channels == 3
            else batch["image"] @ np.float32([[0.299], [0.587], [0.114]])
        )
        np.testing.assert_allclose(seen, wanted, rtol=1e-6)
        np.testing.assert_allclose(logits(model, variables, batch), logits(MLP, variables, {"image": seen}), rtol=1e-5)
        np.testing.assert_array_equal(logits(model, variables, other), logits(MLP, variables, other))  # left as it is
    white = augment.rgb_to_grey()(jax.random.key(0), {"image": np.full((1, 1, 3), 255, np.uint8)})["image"]
    assert (white.dtype, int(white[0, 0, 0])) == (np.uint8, 255)
    with pytest.raises(ValueError, match="1 or 3 channels was expected"):
        model.apply(variables, {"image": np.zeros((2, 4, 4, 4), np.float32)}, None, False)


def test_pictures_are_resized_inside_the_program():
    model = models.at_resolution(MLP, (2, 3))
    variables = model.init(jax.random.key(0), RGB)
    small = jax.image.resize(RGB["image"], (2, 2, 3, 3), "linear", antialias=True)
    np.testing.assert_allclose(logits(model, variables, RGB), logits(MLP, variables, {"image": small}), rtol=1e-5)
    np.testing.assert_array_equal(logits(model, variables, {"image": small}), logits(MLP, variables, {"image": small}))
    for size in (0, (2, 0), "2", 2.5, None):
        with pytest.raises(ValueError, match="give height and width in pixels"):
            models.at_resolution(MLP, size)
    with pytest.raises(ValueError, match="choose one of nearest, linear"):
        models.at_resolution(MLP, 2, method="best")


def test_classes_are_cut_from_logits_and_head_but_not_from_features():
    variables = MLP.init(jax.random.key(0), RGB)
    whole = models.with_head(MLP).apply(variables, RGB, None, False)[0]
    for classes, kept in ((4, [0, 1, 2, 3]), ([5, 0], [5, 0]), (np.arange(6) % 2 == 1, [1, 3, 5])):
        out, _ = models.select_classes(models.with_head(MLP), classes).apply(variables, RGB, None, False)
        np.testing.assert_array_equal(out.logits, whole.logits[:, kept])
        np.testing.assert_array_equal(out.head["kernel"], whole.head["kernel"][:, kept])
        np.testing.assert_array_equal(out.head["bias"], whole.head["bias"][np.array(kept)])
        np.testing.assert_array_equal(out.features["hidden1"], whole.features["hidden1"])
    for wrong in (0, -1, [], [1, 1], 1.5, "a", None, True):
        with pytest.raises(ValueError, match="classes"):
            models.select_classes(MLP, wrong)
    with pytest.raises(ValueError, match="class 6 was asked for, but the model has 6"):
        models.select_classes(MLP, 7).apply(variables, RGB, None, False)


def test_joined_classes_have_the_sum_of_their_members_probabilities():
    variables = MLP.init(jax.random.key(0), RGB)
    told = models.with_head(MLP)
    z = logits(told, variables, RGB)
    classes = {5: 0, 0: 1, 2: 0, 1: 1, 4: 1, 3: 2}
    out, _ = models.select_classes(told, classes).apply(variables, RGB, None, False)
    p = np.asarray(jax.nn.softmax(z))
    joined = np.stack([p[:, [2, 5]].sum(1), p[:, [0, 1, 4]].sum(1), p[:, 3]], axis=1)
    np.testing.assert_allclose(jax.nn.softmax(out.logits), joined, rtol=1e-5)
    assert out.head is None
    dropped = {k: c for k, c in classes.items() if k != 1}  # a class that nothing is mapped from has no share
    less = logits(models.select_classes(told, dropped), variables, RGB)
    joined[:, 1] -= p[:, 1]
    np.testing.assert_allclose(jax.nn.softmax(less), joined / joined.sum(1, keepdims=True), rtol=1e-5)
    masked = jnp.full((2, 6), -jnp.inf).at[:, 3].set(0.0)
    grad = jax.grad(
        lambda z: (
            models.select_classes(models.cached(), classes)
            .apply(None, {"teacher_logits": z}, None, False)[0]
            .logits[:, 2]
            .sum()
        )
    )(masked)
    assert np.isfinite(grad).all()
    one, _ = models.select_classes(told, {4: 1, 2: 0}).apply(variables, RGB, None, False)  # of one each: cut
    np.testing.assert_array_equal(one.logits, z[:, [2, 4]])
    assert one.head["kernel"].shape == (3, 2)
    for wrong, said in (
        ({}, "map numbers"),
        ({0: -1}, "from 0"),
        ({0: 0, 1: 2}, r"no class to \[1\]"),
        ({0: 0.5}, "map"),
    ):
        with pytest.raises(ValueError, match=said):
            models.select_classes(MLP, wrong)
    with pytest.raises(ValueError, match="class 6 was asked for, but the model has 6"):
        models.select_classes(MLP, {6: 0, 0: 0}).apply(variables, RGB, None, False)


def test_cached_and_top_k_outputs_are_cut_too():
    z = RANDOM.standard_normal((2, 6)).astype(np.float32)
    out, _ = models.select_classes(models.cached(), [4, 1]).apply(None, {"teacher_logits": z}, None, False)
    np.testing.assert_array_equal(out.logits, z[:, [4, 1]])
    reduced = models.top_k(models.cached(), 6)
    out, _ = models.select_classes(reduced, [4, 1]).apply(None, {"teacher_logits": z}, None, False)
    np.testing.assert_allclose(out.features["top_logprobs"], -np.sort(-jax.nn.log_softmax(z[:, [4, 1]])), rtol=1e-5)
    batch = models.keep_top_k(z, 5)
    few = models.cached(num_classes=5).apply(Variables({}, {}), batch, None, False)[0].logits
    assert np.array_equal(np.isnan(few).all(axis=1), (np.asarray(batch["top_ids"]) >= 5).any(axis=1))
    with pytest.raises(ValueError, match="give the number of classes"):
        models.cached(num_classes=3).apply(Variables({}, {}), batch, None, False)


@pytest.mark.parametrize(("own", "others", "call"), [(3, 6, "teacher, 3"), (6, 3, "student, 3")])
def test_a_mismatch_of_classes_names_what_cuts_them(own, others, call):
    parts = (models.mlp(own, hidden=()), models.mlp(others, hidden=()))
    variables = jax.eval_shape(lambda: parts[1].init(jax.random.key(0), RGB))
    with pytest.raises(ValueError, match=rf"{own} and {others}.*models.select_classes\({call}\)"):
        check_parts(*parts, objectives.from_logits(losses.kd), batch=RGB, teacher_variables=variables)


def test_in_dtype_casts_arrays_of_numpy_as_those_of_jax():
    half = models.in_dtype(MLP)
    variables = MLP.init(jax.random.key(0), RGB)
    out = [half.apply(variables, batch, None, False)[0] for batch in (RGB, jax.tree.map(jnp.asarray, RGB))]
    assert {x.features["hidden1"].dtype for x in out} == {jnp.dtype(jnp.bfloat16)}
    assert isinstance(out[0], Outputs)
    np.testing.assert_array_equal(out[0].logits, out[1].logits)


def test_shapes_are_enough_to_initialise():
    shapes = jax.eval_shape(lambda: RGB)
    for one, other in zip(
        *(jax.tree.leaves(models.init(MLP, jax.random.PRNGKey(0), b)) for b in (RGB, shapes)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
