"""Models: networks with named intermediates, and the makers that turn any network into a `Model`."""

from jaxkd.models.convnet import convnet
from jaxkd.models.functional import (
    cached,
    count_parameters,
    ensemble,
    from_linen,
    from_nnx,
    join,
    mean_logits,
    mean_probabilities,
    no_teacher,
)
from jaxkd.models.mlp import mlp
from jaxkd.models.resnet import resnet

__all__ = [
    "cached",
    "convnet",
    "count_parameters",
    "ensemble",
    "from_linen",
    "from_nnx",
    "join",
    "mean_logits",
    "mean_probabilities",
    "mlp",
    "no_teacher",
    "resnet",
]
