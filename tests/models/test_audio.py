"""Networks on log-mel spectra: padding changes nothing, and a stream of frames ends in the offline network's logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models

F, M, K = 12, 6, 3
SIZES = {"width": 8, "blocks": 2, "kernel": 5}


@pytest.fixture(scope="module")
def batch():
    draw = np.random.default_rng(0)
    return {"log_mel": draw.normal(size=(2, F, M)).astype(np.float32), "frames": np.array([F, 7], np.int32)}


@pytest.fixture(scope="module")
def trained(batch):
    """A network whose running statistics are not those that it starts with."""
    model = models.depthwise_net(K, **SIZES)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    state = jax.jit(lambda variables: model.apply(variables, batch, None, True)[1])(variables)
    return model, variables._replace(state=state)


def test_a_stream_ends_in_the_offline_logits_at_every_frame(batch, trained):
    model, variables = trained
    net = models.depthwise_stream(K, bands=M, **SIZES)
    step, state = jax.jit(net.stream), net.start(2)
    offline = jax.jit(lambda batch: model.apply(variables, batch, None, False)[0].logits)
    for count in range(1, F + 1):
        logits, state = step(variables, state, batch["log_mel"][:, count - 1 : count])
        whole = offline({**batch, "frames": np.full(2, count, np.int32)})
        np.testing.assert_allclose(logits, whole, atol=2e-6, err_msg=f"after {count} frames")


def test_a_stream_takes_several_frames_at_once(batch, trained):
    _, variables = trained
    net = models.depthwise_stream(K, bands=M, **SIZES)
    state, step = net.start(2), jax.jit(net.stream)
    for part in (batch["log_mel"][:, :1], batch["log_mel"][:, 1:6], batch["log_mel"][:, 6:]):
        logits, state = step(variables, state, part)
    once, _ = step(variables, net.start(2), batch["log_mel"])
    np.testing.assert_allclose(logits, once, atol=2e-6)
    with pytest.raises(ValueError, match=r"frames have shape \(2, 6\)"):
        net.stream(variables, state, batch["log_mel"][:, 0])


def test_frames_stream_their_own_logits(batch):
    model = models.depthwise_net(K, per_frame=True, **SIZES)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    whole = jax.jit(lambda: model.apply(variables, batch, None, False)[0].logits)()
    net = models.depthwise_stream(K, bands=M, per_frame=True, **SIZES)
    step = jax.jit(net.stream)
    logits, state = step(variables, net.start(2), batch["log_mel"][:, :4])
    more, _ = step(variables, state, batch["log_mel"][:, 4:])
    np.testing.assert_allclose(jnp.concatenate([logits, more], 1)[0], whole[0], atol=2e-6)
    np.testing.assert_allclose(logits[1], whole[1, :4], atol=2e-6)


@pytest.mark.parametrize("train", [True, False])
def test_frames_past_the_end_change_nothing(batch, train):
    for model in (models.depthwise_net(K, **SIZES), models.spectrum_cnn(K, widths=(4, 8), dropout=0.0)):
        variables = jax.jit(model.init)(jax.random.key(0), batch)
        other = {**batch, "log_mel": batch["log_mel"].copy()}
        other["log_mel"][1, 7:] = 50.0
        found = [jax.jit(lambda one, m=model, v=variables: m.apply(v, one, None, train))(one) for one in (batch, other)]
        for x, y in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def test_sizes_and_features(batch):
    shapes = {"log_mel": jax.ShapeDtypeStruct((2, 62, 40), "float32"), "frames": jax.ShapeDtypeStruct((2,), "int32")}
    small, big = models.depthwise_net(10), models.spectrum_cnn(10)
    sizes = [models.size(model, shapes).parameters for model in (small, big)]
    assert sizes[0] < 50_000 < sizes[1]
    out = jax.eval_shape(lambda one: small.apply(small.init(jax.random.key(0), one), one, None, False)[0], shapes)
    assert sorted(out.features) == ["block1", "block2", "block3", "block4", "block5", "pooled", "stem"]
    assert out.features["block5"].shape == (2, 62, 64)
    for make in (lambda: models.depthwise_net(3, blocks=0), lambda: models.depthwise_stream(3, bands=0)):
        with pytest.raises(ValueError, match="is 0: give an integer of at least 1"):
            make()
    with pytest.raises(ValueError, match="give at least one stage"):
        models.spectrum_cnn(3, widths=())
