"""Vision transformers of timm by their names and arguments: ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, EVA-02, ..."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import models
from jaxkd.kernels.dense import gelu
from jaxkd.models.text.pooling import each_token
from jaxkd.pytorch.published import Published, vit_timm

_SIZES: Mapping[str, tuple[float, ...]] = {
    "tiny": (192, 12, 3),
    "xsmall": (256, 10, 4),
    "wee": (256, 14, 4, 5),
    "little": (320, 14, 5, 5.6),
    "small": (384, 12, 6),
    "small_plus": (384, 12, 6),
    "medium": (512, 12, 8),
    "mediumd": (512, 20, 8),
    "betwixt": (640, 12, 10),
    "base": (768, 12, 12),
    "so150m": (896, 18, 14, 2.572),
    "so150m2": (832, 21, 13, 34 / 13),
    "large": (1024, 24, 16),
    "intern300m": (1024, 24, 16),
    "so400m": (1152, 27, 16, 3.7362),
    "huge": (1280, 32, 16),
    "huge_plus": (1280, 32, 20),
    "giant": (1408, 40, 16, 48 / 11),
    "gigantic": (1664, 48, 16, 64 / 13),
    "giantopt": (1536, 40, 16),
}
"""Size -> D, blocks, heads, and width inside the perceptrons over D where it is not 4."""
_SWIGLU = {"embed_dim": 1536, "num_heads": 24, "mlp_ratio": 2.66667 * 2, "mlp_layer": "SwiGLUPacked"}
_EVA: Mapping[str, Any] = {"eva": True, "global_pool": "avg", "fc_norm": None, "rope_temperature": 10_000.0}
_DINOV3: Mapping[str, Any] = {
    **_EVA,
    "init_values": 1e-5,
    "reg_tokens": 4,
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
    "pos_embed": "none",
    "fc_norm": False,
    "epsilon": 1e-5,
}
_GAP = {"class_token": False, "global_pool": "avg"}
_TESTS: Mapping[str, dict[str, Any]] = {
    "test_vit": {"depth": 6, "mlp_ratio": 3},
    "test_vit2": {"depth": 8, "mlp_ratio": 3, **_GAP, "reg_tokens": 1, "init_values": 1e-5},
    "test_vit3": {
        **{"embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2, "class_token": False, "reg_tokens": 1},
        **{"global_pool": "map", "pool_include_prefix": True, "init_values": 1e-5},
    },
    "test_vit4": {
        **{"embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 3, **_GAP, "reg_tokens": 1},
        **{"init_values": 1e-5, "norm_layer": "rmsnorm"},
    },
}
_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}
_ALIASES = {
    "num_reg_tokens": "reg_tokens",
    "use_fc_norm": "fc_norm",
    "use_post_transformer_norm": "final_norm",
    "use_pre_transformer_norm": "pre_norm",
}
"""What EVA's networks call arguments of the others."""


