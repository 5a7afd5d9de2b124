"""Encoders like BERT and ModernBERT, as classifiers of texts or of their tokens."""

from __future__ import annotations

from jaxkd.kernels.dense import gelu
from jaxkd.models.misfits import check_sizes
from jaxkd.models.text.blocks import Dropouts, Form, check_heads
from jaxkd.models.text.encoder import Encoder
from jaxkd.models.text.heads import Pooler, TextClassifier, text_model
from jaxkd.models.text.pooling import each_token, first_token
from jaxkd.types import Model


def bert(
    num_classes: int,
    *,
    vocabulary: int = 30522,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    hidden: int | None = None,
    max_length: int = 512,
    dropout: float = 0.1,
    attention_dropout: float = 0.0,
    segments: str | None = None,
    per_token: bool = False,
    remat: bool = False,
) -> Model:
    """Classifier like BERT; with the defaults it has BERT-base's 109,482,240 params and the last layer's.

    Args:
      num_classes: K.
      vocabulary: Number of different tokens.
      layers: Blocks; 6 is the usual student.
      width: Hidden size D.
      heads: Heads of each attention; they divide the width.
      hidden: Width of the perceptrons inside; 4 D if None.
      max_length: Longest sequence.
      dropout: Rate of dropout, 0..1.
      attention_dropout: Rate of dropout of the attention's weights, 0..1; BERT was trained with 0.1.
      segments: Field of the batch [B, L] with 0 for the first sentence and 1 for the second; if None, it is `segments`
        where a batch has it, and all are 0 where it has not.
      per_token: Whether each token is classified; there is no pooler then.
      remat: Whether the backward pass computes each block again instead of keeping its activations.

    Returns:
      A model that reads `tokens`, integers [B, L], and `token_mask` [B, L], true on real tokens, and returns logits
      [B, K], or [B, L, K] of each token.

    Raises:
      ValueError: If a size is no positive integer or the heads do not divide the width; and, when it is applied, if
        the sequence is too long.

    Reference:
      Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
      NAACL 2019, https://arxiv.org/abs/1810.04805
    """
    check_sizes(vocabulary=vocabulary, layers=layers, width=width, max_length=max_length)
    check_heads(width, heads)
    rates = Dropouts(embedding=dropout, weights=attention_dropout, attention=dropout, perceptron=dropout)
    form = Form(heads, hidden, dropout=rates)
    encoder = Encoder(vocabulary, layers, width, form, max_length, segments=2, remat=remat)
    pool, pooler = (each_token, None) if per_token else (first_token, Pooler())
    return text_model(TextClassifier(num_classes, encoder, dropout, pool, pooler), segments=segments)


def modern_bert(
    num_classes: int,
    *,
    vocabulary: int = 50368,
    layers: int = 22,
    width: int = 768,
    heads: int = 12,
    hidden: int = 1152,
    max_length: int = 8192,
    window: int = 64,
    global_every: int = 3,
    dropout: float = 0.0,
    per_token: bool = False,
    remat: bool = False,
) -> Model:
    """Classifier like ModernBERT; with the defaults its encoder has ModernBERT-base's 149,014,272 params.

    Positions are rotary, so that a longer text costs no params. Most blocks see a window of neighbours alone.

    Args:
      num_classes: K.
      vocabulary: Number of different tokens.
      layers: Blocks.
      width: Hidden size D.
      heads: Heads of each attention; they divide the width, and D / heads is even.
      hidden: Width of the gated perceptrons inside.
      max_length: Longest sequence.
      window: Largest distance at which tokens of a local block see each other.
      global_every: Every so many blocks, from the first one, see all tokens.
      dropout: Rate of dropout inside the perceptrons and before the last layer, 0..1.
      per_token: Whether each token is classified.
      remat: Whether the backward pass computes each block again instead of keeping its activations.

    Returns:
      As for `bert`; it reads no segments.

    Raises:
      ValueError: If a size is no positive integer or the heads do not divide the width into even parts; and, when it is
        applied, if the sequence is too long.

    Reference:
      Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and
      Long Context Finetuning and Inference", 2024, https://arxiv.org/abs/2412.13663
    """
    check_sizes(vocabulary=vocabulary, layers=layers, width=width, hidden=hidden, max_length=max_length)
    check_sizes(window=window, global_every=global_every)
    check_heads(width, heads)
    if width // heads % 2:
        raise ValueError(
            f"{heads} heads of the width {width // heads} cannot be turned by pairs of channels: choose an even width."
        )
    form = Form(
        heads,
        hidden,
        gated=True,
        norm_first=True,
        epsilon=1e-5,
        dropout=Dropouts(inner=dropout),
        norm_bias=False,
        attention_bias=False,
        perceptron_bias=False,
    )
    local = [number % global_every > 0 for number in range(layers)]
    encoder = Encoder(
        vocabulary,
        layers,
        width,
        form,
        max_length,
        rotary=tuple(10_000.0 if near else 160_000.0 for near in local),
        windows=tuple(window if near else None for near in local),
        first_norm=False,
        remat=remat,
    )
    pooler = Pooler(gelu, bias=False, epsilon=1e-5, norm_bias=False)
    return text_model(TextClassifier(num_classes, encoder, dropout, each_token if per_token else first_token, pooler))
