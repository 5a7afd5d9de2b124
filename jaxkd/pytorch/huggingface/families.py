"""Families of published text encoders: their networks here, from config.json, and the names of their tensors.

Names stand without the prefix of the family (`bert.`, `roberta.`, ...) that files of networks with a head have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxkd.kernels.dense import gelu
from jaxkd.models.text.blocks import Dropouts, Form
from jaxkd.models.text.encoder import Encoder
from jaxkd.models.text.heads import Pooler
from jaxkd.models.text.pooling import first_token
from jaxkd.pytorch.huggingface.settings import Settings
from jaxkd.pytorch.names import Rule


class Head(NamedTuple):
    """Part of a network after its encoder.

    Attributes:
      dropout: Rate before the last layer.
      pooler: The pooler, if there is one.
      rules: Names of the pooler and of the last layer.
      pool: As in `TextClassifier`.
    """

    dropout: float
    pooler: Pooler | None
    rules: tuple[Rule, ...]
    pool: Callable[[jax.Array, jax.Array], jax.Array] = first_token


class Family(NamedTuple):
    """Family of encoders.

    Attributes:
      name: Its name in the names of PyTorch's classes.
      prefix: Prefix of the encoder's and its own pooler's tensors in networks with a head.
      encoder: The config's values -> the encoder.
      rules: Names of the encoder's tensors.
      pooler: Names of the pooler that the encoder has without any head; None if it has none.
      texts: The config's values -> the head that classifies texts.
      tokens: The config's values -> the head that classifies tokens.
    """

    name: str
    prefix: str
    encoder: Callable[[Settings], Encoder]
    rules: tuple[Rule, ...]
    pooler: Rule | None
    texts: Callable[[Settings], Head]
    tokens: Callable[[Settings], Head]


_LAST = Rule("classifier", "head")
_POOLER = Rule("pooler.dense", "pooler")
_DENSE_AND_LAST = (Rule("classifier.dense", "pooler"), Rule("classifier.out_proj", "head"))


def _named(embeddings: Mapping[str, str], layer: str, inside: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules of the embeddings, and of the layers, in which {i} stands for the number."""
    return (
        *(Rule(theirs, f"encoder/{ours}") for theirs, ours in embeddings.items()),
        *(Rule(f"{layer}.{theirs}", f"encoder/block{{i}}/{ours}") for theirs, ours in inside.items()),
    )


_EMBEDDINGS = {
    "embeddings.word_embeddings": "token",
    "embeddings.position_embeddings": "position",
    "embeddings.token_type_embeddings": "segment",
    "embeddings.LayerNorm": "norm",
    "embeddings_project": "project",
}
_AFTER_ATTENTION = {
    "intermediate.dense": "mlp1",
    "output.dense": "mlp2",
    "output.LayerNorm": "norm2",
}
_BERT_RULES = _named(
    _EMBEDDINGS,
    "encoder.layer.{i}",
    {
        **{f"attention.self.{part}": f"attention/{part}" for part in ("query", "key", "value")},
        "attention.output.dense": "attention/out",
        "attention.output.LayerNorm": "norm1",
        **_AFTER_ATTENTION,
    },
)
_MPNET_RULES = (
    Rule("encoder.relative_attention_bias", "encoder/distance"),
    *_named(
        _EMBEDDINGS,
        "encoder.layer.{i}",
        {
            **{f"attention.attn.{part[0]}": f"attention/{part}" for part in ("query", "key", "value", "out")},
            "attention.LayerNorm": "norm1",
            **_AFTER_ATTENTION,
        },
    ),
)
_DISTILBERT_RULES = _named(
    _EMBEDDINGS,
    "transformer.layer.{i}",
    {
        **{f"attention.{part[0]}_lin": f"attention/{part}" for part in ("query", "key", "value")},
        "attention.out_lin": "attention/out",
        "sa_layer_norm": "norm1",
        "ffn.lin1": "mlp1",
        "ffn.lin2": "mlp2",
        "output_layer_norm": "norm2",
    },
)


def _bert_form(settings: Settings) -> Form:
    rate = settings.rate("hidden_dropout_prob", 0.1)
    weights = settings.rate("attention_probs_dropout_prob", 0.1)
    return Form(
        heads=settings.heads("num_attention_heads", "hidden_size", 12, 768),
        hidden=settings.whole("intermediate_size", 3072),
        activation=settings.activation("hidden_act", "gelu"),
        epsilon=settings.number("layer_norm_eps", 1e-12),
        dropout=Dropouts(embedding=rate, weights=weights, attention=rate, perceptron=rate),
    )


