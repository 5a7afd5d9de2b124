"""Models: networks with named intermediates, and the makers that turn any network into a `Model`."""

from jaxkd.models.adapters import from_linen, init
from jaxkd.models.alignment import match_activations, match_weights
from jaxkd.models.audio.depthwise import Stream, depthwise_net, depthwise_stream
from jaxkd.models.audio.recurrent import recurrent_net
from jaxkd.models.audio.spectrum_cnn import spectrum_cnn
from jaxkd.models.axes import Axes, Heads, plain_axes, resnet_axes, take_channels, transformer_axes
from jaxkd.models.bottleneck import BOTTLENECKS, add_bottlenecks, with_bottlenecks
from jaxkd.models.combine import (
    cached,
    ensemble,
    join,
    mean_logits,
    mean_probabilities,
    no_teacher,
    pick_member,
    stack,
    stacked,
    with_head,
)
from jaxkd.models.depth import fuse_blocks, neighbours, take_blocks
from jaxkd.models.detection.decode import Detections, detect, suppress
from jaxkd.models.detection.detector import apply_head, detector
from jaxkd.models.detection.targets import Targets, assign
from jaxkd.models.exits import with_exits, without_exits
from jaxkd.models.frozen import freeze, frozen, thaw
from jaxkd.models.graph.sensor_mlp import sensor_mlp
from jaxkd.models.graph.tgcn import normalise_adjacency, tgcn
from jaxkd.models.heads import at_head, with_heads
from jaxkd.models.importance import mean_activations, weight_norms
from jaxkd.models.inherit import inherit
from jaxkd.models.joined import joined
from jaxkd.models.lora import LORA, add_lora, lora, merge_lora, without_base
from jaxkd.models.modalities import at_feature, fused, seeing, side_by_side
from jaxkd.models.nnx_modules import from_nnx
from jaxkd.models.precision import Int8, cast, from_int8, in_dtype, to_int8
from jaxkd.models.reused import reuse_classifier
from jaxkd.models.selection import at_random, by_importance, evenly, first, select
from jaxkd.models.size import count_parameters, size
from jaxkd.models.soups import average, greedy_soup
from jaxkd.models.stages import Stages
from jaxkd.models.statistics import reestimate_statistics, unbiased_variance
from jaxkd.models.tabular.mlp import table_mlp
from jaxkd.models.tabular.recommenders import matrix_factorisation, two_towers
from jaxkd.models.text.bag import bag_of_embeddings
from jaxkd.models.text.bert import bert, modern_bert
from jaxkd.models.text.cnn import text_cnn
from jaxkd.models.text.decoder import language_model
from jaxkd.models.text.embedding import with_embedding
from jaxkd.models.text.gru import bigru
from jaxkd.models.text.pooling import first_token, mean_of_tokens, sentence_embeddings
from jaxkd.models.text.static import (
    in_basis,
    narrowed,
    principal_basis,
    static_embeddings,
    to_basis,
    token_weights,
    zipf_weights,
)
from jaxkd.models.top_k import KEPT, keep_top_k, spread_tail, top_k
from jaxkd.models.views import at_resolution, reading, select_classes, with_channels
from jaxkd.models.vision.convnet import convnet
from jaxkd.models.vision.convnext import convnext
from jaxkd.models.vision.efficientnet import efficientnet, mnasnet, mobilenet_v3
from jaxkd.models.vision.lenet import lenet
from jaxkd.models.vision.mlp import mlp
from jaxkd.models.vision.mobilenet import mobilenet_v1, mobilenet_v2
from jaxkd.models.vision.positions import rotary_by_index, rotary_by_place
from jaxkd.models.vision.resnet import imagenet_resnet, resnet
from jaxkd.models.vision.shufflenet import shufflenet_v1, shufflenet_v2
from jaxkd.models.vision.unet import unet
from jaxkd.models.vision.vgg import vgg
from jaxkd.models.vision.vision_transformer import LatentPool, vision_transformer
from jaxkd.models.vision.wide_resnet import wide_resnet

__all__ = [
    "BOTTLENECKS",
    "KEPT",
    "LORA",
    "Axes",
    "Detections",
    "Heads",
    "Int8",
    "LatentPool",
    "Stages",
    "Stream",
    "Targets",
    "add_bottlenecks",
    "add_lora",
    "apply_head",
    "assign",
    "at_feature",
    "at_head",
    "at_random",
    "at_resolution",
    "average",
    "bag_of_embeddings",
    "bert",
    "bigru",
    "by_importance",
    "cached",
    "cast",
    "convnet",
    "convnext",
    "count_parameters",
    "depthwise_net",
    "depthwise_stream",
    "detect",
    "detector",
    "efficientnet",
    "ensemble",
    "evenly",
    "first",
    "first_token",
    "freeze",
    "from_int8",
    "from_linen",
    "from_nnx",
    "frozen",
    "fuse_blocks",
    "fused",
    "greedy_soup",
    "imagenet_resnet",
    "in_basis",
    "in_dtype",
    "inherit",
    "init",
    "join",
    "joined",
    "keep_top_k",
    "language_model",
    "lenet",
    "lora",
    "match_activations",
    "match_weights",
    "matrix_factorisation",
    "mean_activations",
    "mean_logits",
    "mean_of_tokens",
    "mean_probabilities",
    "merge_lora",
    "mlp",
    "mnasnet",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "modern_bert",
    "narrowed",
    "neighbours",
    "no_teacher",
    "normalise_adjacency",
    "pick_member",
    "plain_axes",
    "principal_basis",
    "reading",
    "recurrent_net",
    "reestimate_statistics",
    "resnet",
    "resnet_axes",
    "reuse_classifier",
    "rotary_by_index",
    "rotary_by_place",
    "seeing",
    "select",
    "select_classes",
    "sensor_mlp",
    "sentence_embeddings",
    "shufflenet_v1",
    "shufflenet_v2",
    "side_by_side",
    "size",
    "spectrum_cnn",
    "spread_tail",
    "stack",
    "stacked",
    "static_embeddings",
    "suppress",
    "table_mlp",
    "take_blocks",
    "take_channels",
    "text_cnn",
    "tgcn",
    "thaw",
    "to_basis",
    "to_int8",
    "token_weights",
    "top_k",
    "transformer_axes",
    "two_towers",
    "unbiased_variance",
    "unet",
    "vgg",
    "vision_transformer",
    "weight_norms",
    "wide_resnet",
    "with_bottlenecks",
    "with_channels",
    "with_embedding",
    "with_exits",
    "with_head",
    "with_heads",
    "without_base",
    "without_exits",
    "zipf_weights",
]
