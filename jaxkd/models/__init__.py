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
    with_head,
)
from jaxkd.models.mlp import mlp
from jaxkd.models.precision import Int8, cast, from_int8, in_dtype, to_int8
from jaxkd.models.resnet import resnet
from jaxkd.models.top_k import KEPT, keep_top_k, spread_tail, top_k
from jaxkd.models.transformer import bert, language_model

__all__ = [
    "KEPT",
    "Int8",
    "bert",
    "cached",
    "cast",
    "convnet",
    "count_parameters",
    "ensemble",
    "from_int8",
    "from_linen",
    "from_nnx",
    "in_dtype",
    "join",
    "keep_top_k",
    "language_model",
    "mean_logits",
    "mean_probabilities",
    "mlp",
    "no_teacher",
    "resnet",
    "spread_tail",
    "to_int8",
    "top_k",
    "with_head",
]
