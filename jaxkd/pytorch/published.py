"""Networks with published PyTorch weights: their makers here, and the rules of their tensors' names.

Two tables by name, the CIFAR-100 distillation benchmark's and torchvision's networks; timm's are in `timm.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxkd import models
from jaxkd.pytorch.names import Rule
from jaxkd.types import Model


class Published(NamedTuple):
    """Network with published weights.

    Attributes:
      make: (num_classes, **options) -> Model, with the options of its family that are left open (`remat`, ...).
      rules: Names of its layers in PyTorch and here.
    """

    make: Callable[..., Model]
    rules: Sequence[Rule]


def _sequential(theirs: str, ours: str, first: int = 0) -> tuple[Rule, Rule]:
    """Rules of a convolution and its norm, which PyTorch numbers one after the other."""
    return Rule(f"{theirs}.{first}", ours.format("conv")), Rule(f"{theirs}.{first + 1}", ours.format("norm"))


def _deep_stem() -> tuple[Rule, ...]:
    """Rules of the three convolutions of timm's deep stem."""
    return *_sequential("conv1", "stem_{}1"), *_sequential("conv1", "stem_{}2", 3), Rule("conv1.6", "stem_conv")


def _residual(shortcut: str, head: str, *, deep: bool = False, average: bool = False) -> tuple[Rule, ...]:
    """Rules of ResNets; `deep` and `average` as for `models.imagenet_resnet`."""
    return (
        *(_deep_stem() if deep else ()),
        Rule("conv1", "stem_conv"),
        Rule("bn1", "stem_norm"),
        Rule("layer{s}.{b}.conv{n}", "stage{s}_block{b+1}/conv{n}"),
        Rule("layer{s}.{b}.bn{n}", "stage{s}_block{b+1}/norm{n}"),
        *_sequential(f"layer{{s}}.{{b}}.{shortcut}", "stage{{s}}_block{{b+1}}/shortcut_{}", int(average)),
        Rule("conv2", "last_conv"),
        Rule("bn2", "last_norm"),
        Rule(head, "head"),
    )


RESNET = _residual("downsample", "fc")
"""ResNets of the benchmark (but for those of `RESNET_LINEAR`), torchvision and timm."""
RESNET_C = _residual("downsample", "fc", deep=True)
RESNET_D = _residual("downsample", "fc", deep=True, average=True)
"""timm's."""
RESNET_LINEAR = _residual("shortcut", "linear")
"""The benchmark's ResNet18 to ResNet152, and its ShuffleNets."""
WIDE_RESNET = (
    Rule("conv1", "stem_conv"),
    Rule("block{s}.layer.{b}.bn{n}", "stage{s}_block{b+1}/norm{n}"),
    Rule("block{s}.layer.{b}.conv{n}", "stage{s}_block{b+1}/conv{n}"),
    Rule("block{s}.layer.{b}.convShortcut", "stage{s}_block{b+1}/shortcut_conv"),
    Rule("bn1", "norm"),
    Rule("fc", "head"),
)
VGG = (
    Rule("block{s}.{3*i}", "stage{s}_conv{i+1}"),
    Rule("block{s}.{3*i+1}", "stage{s}_norm{i+1}"),
    Rule("classifier", "head"),
)
MOBILENET_V2_BENCHMARK = (
    *_sequential("conv1", "stem_{}"),
    *_sequential("blocks.{g}.{b}.conv", "group{{g}}_block{{b}}/expand_{}"),
    *_sequential("blocks.{g}.{b}.conv", "group{{g}}_block{{b}}/depthwise_{}", 3),
    *_sequential("blocks.{g}.{b}.conv", "group{{g}}_block{{b}}/project_{}", 6),
    *_sequential("conv2", "last_{}"),
    Rule("classifier.0", "head"),
)


def _mobilenet_v2_torchvision() -> tuple[Rule, ...]:
    """Rules of torchvision's MobileNet V2: consecutive numbers of blocks; the first does not expand."""
    rules = [*_sequential("features.0", "stem_{}")]
    blocks = [(g, b) for g, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for b in range(count)]
    for number, (g, b) in enumerate(blocks, 1):
        theirs, ours, first = f"features.{number}.conv", f"group{g}_block{b}", 1 if g else 0
        rules += _sequential(f"{theirs}.0", f"{ours}/expand_{{}}") if first else ()
        rules += _sequential(f"{theirs}.{first}", f"{ours}/depthwise_{{}}")
        rules += _sequential(theirs, f"{ours}/project_{{}}", first + 1)
    return (*rules, *_sequential(f"features.{len(blocks) + 1}", "last_{}"), Rule("classifier.1", "head"))