def _bert(settings: Settings, **more: Any) -> Encoder:
    """BERT, and what others change."""
    options = {
        "vocabulary": settings.whole("vocab_size", 30522),
        "layers": settings.whole("num_hidden_layers", 12),
        "width": settings.whole("hidden_size", 768),
        "form": _bert_form(settings),
        "max_length": settings.whole("max_position_embeddings", 512),
        "segments": settings.whole("type_vocab_size", 2),
    }
    return Encoder(**{**options, **more})


def _roberta(settings: Settings) -> Encoder:
    """Positions begin after the padding token's number, which takes as many rows of the table."""
    pad = settings.whole("pad_token_id", 1, least=0)
    rows = settings.whole("max_position_embeddings", 512, least=pad + 2)
    return _bert(settings.filled(vocab_size=50265), max_length=rows - pad - 1, pad=pad)


def _mpnet(settings: Settings) -> Encoder:
    """RoBERTa's positions, whose padding is always 1, and embeddings of distances; no segments."""
    rows = settings.whole("max_position_embeddings", 512, least=3)
    distances = settings.whole("relative_attention_num_buckets", 32, least=32)
    own = settings.filled(vocab_size=30527)
    return _bert(own, max_length=rows - 2, pad=1, segments=0, distances=distances)


def _electra(settings: Settings) -> Encoder:
    own = settings.filled(hidden_size=256, num_attention_heads=4, intermediate_size=1024)
    return _bert(own, embedding_width=own.whole("embedding_size", 128))


def _distilbert(settings: Settings) -> Encoder:
    rate = settings.rate("dropout", 0.1)
    form = Form(
        heads=settings.heads("n_heads", "dim", 12, 768),
        hidden=settings.whole("hidden_dim", 3072),
        activation=settings.activation("activation", "gelu"),
        dropout=Dropouts(embedding=rate, weights=settings.rate("attention_dropout", 0.1), perceptron=rate),
    )
    return Encoder(
        vocabulary=settings.whole("vocab_size", 30522),
        layers=settings.whole("n_layers", 6),
        width=settings.whole("dim", 768),
        form=form,
        max_length=settings.whole("max_position_embeddings", 512),
        fixed_positions=settings.flag("sinusoidal_pos_embds", False),
    )


def _bert_rate(settings: Settings) -> float:
    return settings.rate("classifier_dropout", settings.rate("hidden_dropout_prob", 0.1))


def _bert_tokens(settings: Settings) -> Head:
    return Head(_bert_rate(settings), None, (_LAST,))


def _bert_texts(settings: Settings) -> Head:
    return Head(_bert_rate(settings), Pooler(), (_POOLER, _LAST))


def _roberta_texts(settings: Settings) -> Head:
    rate = _bert_rate(settings)
    return Head(rate, Pooler(dropout=rate), _DENSE_AND_LAST)


def _mpnet_texts(settings: Settings) -> Head:
    rate = settings.rate("hidden_dropout_prob", 0.1)
    return Head(rate, Pooler(dropout=rate), _DENSE_AND_LAST)


def _mpnet_tokens(settings: Settings) -> Head:
    return Head(settings.rate("hidden_dropout_prob", 0.1), None, (_LAST,))


def _electra_texts(settings: Settings) -> Head:
    rate = _bert_rate(settings)
    return Head(rate, Pooler(gelu, dropout=rate), _DENSE_AND_LAST)


def _distilbert_texts(settings: Settings) -> Head:
    rules = (Rule("pre_classifier", "pooler"), _LAST)
    return Head(settings.rate("seq_classif_dropout", 0.2), Pooler(jax.nn.relu), rules)


def _distilbert_tokens(settings: Settings) -> Head:
    return Head(settings.rate("dropout", 0.1), None, (_LAST,))


BERT = Family("Bert", "bert.", _bert, _BERT_RULES, _POOLER, _bert_texts, _bert_tokens)
ROBERTA = Family("Roberta", "roberta.", _roberta, _BERT_RULES, _POOLER, _roberta_texts, _bert_tokens)
MPNET = Family("MPNet", "mpnet.", _mpnet, _MPNET_RULES, _POOLER, _mpnet_texts, _mpnet_tokens)
ELECTRA = Family("Electra", "electra.", _electra, _BERT_RULES, None, _electra_texts, _bert_tokens)
DISTILBERT = Family(
    "DistilBert", "distilbert.", _distilbert, _DISTILBERT_RULES, None, _distilbert_texts, _distilbert_tokens
)
