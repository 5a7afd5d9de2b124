"""Small networks that methods own, each with its `init` and `apply` together."""

from jaxkd.objectives.networks.core import Network
from jaxkd.objectives.networks.cross_layer import bottleneck, embedding, fusion
from jaxkd.objectives.networks.experts import experts
from jaxkd.objectives.networks.maps import context_block, generator, pointwise, token_generator, translator

__all__ = [
    "Network",
    "bottleneck",
    "context_block",
    "embedding",
    "experts",
    "fusion",
    "generator",
    "pointwise",
    "token_generator",
    "translator",
]