MOBILENET_V2_TORCHVISION = _mobilenet_v2_torchvision()


def _mobilenet_timm(version: int) -> tuple[Rule, ...]:
    """Rules of timm's MobileNets; a block that does not expand counts its norms from the depthwise one on."""
    without = (
        Rule("blocks.{g}.{b}.conv_dw", "group{g}_block{b}/depthwise_conv"),
        Rule("blocks.{g}.{b}.bn1", "group{g}_block{b}/depthwise_norm"),
        Rule("blocks.{g}.{b}.conv_pw", "group{g}_block{b}/project_conv"),
        Rule("blocks.{g}.{b}.bn2", "group{g}_block{b}/project_norm"),
    )
    first = tuple(Rule(r.theirs.replace("{g}", "0"), str(r.ours).replace("{g}", "0")) for r in without)
    expanding = (
        Rule("blocks.{g}.{b}.conv_pw", "group{g}_block{b}/expand_conv"),
        Rule("blocks.{g}.{b}.bn1", "group{g}_block{b}/expand_norm"),
        Rule("blocks.{g}.{b}.conv_dw", "group{g}_block{b}/depthwise_conv"),
        Rule("blocks.{g}.{b}.bn2", "group{g}_block{b}/depthwise_norm"),
        Rule("blocks.{g}.{b}.conv_pwl", "group{g}_block{b}/project_conv"),
        Rule("blocks.{g}.{b}.bn3", "group{g}_block{b}/project_norm"),
    )
    return (
        Rule("conv_stem", "stem_conv"),
        Rule("bn1", "stem_norm"),
        *(without if version == 1 else (*first, *expanding)),
        Rule("conv_head", "last_conv"),
        Rule("bn2", "last_norm"),
        Rule("classifier", "head"),
    )


MOBILENET_V1_TIMM = _mobilenet_timm(1)
MOBILENET_V2_TIMM = _mobilenet_timm(2)