def _largest(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.max(jnp.where(mask[..., None], x, -jnp.inf), axis=1)


def _both(x: jax.Array, mask: jax.Array) -> jax.Array:
    return (_largest(x, mask) + models.mean_of_tokens(x, mask)) / 2


_POOLS: Mapping[str, Any] = {
    "token": models.first_token,
    "avg": models.mean_of_tokens,
    "max": _largest,
    "avgmax": _both,
    "map": models.LatentPool,
    "": each_token,
}


def transformer_arguments(name: str) -> dict[str, Any] | None:
    """Arguments that timm's maker of a vision transformer gives for its name.

    Args:
      name: "vit_small_patch14_reg4_dinov2", ...

    Returns:
      Argument -> value as timm calls them, EVA's by the others' names; None for other networks.
    """
    if name in _TESTS:
        return {"patch_size": 16, "embed_dim": 64, "num_heads": 2, **_TESTS[name]}
    sizes = "|".join(sorted(_SIZES, key=len, reverse=True))
    parts = re.fullmatch(
        rf"(vit|deit|deit3|flexivit|eva|eva02)_({sizes})(?:_(distilled))?(?:_patch(\d+))?(?:_(.+))?", name
    )
    if parts is None:
        return None
    family, size, distilled, patch, rest = parts.groups()
    width, depth, heads, *ratio = _SIZES[size]
    found: dict[str, Any] = {"patch_size": int(patch or 16), "embed_dim": width, "depth": depth, "num_heads": heads}
    found |= {"mlp_ratio": ratio[0]} if ratio else {}
    tags = [tag for tag in (rest or "").split("_") if tag and not tag.isdigit()]
    if family == "vit":
        changes = _vit(size, tags, found["patch_size"], name)
    else:
        changes = None if tags else _family(family, size, bool(distilled))
    return None if changes is None else found | changes


def _family(family: str, size: str, distilled: bool) -> dict[str, Any] | None:
    """Changes of the networks that have one form by size."""
    if family == "eva02":
        wide = {"qkv_fused": False, "scale_mlp": True} if size in ("base", "large") else {}
        return {**_EVA, "mlp_ratio": 4 * 2 / 3, "swiglu_mlp": True, "use_rot_pos_emb": True, "trained": 16, **wide}
    changes: dict[str, dict[str, Any]] = {
        "deit": {"distilled": distilled},
        "deit3": {"no_embed_class": True, "init_values": 1e-6},
        "flexivit": {"no_embed_class": True},
        "eva": dict(_EVA) if size == "giant" else {"global_pool": "avg"},
    }
    return changes[family]


_TAGS = r"gap|map|clip|quickgelu|siglip|dinov2|dinov3|qkvb|tipsv2|plus|miil|radio|v3|v4|36x1|reg\d+"


def _vit(size: str, tags: list[str], patch: int, name: str) -> dict[str, Any] | None:
    """Changes of a ViT by the tags in its name; None for a tag that is not known."""
    if not all(re.fullmatch(_TAGS, tag) for tag in tags):
        return None
    if "dinov3" in tags:
        gated = {"swiglu_mlp": True, "swiglu_align_to": 8} if size.endswith("plus") else {}
        return {**_DINOV3, "qkv_bias": "qkvb" in tags, **gated}
    registers = [int(tag[3:]) for tag in tags if tag.startswith("reg")]
    changes: dict[str, Any] = {"reg_tokens": registers[0]} if registers else {}
    if "dinov2" in tags or "tipsv2" in tags:
        changes |= {"init_values": 1e-5, "no_embed_class": bool(registers)} | (_SWIGLU if size == "giant" else {})
    if "plus" in tags:
        changes |= {"embed_dim": 896, "num_heads": 14} | ({} if "clip" in tags else {"init_values": 1e-5})
    if "clip" in tags:
        changes |= {"pre_norm": True, "epsilon": 1e-5} | ({"act_layer": "quick_gelu"} if "quickgelu" in tags else {})
    if "siglip" in tags:
        tanh = (size, patch) in (("base", 32), ("so400m", 16), ("giantopt", 16)) or (size == "large" and "512" in name)
        changes |= {"class_token": False, "global_pool": "map"} | ({"act_layer": "gelu_tanh"} if tanh else {})
        changes |= {**_GAP, "fc_norm": False} if "gap" in tags else {}
    elif "gap" in tags or "map" in tags:
        changes |= _pooled(size, bool(registers), "map" in tags)
    if "radio" in tags:
        changes |= {"reg_tokens": 7 if "v3" in tags else 9, "no_embed_class": True, "final_norm": False}
        changes |= {"init_values": 1e-5} if size in ("base", "large") else {}
        changes |= {"embed_dim": 1536, "num_heads": 24, "mlp_ratio": 4} if size == "giant" else {}
    changes |= {"mlp_ratio": 4304 / 1152} if size == "so400m" and "siglip" not in tags else {}
    changes |= {"qkv_bias": False} if "miil" in tags else {}
    changes |= {"depth": 36, "init_values": 1e-5} if "36x1" in tags else {}
    return changes | ({"init_values": 0.1, "final_norm": False} if size == "intern300m" else {})


def _pooled(size: str, registers: bool, by_attention: bool) -> dict[str, Any]:
    """Changes of the networks whose names have "gap" or "map"."""
    found: dict[str, Any] = {**_GAP, "global_pool": "map" if by_attention else "avg"}
    if not registers:
        found |= {"fc_norm": False} | ({"num_heads": 16} if size == "base" else {})
        return found | ({"qkv_bias": False, "init_values": 1e-6} if size in ("medium", "betwixt") else {})
    if size == "so150m":
        return found | ({} if by_attention else {"fc_norm": False})
    if size == "so150m2":
        return found | {"init_values": 1e-5, "qkv_bias": False}
    return found | {"no_embed_class": True} | ({} if size == "base" else {"init_values": 1e-5})


_IGNORED = (
    *("img_size", "in_chans", "dynamic_img_size", "weight_init", "fix_init", "strict_img_size", "head_init_scale"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
)
"""Arguments that the images decide, or that act on a training alone."""
_TAKEN: Mapping[str, Any] = {
    **{"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0, "qkv_bias": True},
    **{"qk_norm": False, "proj_bias": True, "init_values": None, "class_token": True, "pos_embed": "learn"},
    **{"no_embed_class": False, "reg_tokens": 0, "pre_norm": False, "final_norm": None, "fc_norm": None},
    **{"pool_include_prefix": False, "act_layer": "gelu", "norm_layer": None, "global_pool": "token"},
    **{"mlp_layer": "", "distilled": False, "epsilon": 1e-6},
}
_TAKEN_BY_EVA: Mapping[str, Any] = {
    **{"eva": False, "qkv_fused": True, "swiglu_mlp": False, "swiglu_align_to": 0, "scale_mlp": False},
    **{"use_rot_pos_emb": False, "rope_type": "cat", "rope_temperature": 10_000.0, "rope_rotate_half": False},
    **{"use_abs_pos_emb": True, "trained": None, "ref_feat_shape": None},
}


def transformer(name: str, arguments: Mapping[str, Any]) -> Published:
    """Vision transformer with the arguments of timm's maker.

    Args:
      name: Its name, for messages.
      arguments: All arguments, those that its name stands for among them.

    Returns:
      Its maker and rules.

    Raises:
      ValueError: If there is an argument or a value that it is not known for.
    """
    a = _checked(name, arguments)
    final = a["final_norm"] is None or bool(a["final_norm"])
    pooled = a["global_pool"] in (("avg",) if a["eva"] else ("avg", "avgmax", "max"))
    pooled = pooled if a["fc_norm"] is None else bool(a["fc_norm"])
    tokens = not pooled if a["final_norm"] is None or not a["eva"] else final
    options = {
        "patch": a["patch_size"],
        "layers": a["depth"],
        "width": a["embed_dim"],
        "heads": a["num_heads"],
        "class_token": a["class_token"],
        "distilled": a["distilled"],
        "registers": a["reg_tokens"],
        "positions": a["pos_embed"] not in ("", "none") and a["use_abs_pos_emb"],
        "positions_first": not a["no_embed_class"],
        "rotary": _rotary(a),
        "pool": _POOLS[a["global_pool"]],
        "pool_first": a["pool_include_prefix"],
        "norm_first": a["pre_norm"],
        "norm_tokens": tokens and (final or a["eva"]),
        "norm_pooled": pooled and (final or a["eva"]),
    }
    gated = bool(a["mlp_layer"] or a["swiglu_mlp"])
    split = gated and bool(a["scale_mlp"] or a["swiglu_align_to"])
    rules = vit_timm(packed=gated and not split, split=split, separate=not a["qkv_fused"], eva=a["eva"])
    return Published(functools.partial(models.vision_transformer, **options, **_blocks(a, gated)), rules)


def _checked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments with their values; raises ValueError for an unknown one."""
    given = {_ALIASES.get(key, key): value for key, value in arguments.items() if key not in _IGNORED}
    known = {**_TAKEN, **_TAKEN_BY_EVA}
    if given.keys() - known.keys():
        raise ValueError(
            f"{name} is given {', '.join(sorted(given.keys() - known.keys()))}: arguments known here are "
            f"{', '.join(sorted([*known, *_IGNORED]))}."
        )
    values: Mapping[str, Any] = {"global_pool": _POOLS, "act_layer": _ACTIVATIONS, "mlp_layer": ("", "SwiGLUPacked")}
    for key, ways in values.items():
        if key in given and given[key] not in ways:
            raise ValueError(f"{name} is given {key}={given[key]!r}: choose one of {', '.join(map(repr, ways))}.")
    return known | given


def _blocks(a: Mapping[str, Any], gated: bool) -> dict[str, Any]:
    """Fields of the blocks' form."""
    hidden = int(a["embed_dim"] * a["mlp_ratio"])
    if a["mlp_layer"]:
        hidden //= 2  # timm counts both first layers
    if a["swiglu_mlp"] and a["swiglu_align_to"]:
        hidden += -hidden % a["swiglu_align_to"]
    return {
        "hidden": hidden,
        "gated": gated,
        "activation": jax.nn.silu if gated else _ACTIVATIONS[a["act_layer"]],
        "scale": a["init_values"] if a["eva"] else a["init_values"] or None,
        "attention_bias": a["qkv_bias"],
        "key_bias": not a["eva"],
        "out_bias": a["proj_bias"],
        "perceptron_bias": a["proj_bias"],
        "query_norm": a["qk_norm"],
        "inner_norm": a["scale_mlp"],
        "rms": "rms" in str(a["norm_layer"]),
        "epsilon": a["epsilon"],
    }


def _rotary(a: Mapping[str, Any]) -> Any:
    """Rotary positions by the arguments."""
    if not a["use_rot_pos_emb"]:
        return None
    if a["rope_type"] == "dinov3":
        return models.rotary_by_place(a["rope_temperature"])
    trained = a["ref_feat_shape"] or a["trained"]
    trained = trained[0] if isinstance(trained, list | tuple) else trained
    return models.rotary_by_index(a["rope_temperature"], trained=trained)
