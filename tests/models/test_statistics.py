"""Running variances of batch norms: PyTorch's unbiased ones."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxkd import models, parallel
from jaxkd.models.adapters import bound
from jaxkd.types import Variables

BATCH = {"image": np.random.default_rng(0).standard_normal((8, 6, 6, 3)).astype(np.float32)}
MOMENTUM = 0.9
PIXELS = {"norm1": 36, "norm2": 9}  # of an image, where the norm is


class Network(nn.Module):
    """Two convolutions with batch norms, which over several devices take the statistics of all."""

    @nn.compact
    def __call__(self, x, train=False):
        for name, stride in (("norm1", 1), ("norm2", 2)):
            x = nn.Conv(2, (3, 3), stride, padding=1, name=f"conv_{name}")(x)
            x = nn.BatchNorm(not train, momentum=MOMENTUM, axis_name=bound(parallel.DATA), name=name)(x)
        return x.mean((1, 2))


NETWORK = models.from_linen(Network())


def moved(model, variables, devices=1):
    """Outputs and running statistics after a step in training mode."""
    if devices == 1:
        return jax.jit(lambda v: model.apply(v, BATCH, jax.random.key(0), True))(variables)
    rows = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), BATCH)
    both = jax.pmap(
        lambda v, rows: model.apply(v, rows, jax.random.key(0), True),
        axis_name=parallel.DATA,
        in_axes=(None, 0),
        devices=jax.devices()[:devices],
    )(variables, rows)
    return jax.tree.map(lambda x: x[0], both)


@pytest.mark.parametrize("devices", [1, 2])
def test_running_variances_are_those_of_pytorch(devices):
    variables = models.init(NETWORK, jax.random.key(0), BATCH)
    out, biased = moved(NETWORK, variables, devices)
    same_out, unbiased = moved(models.unbiased_variance(NETWORK), variables, devices)
    np.testing.assert_array_equal(same_out.logits, out.logits)
    pairs = zip(jax.tree.leaves_with_path(biased), jax.tree.leaves(unbiased), strict=True)
    for (path, one), other in pairs:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("mean"):
            np.testing.assert_array_equal(one, other)
            continue
        n = len(BATCH["image"]) * PIXELS[name.split("/")[1]]
        of_the_batch = (one - MOMENTUM) / (1 - MOMENTUM)  # the running variance was 1
        np.testing.assert_allclose(other, MOMENTUM + (1 - MOMENTUM) * of_the_batch * n / (n - 1), rtol=1e-5)


def test_evaluation_and_initialisation_are_as_before():
    model = models.unbiased_variance(NETWORK)
    variables = models.init(NETWORK, jax.random.key(0), BATCH)
    jax.tree.map(np.testing.assert_array_equal, models.init(model, jax.random.key(0), BATCH), variables)
    _, state = model.apply(variables, BATCH, None, False)
    jax.tree.map(np.testing.assert_array_equal, state, variables.state)


def test_a_model_of_other_modules_is_refused():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.head = nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(x).mean((1, 2)))

    model = models.from_nnx(lambda rngs: Net(rngs))
    variables = models.init(model, jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=r"^unbiased_variance found no batch norm of Flax Linen"):
        models.unbiased_variance(model).apply(Variables(*variables), BATCH, jax.random.key(0), True)
