"""Encoders like BERT and ModernBERT, as classifiers of texts or of their tokens."""

from __future__ import annotations

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
      ValueError: If the heads do not divide the width; and, when it is applied, if the sequence is too long.

    Reference:
      Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
      NAACL 2019, https://arxiv.org/abs/1810.04805
    """
    check_heads(width, heads)
    rates = Dropouts(embedding=dropout, weights=attention_dropout, attention=dropout, perceptron=dropout)
    form = Form(heads, hidden, dropout=rates)
    encoder = Encoder(vocabulary, layers, width, form, max_length, segments=2, remat=remat)
    pool, pooler = (each_token, None) if per_token else (first_token, Pooler())
    return text_model(TextClassifier(num_classes, encoder, dropout, pool, pooler), segments=segments)
