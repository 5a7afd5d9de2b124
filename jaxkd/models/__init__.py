"""Models: networks with named intermediates, and the makers that turn any network into a `Model`."""

from jaxkd.models.convnet import convnet
from jaxkd.models.convnext import convnext
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
    size,
    with_head,
)
from jaxkd.models.lenet import lenet
from jaxkd.models.mlp import mlp
from jaxkd.models.mobilenet import mobilenet_v1, mobilenet_v2
from jaxkd.models.precision import Int8, cast, from_int8, in_dtype, to_int8
from jaxkd.models.resnet import imagenet_resnet, resnet
from jaxkd.models.reused import reuse_classifier
from jaxkd.models.shufflenet import shufflenet_v1, shufflenet_v2
from jaxkd.models.top_k import KEPT, keep_top_k, spread_tail, top_k
from jaxkd.models.transfer import inherit
from jaxkd.models.transformer import bert, language_model
from jaxkd.models.vgg import vgg
from jaxkd.models.vision_transformer import vision_transformer
from jaxkd.models.wide_resnet import wide_resnet

__all__ = [
    "KEPT",
    "Int8",
    "bert",
    "cached",
    "cast",
    "convnet",
    "convnext",
    "count_parameters",
    "ensemble",
    "from_int8",
    "from_linen",
    "from_nnx",
    "imagenet_resnet",
    "in_dtype",
    "inherit",
    "join",
    "keep_top_k",
    "language_model",
    "lenet",
    "mean_logits",
    "mean_probabilities",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2",
    "no_teacher",
    "resnet",
    "reuse_classifier",
    "shufflenet_v1",
    "shufflenet_v2",
    "size",
    "spread_tail",
    "to_int8",
    "top_k",
    "vgg",
    "vision_transformer",
    "wide_resnet",
    "with_head",
]
