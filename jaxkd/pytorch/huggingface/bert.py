"""Networks of BERT's layout from their `config.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import models
from jaxkd.pytorch.names import Rule
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables

_LAYER = "encoder.layer.{i}."
RULES = (
    Rule("embeddings.word_embeddings", "encoder/token"),
    Rule("embeddings.position_embeddings", "encoder/position"),
    Rule("embeddings.token_type_embeddings", "encoder/segment"),
    Rule("embeddings.LayerNorm", "encoder/norm"),
    *(Rule(f"{_LAYER}attention.self.{n}", f"encoder/block{{i}}/attention/{n}") for n in ("query", "key", "value")),
    Rule(f"{_LAYER}attention.output.dense", "encoder/block{i}/attention/out"),
    Rule(f"{_LAYER}attention.output.LayerNorm", "encoder/block{i}/norm1"),
    Rule(f"{_LAYER}intermediate.dense", "encoder/block{i}/mlp1"),
    Rule(f"{_LAYER}output.dense", "encoder/block{i}/mlp2"),
    Rule(f"{_LAYER}output.LayerNorm", "encoder/block{i}/norm2"),
    Rule("pooler.dense", "pooler"),
    Rule("classifier", "head"),
)


class Network(NamedTuple):
    """A network and the names of its tensors.

    Attributes:
      model: The model.
      rules: Names of its layers in PyTorch, without the prefix of the encoder, and here.
    """

    model: Model
    rules: Sequence[Rule]


def classifier(config: Mapping[str, Any], num_classes: int) -> Network:
    """Classifier of sentences.

    Args:
      config: Its `config.json`.
      num_classes: K.

    Returns:
      The network, logits [B, K].

    Raises:
      ValueError: If the config is of another kind of network.
    """
    if config["model_type"] != "bert":
        raise ValueError(f'model_type {config["model_type"]!r} is unknown: give a network of model_type "bert".')
    model = models.bert(
        num_classes,
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        max_length=config["max_position_embeddings"],
        dropout=config.get("hidden_dropout_prob", 0.1),
    )
    return Network(model, RULES)


def encoder(config: Mapping[str, Any]) -> Network:
    """Encoder without a head.

    Args:
      config: Its `config.json`.

    Returns:
      The network, logits [B, L, D], the last hidden states.

    Raises:
      ValueError: If the config is of another kind of network.
    """
    whole = classifier(config, 1).model

    def init(key: jax.Array, batch: Batch) -> Variables:
        made = whole.init(key, batch)
        return made._replace(params={"encoder": made.params["encoder"]})

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        width = config["hidden_size"]
        zeros = {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)}
        head = {"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros(1)}
        padded = variables._replace(params={**variables.params, "pooler": zeros, "head": head})
        out, state = whole.apply(padded, batch, key, train)
        features = {name: x for name, x in out.features.items() if name != "pooled"}
        return Outputs(features["tokens"], features), state

    return Network(Model(init, apply), RULES)


def embedder(config: Mapping[str, Any], *, pool: str = "mean", normalise: bool = True) -> Network:
    """Encoder of sentences as one vector.

    Args:
      config: Its `config.json`.
      pool: "mean" over real tokens, or "cls", the first token.
      normalise: Whether vectors have length one.

    Returns:
      The network, logits [B, D], the vectors.

    Raises:
      ValueError: If the config is of another kind of network.
    """
    inner = encoder(config).model

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        out, state = inner.apply(variables, batch, key, train)
        x, mask = out.logits, batch["token_mask"][..., None]
        y = jnp.where(mask, x, 0).sum(1) / jnp.maximum(mask.sum(1), 1) if pool == "mean" else x[:, 0]
        z = y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12) if normalise else y
        return Outputs(z, {**out.features, "pooled": y}), state

    return Network(Model(inner.init, apply), RULES)


def with_layers(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Config of a network that keeps some layers.

    Args:
      config: Its `config.json`.
      layers: Numbers of the layers.

    Returns:
      The config.
    """
    return {**config, "num_hidden_layers": len(layers)}


def take_blocks(variables: Variables, blocks: Sequence[int]) -> Variables:
    """Variables of a network that keeps some blocks.

    Args:
      variables: Those of the whole one.
      blocks: Numbers of the blocks, which become block0, block1, ...

    Returns:
      The variables.
    """
    encoder = variables.params["encoder"]
    kept = {name: x for name, x in encoder.items() if not name.startswith("block")}
    kept |= {f"block{new}": encoder[f"block{old}"] for new, old in enumerate(blocks)}
    return variables._replace(params={**variables.params, "encoder": kept})
