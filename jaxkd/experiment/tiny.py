"""Small stand-ins for smoke runs: sentences made in memory, and an encoder with random weights in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save as to_safetensors

from jaxkd import data
from jaxkd.files import prepare_file, replacing, write_json

SENTENCES = "sentences"
"""Value of `--source` that stands for `sentences`."""

_PARTS = {"train": 96, "validation": 32, "test": 32}
_POSITIVE = ("charming", "moving", "bright", "funny", "tender", "clever", "rich", "warm")
_NEGATIVE = ("dull", "tedious", "hollow", "clumsy", "bland", "stale", "cold", "messy")
_THINGS = ("film", "plot", "cast", "score", "dialogue", "ending", "story", "hero", "comedy", "drama")


def sentences() -> dict[str, dict[str, list[str]]]:
    """Makes short sentences of two classes, always the same.

    Returns:
      Split -> {"sentence": texts, "label": "negative" or "positive"}.
    """
    random = np.random.RandomState(0)  # its stream is frozen for good
    splits: dict[str, dict[str, list[str]]] = {}
    for split, size in _PARTS.items():
        texts, labels = [], []
        for row in range(size):
            words = _POSITIVE if row % 2 else _NEGATIVE
            one, other = (_THINGS[k] for k in random.permutation(len(_THINGS))[:2])
            first, second = (words[k] for k in random.permutation(len(words))[:2])
            more = f" , and the {other} is {second}" * int(random.randint(0, 3))
            texts.append(f"the {one} number {row} is {first}{more} .")
            labels.append("positive" if row % 2 else "negative")
        splits[split] = {"sentence": texts, "label": labels}
    return splits


def write_tiny_encoder(folder: Path, texts: Sequence[str], max_length: int) -> Path:
    """Writes an encoder like BERT with one small layer of random weights, and a tokenizer trained on texts.

    Args:
      folder: Folder of config.json, model.safetensors and tokenizer.json; made if it is missing.
      texts: Texts.
      max_length: Most tokens of a text.

    Returns:
      The folder.

    Raises:
      OSError: If it cannot be written.
    """
    tokenizer = data.train_tokenizer(texts, 4000, name="the tokenizer of the tiny teacher")
    width, inner, layers = 16, 64, 1
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": tokenizer.size,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": max_length,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": tokenizer.pad,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (tokenizer.size, width),
        "embeddings.position_embeddings.weight": (max_length, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    dense = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
    dense |= {"attention.output.dense": (width, width), "intermediate.dense": (inner, width)}
    dense |= {"output.dense": (width, inner)}
    for layer in range(layers):
        for name, (rows, columns) in dense.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{layer}.{norm}.{part}": (width,) for part in ("weight", "bias")}
    shapes |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    random = np.random.RandomState(0)
    tensors = {name: random.normal(scale=0.1, size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors |= {name: np.ones_like(x) for name, x in tensors.items() if name.endswith("LayerNorm.weight")}
    prepare_file(folder / "config.json")
    tokenizer.save(folder / "tokenizer.json")
    with replacing(folder / "model.safetensors") as file:
        file.write(to_safetensors(tensors))
    write_json(folder / "config.json", config)
    return folder
