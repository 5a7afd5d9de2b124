"""Files of a published network in one folder: `config.json`, its weights, and what they have to agree on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkd.pytorch.entries import is_floating
from jaxkd.pytorch.files import stored_tensors

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Names of weight files, the one that is read first."""
_INDEX = ".index.json"
_SHOWN = 4
_SPARE = 128
"""Rows that an embedding may have more than tokens: it may be padded to a multiple of 64 or 128."""


def weight_files(folder: Path) -> list[str]:
    """Finds the weight files of a folder.

    Args:
      folder: The folder.

    Returns:
      Those of `WEIGHTS` that are there.
    """
    return [name for name in WEIGHTS if (folder / name).is_file()]


def read_config(folder: Path) -> dict[str, Any]:
    """Reads `config.json`.

    Args:
      folder: The folder.

    Returns:
      The configuration of the network.

    Raises:
      OSError: If it is not there or cannot be read.
      ValueError: If it is no JSON object, does not say what kind of network it is, or says that the weights are
        quantised.
    """
    config = _read(folder / CONFIG, dict)
    if not isinstance(config.get("model_type"), str):
        raise ValueError(
            f"{folder / CONFIG} has no 'model_type', such as \"bert\": take the file that was published with the "
            "weights."
        )
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "") if isinstance(quantised, Mapping) else ""
        raise ValueError(
            f"{folder / CONFIG} says that the weights are quantised{f' ({method})' if method else ''} in its "
            "'quantization_config': give the weights from before that, in float32, bfloat16 or float16."
        )
    return config


