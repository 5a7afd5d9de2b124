"""The U-Net: documented features, its size from the architecture, images of odd sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import shapes

from jaxkd import models


@pytest.mark.parametrize("stride", [1, 2])
def test_features_logits_and_size(stride):
    logits, features, found = shapes(models.unet(3, width=4, depth=3, stride=stride), (2, 21, 30, 3))
    halved = [(-(-21 // n), -(-30 // n)) for n in (stride, 2 * stride, 4 * stride)]
    assert logits == (2, 21, 30, 3)
    assert features == {
        **{f"stage{i + 1}": (2, *halved[i], 4 * 2**i) for i in range(3)},
        **{f"decoder{i}": (2, *halved[i - 1], 4 * 2 ** (i - 1)) for i in (2, 1)},
    }

    def conv(inputs, outputs):
        return 9 * inputs * outputs + 2 * outputs

    stages = conv(3, 4) + conv(4, 4) + conv(4, 8) + conv(8, 8) + conv(8, 16) + conv(16, 16)
    assert found == stages + conv(8 + 16, 8) + conv(4 + 8, 4) + 5 * 3


def test_a_pixel_is_answered_where_it_stands():
    """The untrained network's answer to a bright square is found again where the square was moved to."""
    model = models.unet(2, width=2, depth=2)
    image = np.zeros((2, 64, 64, 1), np.float32)
    image[0, 28:32, 28:32], image[1, 32:36, 32:36] = 5, 5
    variables = models.init(model, jax.random.key(0), {"image": image})
    logits = jax.jit(lambda x: model.apply(variables, {"image": x}, None, False)[0].logits)(jnp.asarray(image))
    np.testing.assert_allclose(logits[0, 26:34, 26:34], logits[1, 30:38, 30:38], atol=1e-5)
    assert np.ptp(logits[0, 26:34, 26:34]) > 1e-2


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="width is 0, depth 4 and stride 2: give at least 1 each"):
        models.unet(2, width=0)
    with pytest.raises(ValueError, match=r"images have shape \(24, 32, 1\)"):
        jax.eval_shape(lambda: models.unet(2).init(jax.random.key(0), {"image": jnp.zeros((24, 32, 1))}))
