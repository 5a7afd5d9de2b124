"""Networks of published text encoders from their config.json: pure functions of its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxkd.models.text.heads import Pooler, TextClassifier, text_model
from jaxkd.models.text.pooling import each_token, first_token, mean_of_tokens, sentence_embeddings
from jaxkd.pytorch.huggingface.families import BERT, DISTILBERT, ELECTRA, MPNET, ROBERTA, Family, Head
from jaxkd.pytorch.huggingface.modernbert import MODERNBERT, layer_types
from jaxkd.pytorch.huggingface.settings import Settings, check_plain_encoder
from jaxkd.pytorch.names import Rule
from jaxkd.types import Model

FAMILIES: Mapping[str, Family] = {
    "bert": BERT,
    "camembert": ROBERTA._replace(name="Camembert"),
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "modernbert": MODERNBERT,
    "mpnet": MPNET,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA._replace(name="XLMRoberta"),
}
"""`model_type` -> family."""
POOLS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"cls": first_token, "mean": mean_of_tokens}
"""Name in files -> one vector of a text from its tokens."""


class Network(NamedTuple):
    """Network of a config.json.

    Attributes:
      model: It reads `tokens`, `token_mask` and, where the network has them, `segments`.
      rules: Names of its tensors in PyTorch, without the family's prefix.
      architecture: Name of its class in transformers.
      prefix: Prefix of the family, such as "bert.". Classes with a head have it before the names of all tensors but
        those of the head; a pooler that the encoder has without any head (`pooler.dense`) is no part of the head.
    """

    model: Model
    rules: tuple[Rule, ...]
    architecture: str
    prefix: str


def encoder(config: Mapping[str, Any], *, pooler: bool = False, remat: bool = False) -> Network:
    """Encoder without a head, whose logits are the last hidden states [B, L, D].

    Args:
      config: The content of config.json.
      pooler: Whether it has the pooler that BERT and RoBERTa may have; without one the first token is taken as it is.
      remat: Whether the backward pass computes each block again instead of keeping its activations.

    Returns:
      The network.

    Raises:
      ValueError: If the family is unknown, or an option is not supported; the sentence names its key.
    """
    family, settings = family_of(config), Settings(config)
    kept = family.pooler if pooler else None
    head = Head(0.0, Pooler() if kept else None, (kept,) if kept else ())
    return _network(family, settings, head, None, remat)._replace(architecture=f"{family.name}Model")


def classifier(config: Mapping[str, Any], num_classes: int | None = None, *, remat: bool = False) -> Network:
    """Classifier of texts, with logits [B, K].

    Args:
      config: The content of config.json.
      num_classes: K; that of the config if None.
      remat: As for `encoder`.

    Returns:
      The network.

    Raises:
      ValueError: As for `encoder`.
    """
    family, settings = family_of(config), Settings(config)
    return _network(family, settings, family.texts(settings), settings.classes(num_classes), remat)


def token_classifier(config: Mapping[str, Any], num_classes: int | None = None, *, remat: bool = False) -> Network:
    """Classifier of tokens, with logits [B, L, K].

    Args:
      config: The content of config.json.
      num_classes: K; that of the config if None.
      remat: As for `encoder`.

    Returns:
      The network.

    Raises:
      ValueError: As for `encoder`.
    """
    family, settings = family_of(config), Settings(config)
    head = family.tokens(settings)._replace(pool=each_token)
    network = _network(family, settings, head, settings.classes(num_classes), remat)
    return network._replace(architecture=f"{family.name}ForTokenClassification")


def embedder(
    config: Mapping[str, Any],
    *,
    pool: str = "mean",
    normalise: bool = True,
    remat: bool = False,
) -> Network:
    """Sentence embeddings, with logits [B, D].

    Args:
      config: The content of config.json.
      pool: "mean" of the real tokens, or "cls", the first token.
      normalise: Whether the vectors have the length 1.
      remat: As for `encoder`.

    Returns:
      The network; it has no pooler.

    Raises:
      ValueError: As for `encoder`, or if there is no such pool.
    """
    if pool not in POOLS:
        raise ValueError(f"pool={pool!r} is unknown: choose one of {', '.join(map(repr, POOLS))}.")
    network = encoder(config, pooler=False, remat=remat)
    return network._replace(model=sentence_embeddings(network.model, pool=POOLS[pool], normalise=normalise))


def with_layers(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Config of the network that `models.take_blocks(variables, layers)` makes.

    Args:
      config: The content of config.json.
      layers: Numbers of the layers to keep, from 0, ascending.

    Returns:
      A config with as many layers.

    Raises:
      ValueError: If there are no such layers, or the family's first layer is another than the others and left out.
    """
    family = family_of(config)
    count, own = family.encoder(Settings(config)).layers, dict(config)
    key = "n_layers" if family.name == "DistilBert" else "num_hidden_layers"
    numbers = all(isinstance(i, int) and 0 <= i < count for i in layers)
    if not layers or not numbers or sorted(set(layers)) != list(layers):
        raise ValueError(
            f"layers={tuple(layers)} should be ascending numbers of layers, 0..{count - 1} in this network."
        )
    if family.name == "ModernBert":
        kinds = layer_types(Settings(config))
        own["layer_types"] = [kinds[i] for i in layers]
        if layers[0] != 0:
            raise ValueError(
                f"layers={tuple(layers)} leaves out ModernBERT's layer 0, which alone has no norm before its "
                "attention: begin with 0."
            )
    return {**own, key: len(layers)}


def family_of(config: Mapping[str, Any]) -> Family:
    """Family of a config.json.

    Args:
      config: Its content.

    Returns:
      The family.

    Raises:
      ValueError: If its `model_type` is unknown or missing, or an option is not supported.
    """
    settings = Settings(config)
    kind = settings.get("model_type", None)
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"config.json has model_type={kind!r}, which is no text encoder that is known here: take one of "
            f"{', '.join(FAMILIES)}."
        )
    check_plain_encoder(settings)
    return FAMILIES[kind]


def _network(family: Family, settings: Settings, head: Head, num_classes: int | None, remat: bool) -> Network:
    """Network of an encoder and a head."""
    inside = family.encoder(settings).clone(remat=remat)
    model = text_model(TextClassifier(num_classes, inside, head.dropout, head.pool, head.pooler))
    return Network(model, (*family.rules, *head.rules), f"{family.name}ForSequenceClassification", family.prefix)