def _as_dense(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """Rules of a layer that is a 1x1 convolution in PyTorch and a dense one here."""
    return Rule(f"{theirs}.weight", f"{ours}/kernel", ones=2), Rule(theirs, ours)


EFFICIENTNET_TIMM = (
    *_as_dense("blocks.{g}.{b}.se.conv_reduce", "group{g}_block{b}/squeeze"),
    *_as_dense("blocks.{g}.{b}.se.conv_expand", "group{g}_block{b}/excite"),
    *MOBILENET_V2_TIMM,
)
"""MnasNet too."""


def mobilenet_v3_timm(groups: int) -> tuple[Rule, ...]:
    """Rules of timm's MobileNet V3, whose last convolution has the number after those of the groups.

    Args:
      groups: Number of groups.

    Returns:
      The rules.
    """
    return (
        Rule(f"blocks.{groups}.0.conv", "last_conv"),
        Rule(f"blocks.{groups}.0.bn1", "last_norm"),
        *_as_dense("conv_head", "hidden"),
        *EFFICIENTNET_TIMM,
    )


_QKV = tuple(f"block{{i}}/attention/{part}" for part in ("query", "key", "value"))
VIT_TORCHVISION = (
    Rule("class_token", "class_token"),
    Rule("conv_proj", "patch"),
    Rule("encoder.pos_embedding", "position"),
    Rule("encoder.layers.encoder_layer_{i}.ln_{n}", "block{i}/norm{n}"),
    Rule("encoder.layers.encoder_layer_{i}.self_attention.in_proj_", _QKV),
    Rule("encoder.layers.encoder_layer_{i}.self_attention.out_proj", "block{i}/attention/out"),
    Rule("encoder.layers.encoder_layer_{i}.mlp.0", "block{i}/mlp1"),
    Rule("encoder.layers.encoder_layer_{i}.mlp.3", "block{i}/mlp2"),
    Rule("encoder.ln", "norm"),
    Rule("heads.head", "head"),
)


def vit_timm(
    *, packed: bool = False, split: bool = False, separate: bool = False, eva: bool = False
) -> tuple[Rule, ...]:
    """Rules of timm's vision transformers.

    Args:
      packed: Whether the two first layers of the perceptrons, which are gated, are one tensor.
      split: Whether they are two.
      separate: Whether queries, keys and values are three layers instead of one.
      eva: Whether it is one of EVA's family (EVA-02, DINOv3), whose keys have no bias.

    Returns:
      The rules.
    """
    wide = ("block{i}/mlp1", "block{i}/mlp_gate")
    first: tuple[Rule, ...] = (Rule("blocks.{i}.mlp.fc1", wide if packed else wide[0]),)
    if split:
        first = tuple(Rule(f"blocks.{{i}}.mlp.fc1_{end}", path) for end, path in zip("gx", wide, strict=True))
    attention: tuple[Rule, ...] = (Rule("blocks.{i}.attn.qkv", _QKV),)
    if separate:
        attention = tuple(Rule(f"blocks.{{i}}.attn.{x}_proj", path) for x, path in zip("qkv", _QKV, strict=True))
    own: tuple[Rule, ...] = (Rule("blocks.{i}.ls{n}.gamma", "block{i}/scale{n}"),)
    if eva:
        biases = ((f"blocks.{{i}}.attn.{path.rpartition('/')[2][0]}_", f"{path}/bias") for path in (_QKV[0], _QKV[2]))
        own = (Rule("blocks.{i}.gamma_{n}", "block{i}/scale{n}"), *(Rule(*names) for names in biases if not separate))
    return (
        Rule("cls_token", "class_token"),
        Rule("dist_token", "distillation_token"),
        Rule("reg_token", "register_token"),
        Rule("pos_embed", "position"),
        Rule("patch_embed.proj", "patch"),
        Rule("norm_pre", "embedding_norm"),
        Rule("blocks.{i}.norm{n}", "block{i}/norm{n}"),
        *own,
        *attention,
        *(Rule(f"blocks.{{i}}.attn.{x[0]}_norm", f"block{{i}}/attention/{x}_norm") for x in ("query", "key")),
        Rule("blocks.{i}.attn.proj", "block{i}/attention/out"),
        *first,
        Rule("blocks.{i}.mlp.fc2", "block{i}/mlp2"),
        Rule("blocks.{i}.mlp.norm", "block{i}/inner_norm"),
        Rule("norm", "norm"),
        Rule("attn_pool.latent", "pool/latent"),
        Rule("attn_pool.q", "pool/query"),
        Rule("attn_pool.kv", ("pool/key", "pool/value")),
        Rule("attn_pool.proj", "pool/out"),
        Rule("attn_pool.norm", "pool/norm"),
        Rule("attn_pool.mlp.fc{n}", "pool/mlp{n}"),
        Rule("fc_norm", "pooled_norm"),
        Rule("head", "head"),
        Rule("head_dist", "head_distillation"),
    )


VIT_TIMM = vit_timm()
"""DeiT too."""


def _convnext_torchvision() -> tuple[Rule, ...]:
    """Rules of torchvision's ConvNeXt: odd numbers are stages, even ones the layers between them."""
    rules = [*_sequential("features.0", "stem_{}")]
    for stage in (1, 2, 3, 4):
        theirs, ours = f"features.{2 * stage - 1}.{{b}}", f"stage{stage}_block{{b+1}}"
        rules += [Rule(f"{theirs}.layer_scale", f"{ours}/gamma", ones=2)]
        inside, between = {0: "conv", 2: "norm", 3: "mlp1", 5: "mlp2"}, {0: "norm", 1: "conv"}
        rules += [Rule(f"{theirs}.block.{i}", f"{ours}/{name}") for i, name in inside.items()]
        rules += [Rule(f"features.{2 * stage}.{i}", f"stage{stage + 1}_{name}") for i, name in between.items()]
    return (*rules, Rule("classifier.0", "norm"), Rule("classifier.2", "head"))


CONVNEXT_TORCHVISION = _convnext_torchvision()
_CONVNEXT_MLP = Rule("stages.{s}.blocks.{b}.mlp.fc{n}", "stage{s+1}_block{b+1}/mlp{n}")
CONVNEXT_TIMM = (
    *_sequential("stem", "stem_{}"),
    Rule("stages.{s}.downsample.0", "stage{s+1}_norm"),
    Rule("stages.{s}.downsample.1", "stage{s+1}_conv"),
    Rule("stages.{s}.blocks.{b}.conv_dw", "stage{s+1}_block{b+1}/conv"),
    Rule("stages.{s}.blocks.{b}.norm", "stage{s+1}_block{b+1}/norm"),
    _CONVNEXT_MLP,
    Rule("stages.{s}.blocks.{b}.mlp.grn", "stage{s+1}_block{b+1}/response_norm"),
    Rule("stages.{s}.blocks.{b}.gamma", "stage{s+1}_block{b+1}/gamma"),
    Rule("head.norm", "norm"),
    Rule("head.fc", "head"),
)
CONVNEXT_TIMM_SMALL = (
    Rule(f"{_CONVNEXT_MLP.theirs}.weight", f"{_CONVNEXT_MLP.ours}/kernel", ones=2),
    *CONVNEXT_TIMM,
)
"""The small ones' perceptrons are convolutions of 1x1."""


def _table(make: Callable[..., Model], rules: Sequence[Rule], **sizes: Mapping[str, Any]) -> dict[str, Published]:
    """Networks of one family, from name -> options of its maker."""
    return {name: Published(functools.partial(make, **options), rules) for name, options in sizes.items()}


_CIFAR = {f"resnet{depth}": {"depth": depth} for depth in (8, 14, 20, 32, 44, 56, 110)}
_WIDE = {f"resnet{depth}x4": {"depth": depth, "widen": 4, "stem": 32} for depth in (8, 32)}
_WRN = {f"wrn_{depth}_{widen}": {"depth": depth, "widen": widen} for depth in (16, 28, 40) for widen in (1, 2, 4, 10)}
_LARGE = (18, 34, 50, 101, 152)
_FOR_SMALL_IMAGES = {f"ResNet{depth}": {"depth": depth, "small_images": True} for depth in _LARGE}
RESNET_SIZES = {
    **{f"resnet{depth}": {"depth": depth} for depth in _LARGE},
    **{f"wide_resnet{depth}_2": {"depth": depth, "widen": 2} for depth in (50, 101)},
    "resnext50_32x4d": {"depth": 50, "widen": 2, "groups": 32},
    "resnext101_32x8d": {"depth": 101, "widen": 4, "groups": 32},
    "resnext101_64x4d": {"depth": 101, "widen": 4, "groups": 64},
}
_VIT = {
    "tiny": {"width": 192, "heads": 3},
    "small": {"width": 384, "heads": 6},
    "base": {"width": 768, "heads": 12},
    "large": {"width": 1024, "heads": 16, "layers": 24},
}
CONVNEXT_SIZES = {
    "convnext_tiny": {},
    "convnext_small": {"blocks": (3, 3, 27, 3)},
    "convnext_base": {"blocks": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)},
    "convnext_large": {"blocks": (3, 3, 27, 3), "widths": (192, 384, 768, 1536)},
}

