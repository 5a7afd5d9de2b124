"""The recurrent network of spectra: sizes, padding, and both directions."""

import jax
import numpy as np
import pytest

from jaxkd import models

B, F, M, K = 2, 7, 6, 4


@pytest.fixture(scope="module")
def network():
    model = models.recurrent_net(K, width=5, hidden=3, layers=2, kernel=3)
    x = np.random.default_rng(0).standard_normal((B, F, M)).astype(np.float32)
    batch = {"log_mel": x, "frames": np.array([F, 4])}
    variables = models.init(model, jax.random.key(0), batch)
    apply = jax.jit(lambda batch: model.apply(variables, batch, None, False)[0])
    return variables, batch, apply


def test_logits_of_each_frame_and_number_of_parameters(network):
    variables, batch, apply = network
    out = apply(batch)
    assert out.logits.shape == (B, F, K)
    assert {name: x.shape for name, x in out.features.items()} == {
        "stem": (B, F, 5),
        "block1": (B, F, 6),
        "block2": (B, F, 6),
    }
    gru = lambda d: 2 * (3 * 3 * (d + 3) + 2 * 9)  # noqa: E731
    assert models.count_parameters(variables) == 3 * M * 5 + 5 + 10 + gru(5) + gru(6) + 6 * K + K


def test_padding_changes_nothing_and_both_ways_are_heard(network):
    _, batch, apply = network
    x = batch["log_mel"].copy()
    x[1, 4:] = np.nan
    np.testing.assert_array_equal(apply({**batch, "log_mel": x}).logits[1, :4], apply(batch).logits[1, :4])
    for changed, seen in ((0, F - 1), (F - 1, 0)):
        x = batch["log_mel"].copy()
        x[0, changed] += 1
        assert not np.allclose(apply({**batch, "log_mel": x}).logits[0, seen], apply(batch).logits[0, seen], atol=1e-6)


def test_sizes_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="hidden"):
        models.recurrent_net(K, hidden=0)
