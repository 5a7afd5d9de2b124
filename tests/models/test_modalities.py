"""Models of more than one modality: what they do without one, modality dropout, towers side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models
from jaxkd.types import Model, Outputs, Variables

B, K = 40, 3
RNG = np.random.default_rng(0)
BATCH = {name: RNG.normal(0, 1, (B, 4)).astype(np.float32) for name in ("image", "sound")}
NAMES = ("image", "sound")
KEY = jax.random.key(0)


def reader(field):
    """A linear network of one field."""

    def init(key, batch):
        return Variables({"kernel": jax.random.normal(key, (4, 2))}, {})

    def apply(variables, batch, key, train):
        x = batch[field] @ variables.params["kernel"]
        return Outputs(x, {"pooled": x}), variables.state

    return Model(init, apply)


FUSED = models.fused(K, {name: reader(name) for name in NAMES}, hidden=5, dropout=0.5)
START = FUSED.init(KEY, BATCH)
VARIABLES = START._replace(params={**START.params, "absent": {"image": jnp.ones(2), "sound": -jnp.ones(2)}})


def logits(model, batch=BATCH, key=None, train=False):
    return np.asarray(model.apply(VARIABLES, batch, key, train)[0].logits)


def test_what_is_absent_changes_nothing_and_is_its_stand_in():
    other = {**BATCH, "sound": 7 * BATCH["sound"]}
    one = models.seeing(FUSED, "image", of=NAMES)
    np.testing.assert_array_equal(logits(one), logits(one, other))
    assert np.abs(logits(FUSED) - logits(FUSED, other)).min(axis=-1).max() > 0.1
    p, x = VARIABLES.params, BATCH["image"] @ VARIABLES.params["image"]["kernel"]
    hidden = np.maximum(np.concatenate([x, -np.ones((B, 2))], axis=1) @ p["hidden"]["kernel"], 0)
    np.testing.assert_allclose(logits(one), hidden @ p["head"]["kernel"], rtol=1e-4, atol=1e-5)
    both = models.seeing(FUSED, *NAMES, of=NAMES)
    np.testing.assert_array_equal(logits(both), logits(FUSED))


def test_an_example_may_lack_a_modality():
    has = np.arange(B) % 2 == 0
    found = logits(FUSED, {**BATCH, "has_sound": has})
    np.testing.assert_array_equal(found[has], logits(FUSED)[has])
    np.testing.assert_array_equal(found[~has], logits(models.seeing(FUSED, "image", of=NAMES))[~has])


def test_what_stands_in_the_place_of_an_absent_modality_is_in_no_gradient():
    has = np.arange(B) % 2 == 0

    def slopes(fill):
        sound = np.where(has[:, None], BATCH["sound"], np.float32(fill))
        batch = {**BATCH, "sound": sound, "has_sound": has}
        return jax.grad(
            lambda params: jnp.sum(FUSED.apply(Variables(params, {n: {} for n in NAMES}), batch, KEY, True)[0].logits)
        )(VARIABLES.params)

    for x, y in zip(*map(jax.tree.leaves, (slopes(np.nan), slopes(0))), strict=True):
        np.testing.assert_array_equal(x, y)


def test_modality_dropout_keeps_one_modality_of_some_examples():
    found = logits(FUSED, key=KEY, train=True)
    kinds = [logits(FUSED), *(logits(models.seeing(FUSED, name, of=NAMES)) for name in NAMES)]
    same = np.stack([np.isclose(found, kind, atol=1e-6).all(axis=-1) for kind in kinds])
    assert same.any(axis=0).all(), "an example has both modalities or one, never none"
    assert (same.sum(axis=1) > 4).all(), "each of the three stands among forty"
    lacking = {**BATCH, "has_sound": np.zeros(B, bool)}
    np.testing.assert_array_equal(logits(FUSED, lacking, KEY, True), logits(models.seeing(FUSED, "image", of=NAMES)))
    never = models.fused(K, {name: reader(name) for name in NAMES}, hidden=5, dropout=0.0)
    np.testing.assert_array_equal(logits(never, train=True), logits(FUSED))


def test_features_and_variables_are_named_by_their_modality():
    out, state = FUSED.apply(START, BATCH, None, False)
    assert {name: x.shape for name, x in out.features.items()} == {
        "image/pooled": (B, 2),
        "sound/pooled": (B, 2),
        "pooled": (B, 5),
    }
    assert set(START.params) == {"image", "sound", "absent", "hidden", "head"}
    assert state == START.state == {"image": {}, "sound": {}}


def test_towers_stand_side_by_side():
    towers = models.side_by_side({name: reader(name) for name in NAMES})
    variables = towers.init(KEY, BATCH)
    out, state = towers.apply(variables, BATCH, None, False)
    assert out.logits is None
    assert state == {"image": {}, "sound": {}}
    for name in NAMES:
        expected = BATCH[name] @ np.asarray(variables.params[name]["kernel"])
        np.testing.assert_allclose(out.features[name], expected, rtol=1e-4, atol=1e-5)
        seen, _ = models.at_feature(towers, name).apply(variables, BATCH, None, False)
        np.testing.assert_array_equal(seen.logits, out.features[name])


def test_what_cannot_be_is_refused():
    pair = {name: reader(name) for name in NAMES}
    for make, said in (
        (lambda: models.fused(K, {"image": reader("image")}), r"modalities are \['image'\]: name at least two"),
        (lambda: models.fused(K, pair, dropout=2.0), "modality dropout is 2.0"),
        (lambda: models.seeing(FUSED, "text", of=NAMES), "of image, sound was to see text"),
        (lambda: models.seeing(FUSED, of=NAMES), "was to see nothing"),
        (lambda: models.side_by_side({}), "no network to stand beside"),
        (lambda: models.fused(K, pair, feature="deep").init(KEY, BATCH), "'image' has no vector 'deep' to fuse"),
        (
            lambda: models.at_feature(FUSED, "deep").apply(START, BATCH, None, False),
            "no feature 'deep': it has image/p",
        ),
        (lambda: FUSED.apply(START, BATCH, None, True), "needs a key for its modality dropout"),
        (
            lambda: FUSED.apply(START, {**BATCH, "has_image": np.ones(B)}, None, False),
            "has_image has shape .* booleans",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            make()