def read_weights(folder: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Reads the tensors of a folder, from one file or from its shards.

    Args:
      folder: The folder.

    Returns:
      Name -> array as stored, without integer buffers; and sentences on what was left aside.

    Raises:
      OSError: If no weights or a shard are there, or cannot be read.
      ValueError: If the index does not fit the shards, a folder holds two networks, or tensors need scales.
    """
    found = weight_files(folder)
    if not found:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".h5", ".msgpack"))
        held = f" but {', '.join(others[:_SHOWN])}" if others else ""
        how = "rename the one that is meant" if others else "fetch one of them"
        raise FileNotFoundError(f"{folder} has none of {', '.join(WEIGHTS)}{held}: {how}.")
    chosen, notes = found[0], []
    tensors = _read_index(folder, chosen) if chosen.endswith(_INDEX) else stored_tensors(folder / chosen)
    if chosen + _INDEX in found:
        shards = set(_read_map(folder / f"{chosen}{_INDEX}").values())
        if shards != {chosen}:
            raise ValueError(
                f"{folder} holds two networks, {chosen} and the shards of {chosen}{_INDEX}: remove the one that is not "
                "meant."
            )
    if aside := [name for name in found[1:] if not name.startswith(chosen)]:
        notes.append(f"{chosen} is read, and {', '.join(aside)} beside it is not")
    _check_formats(folder / chosen, tensors)
    return {name: x for name, x in sorted(tensors.items()) if is_floating(x.dtype)}, tuple(notes)


def check_vocabulary(folder: Path, rows: int) -> None:
    """Raises ValueError if the tokens of a folder's tokenizer are not those of its embedding.

    An embedding may have some rows more than tokens, as published ones are padded: one in a hundred, or 128 if those
    are at most one in eight.

    Args:
      folder: The folder; one without a tokenizer passes.
      rows: Rows of the embedding V.

    Raises:
      OSError: If the tokenizer cannot be read.
      ValueError: If a token has no row, or far more rows than that have no token.
    """
    found = _tokens(folder)
    if found is None:
        return
    name, size = found
    if size > rows or rows - size > max(rows // 100, min(_SPARE, rows // 8)):
        raise ValueError(
            f"{folder / name} has {size} tokens but the embedding of the weights has {rows} rows: give the tokenizer "
            "that was published with these weights."
        )


def read_pooling(folder: Path) -> str | None:
    """Reads how a sentence-transformers folder makes one vector of a text.

    Args:
      folder: The folder.

    Returns:
      "mean" or "cls"; None if the folder does not say.

    Raises:
      OSError: If a file cannot be read.
      ValueError: If it pools in another way, or has further layers.
    """
    path = folder / "modules.json"
    modules = _read(path, list) if path.is_file() else []
    types = [str(x.get("type", "")).rpartition(".")[2] if isinstance(x, dict) else "nothing" for x in modules]
    if others := [kind for kind in types if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ValueError(
            f"{path} has {', '.join(others)} after the network, which is not computed here: give a folder of "
            "Transformer, Pooling and Normalize alone."
        )
    path = folder / "1_Pooling" / CONFIG
    if not path.is_file():
        return None
    config = _read(path, dict)
    on = [name.removeprefix("pooling_mode_") for name, x in config.items() if name.startswith("pooling_mode_") and x]
    if isinstance(mode := config.get("pooling_mode"), str):  # as later versions write it
        on = [mode]
    ways = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if len(on) != 1 or on[0] not in ways:
        raise ValueError(
            f"{path} pools by {' and '.join(on) or 'nothing'}, and here are mean_tokens and cls_token alone: pass "
            'pool="mean" or "cls" if one of them is meant.'
        )
    return ways[on[0]]


def read_max_length(folder: Path) -> int:
    """Reads the longest sequence that the tokenizer of a folder is meant for.

    It is `max_seq_length` of sentence-transformers, or else `model_max_length` of the tokenizer. A truncation that
    `tokenizer.json` states does not count: the libraries that publish such folders replace it by these numbers.

    Args:
      folder: The folder.

    Returns:
      Number of tokens, special ones among them; sys.maxsize if no file says.

    Raises:
      OSError: If a file cannot be read.
      ValueError: If a file is no JSON.
    """
    for file, field in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        told = _read(folder / file, dict).get(field) if (folder / file).is_file() else None
        if isinstance(told, int) and told > 0:
            return told
    return sys.maxsize


def _check_formats(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for weights whose values need scales."""
    small = [f"{name} ({x.dtype})" for name, x in tensors.items() if x.dtype.name.startswith(("float8", "float4"))]
    scales = [name for name in tensors if name.endswith(("_scale", "_scale_inv", ".scale", ".scales", ".SCB"))]
    integers = [f"{n} ({x.dtype})" for n, x in tensors.items() if n.endswith("weight") and x.dtype.kind in "iub"]
    if not small and not integers:
        return
    beside = f"the scale tensors {_some(scales)} stand beside them" if scales else "no tensors of scales are there"
    raise ValueError(
        f"{path} holds the weights {_some(small or integers)}, whose values need scales, and {beside}: write them out "
        "as float32, bfloat16 or float16."
    )


def _read_index(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Tensors of all shards that an index names."""
    path = folder / name
    places = _read_map(path)
    tensors: dict[str, np.ndarray] = {}
    absent = [shard for shard in sorted(set(places.values())) if not (folder / shard).is_file()]
    if absent:
        raise FileNotFoundError(f"{path} names {_some(absent)}, which {folder} lacks: fetch them too.")
    for shard in sorted(set(places.values())):
        held = stored_tensors(folder / shard)
        lacking = [tensor for tensor, place in places.items() if place == shard and tensor not in held]
        if lacking:
            raise ValueError(f"{path} says that {shard} holds {_some(lacking)}, but it does not: fetch both again.")
        if twice := held.keys() & tensors.keys():
            raise ValueError(f"{path} has shards of which two hold {_some(sorted(twice))}: fetch them again.")
        tensors |= held
    return tensors


def _read_map(path: Path) -> dict[str, str]:
    """Tensor -> file name of its shard."""
    places = _read(path, dict).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} has no 'weight_map' from tensors to files: fetch it again.")
    odd = [place for place in places.values() if not isinstance(place, str) or Path(place).name != place]
    if odd:
        raise ValueError(f"{path} names the shard {odd[0]!r}, which is no file beside it: fetch it again.")
    return places


def _tokens(folder: Path) -> tuple[str, int] | None:
    """The tokenizer's file, and one more than its highest token; None if there is none."""
    path = folder / "tokenizer.json"
    if path.is_file():
        held = _read(path, dict)
        model = held.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        listed = range(len(vocabulary)) if isinstance(vocabulary, list) else ()
        ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else [*listed]
        more = held.get("added_tokens") or []
        added = [x.get("id") for x in more if isinstance(x, dict)] if isinstance(more, list) else [None]
        if not ids or not all(isinstance(x, int) for x in (*ids, *added)):
            raise ValueError(f"{path} has no vocabulary of numbered tokens ('model', 'vocab'): fetch it again.")
        return path.name, 1 + max((*ids, *added))
    path = folder / "vocab.txt"
    if path.is_file():
        with path.open("rb") as file:
            return path.name, sum(1 for _ in file)
    return None


def _read(path: Path, kind: type) -> Any:
    """Content of a JSON file: an object (dict) or a list."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise type(error)(f"cannot read {path} ({error.strerror or error}): make it a readable file.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again.") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} should hold a JSON {'object' if kind is dict else 'list'}: fetch it again.")
    return value


def _some(names: Sequence[str]) -> str:
    """First few names, and the number of the others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