CIFAR100_BENCHMARK: Mapping[str, Published] = {
    **_table(models.resnet, RESNET, **_CIFAR, **_WIDE),
    **_table(models.imagenet_resnet, RESNET_LINEAR, **_FOR_SMALL_IMAGES),
    **_table(models.wide_resnet, WIDE_RESNET, **_WRN),
    **_table(models.vgg, VGG, **{f"vgg{depth}": {"depth": depth} for depth in (8, 11, 13, 16, 19)}),
    **_table(models.mobilenet_v2, MOBILENET_V2_BENCHMARK, MobileNetV2={"widen": 0.5, "small_images": True}),
    **_table(models.shufflenet_v1, RESNET_LINEAR, ShuffleV1={}),
    **_table(models.shufflenet_v2, RESNET_LINEAR, ShuffleV2={}),
}
"""The CIFAR-100 distillation benchmark's, by Tian, Krishnan, Isola (https://github.com/HobbitLong/RepDistiller)."""
TORCHVISION: Mapping[str, Published] = {
    **_table(models.imagenet_resnet, RESNET, **RESNET_SIZES),
    **_table(models.mobilenet_v2, MOBILENET_V2_TORCHVISION, mobilenet_v2={}),
    **_table(
        models.vision_transformer,
        VIT_TORCHVISION,
        **{f"vit_{s[0]}_{patch}": {"patch": patch, **_VIT[s]} for s in ("base", "large") for patch in (16, 32)},
    ),
    **_table(models.convnext, CONVNEXT_TORCHVISION, **CONVNEXT_SIZES),
}
"""torchvision's (https://github.com/pytorch/vision)."""
