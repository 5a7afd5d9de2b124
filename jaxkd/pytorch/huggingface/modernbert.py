"""ModernBERT: rotary positions of two bases, local and global attention by turns, gated perceptrons."""

from __future__ import annotations

from collections.abc import Mapping

from jaxkd.models.text.blocks import Dropouts, Form
from jaxkd.models.text.encoder import Encoder
from jaxkd.models.text.heads import Pooler
from jaxkd.models.text.pooling import first_token, mean_of_tokens
from jaxkd.pytorch.huggingface.families import Family, Head
from jaxkd.pytorch.huggingface.settings import Settings
from jaxkd.pytorch.names import Rule

GLOBAL, LOCAL = "full_attention", "sliding_attention"
_RULES = (
    Rule("embeddings.tok_embeddings", "encoder/token"),
    Rule("embeddings.norm", "encoder/embedding_norm"),
    Rule("layers.{i}.attn.Wqkv", tuple(f"encoder/block{{i}}/attention/{part}" for part in ("query", "key", "value"))),
    Rule("layers.{i}.attn.Wo", "encoder/block{i}/attention/out"),
    Rule("layers.{i}.attn_norm", "encoder/block{i}/norm1"),
    Rule("layers.{i}.mlp_norm", "encoder/block{i}/norm2"),
    Rule("layers.{i}.mlp.Wi", ("encoder/block{i}/mlp1", "encoder/block{i}/mlp_gate")),
    Rule("layers.{i}.mlp.Wo", "encoder/block{i}/mlp2"),
    Rule("final_norm", "encoder/norm"),
)
_HEAD_RULES = (Rule("head.dense", "pooler"), Rule("head.norm", "pooler_norm"), Rule("classifier", "head"))


def layer_types(settings: Settings) -> tuple[str, ...]:
    """Kind of attention of each layer.

    Args:
      settings: The config's values.

    Returns:
      `full_attention` or `sliding_attention`, layer by layer: those of `layer_types`, or every so many global ones.

    Raises:
      ValueError: If they are no such names, or not as many as layers.
    """
    layers = settings.whole("num_hidden_layers", 22)
    every = settings.whole("global_attn_every_n_layers", 3)
    kinds = settings.get("layer_types", [LOCAL if i % every else GLOBAL for i in range(layers)])
    if not isinstance(kinds, list | tuple) or len(kinds) != layers or not set(kinds) <= {GLOBAL, LOCAL}:
        raise ValueError(
            f"config.json has layer_types={kinds!r}, which should name {GLOBAL!r} or {LOCAL!r} for each of its "
            f"{layers} layers."
        )
    return tuple(kinds)


def rotary_bases(settings: Settings) -> dict[str, float]:
    """Bases of the rotary positions, from any of the forms in which they were published.

    Args:
      settings: The config's values.

    Returns:
      Kind of attention -> base.

    Raises:
      ValueError: If frequencies are scaled, or something is no number.
    """
    if settings.get("rope_scaling", None):
        raise ValueError(
            f"config.json has rope_scaling={settings.get('rope_scaling', None)!r}, which is not supported: take a "
            "network without it."
        )
    base = settings.number("global_rope_theta", 160_000.0)
    bases = {
        GLOBAL: base,
        LOCAL: base if settings.is_null("local_rope_theta") else settings.number("local_rope_theta", 10_000.0),
    }
    given = settings.get("rope_parameters", {})
    if (
        not isinstance(given, Mapping)
        or not given.keys() <= bases.keys()
        or not all(isinstance(x, Mapping | None) for x in given.values())
    ):
        raise ValueError(f"config.json has rope_parameters={given!r}, which should be of {GLOBAL!r} and {LOCAL!r}.")
    for kind, values in given.items():
        of_kind = Settings(values or {})
        of_kind.one_of("rope_type", "default", ("default",))
        bases[kind] = of_kind.number("rope_theta", bases[kind])
    if not all(bases.values()):
        raise ValueError(f"config.json has rotary positions of the bases {bases}, which should be above 0.")
    return bases


def _encoder(settings: Settings) -> Encoder:
    kinds, bases = layer_types(settings), rotary_bases(settings)
    heads, width = settings.heads("num_attention_heads", "hidden_size", 12, 768), settings.whole("hidden_size", 768)
    if width // heads % 2:
        raise ValueError(
            f"config.json has num_attention_heads={heads} of width {width // heads}, but rotary positions turn pairs "
            "of channels: take a network whose heads have an even width."
        )
    window = settings.whole("sliding_window", settings.whole("local_attention", 128) // 2, least=0)
    rate = settings.rate("attention_dropout", 0.0)
    form = Form(
        heads=heads,
        hidden=settings.whole("intermediate_size", 1152),
        activation=settings.activation("hidden_activation", "gelu"),
        gated=True,
        norm_first=True,
        epsilon=settings.number("norm_eps", 1e-5),
        dropout=Dropouts(
            embedding=settings.rate("embedding_dropout", 0.0),
            weights=rate,
            attention=rate,
            inner=settings.rate("mlp_dropout", 0.0),
        ),
        norm_bias=settings.flag("norm_bias", False),
        attention_bias=settings.flag("attention_bias", False),
        perceptron_bias=settings.flag("mlp_bias", False),
    )
    return Encoder(
        vocabulary=settings.whole("vocab_size", 50368),
        layers=len(kinds),
        width=width,
        form=form,
        max_length=settings.whole("max_position_embeddings", 8192),
        rotary=tuple(bases[kind] for kind in kinds),
        windows=tuple(window if kind == LOCAL else None for kind in kinds),
        first_norm=False,
    )


def _tokens(settings: Settings) -> Head:
    pooler = Pooler(
        settings.activation("classifier_activation", "gelu"),
        bias=settings.flag("classifier_bias", False),
        epsilon=settings.number("norm_eps", 1e-5),
        norm_bias=settings.flag("norm_bias", False),
    )
    return Head(settings.rate("classifier_dropout", 0.0), pooler, _HEAD_RULES)


def _texts(settings: Settings) -> Head:
    pool = settings.one_of("classifier_pooling", "cls", ("cls", "mean"))
    return _tokens(settings)._replace(pool=mean_of_tokens if pool == "mean" else first_token)


MODERNBERT = Family("ModernBert", "model.", _encoder, _RULES, None, _texts, _tokens)
