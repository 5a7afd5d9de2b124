"""Decoder-only language models."""

from __future__ import annotations

import flax.linen as nn
import jax

from jaxkd.models.adapters import from_linen
from jaxkd.models.layers import Dense
from jaxkd.models.text.blocks import INIT, Dropouts, Form, check_heads
from jaxkd.models.text.encoder import Encoder
from jaxkd.types import Model, Outputs


class LanguageModel(nn.Module):
    """Decoder of tokens: an encoder with a causal mask, and a linear layer on each token.

    Attributes:
      encoder: The encoder.
    """

    encoder: Encoder

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, *, train: bool) -> Outputs:
        """Tokens and mask [B, L] -> Outputs with logits [B, L, V]."""
        x, features = self.encoder(tokens, mask, None, train)
        head = Dense(self.encoder.vocabulary, use_bias=False, kernel_init=INIT, name="head")
        return Outputs(head(x), features)


def language_model(
    vocabulary: int,
    *,
    layers: int = 4,
    width: int = 256,
    heads: int = 4,
    max_length: int = 512,
    dropout: float = 0.0,
    causal: bool = True,
    remat: bool = False,
) -> Model:
    """Language model like GPT-2, with norms first in each block and an output matrix of its own.

    Args:
      vocabulary: Number of different tokens V.
      layers: Blocks.
      width: Hidden size D; the perceptrons inside are four times as wide.
      heads: Heads of each attention; they divide the width.
      max_length: Longest sequence.
      dropout: Rate of dropout, 0..1.
      causal: Whether a token sees none of those after it.
      remat: Whether the backward pass computes each block again instead of keeping its activations.

    Returns:
      A model that reads `tokens`, integers [B, L], and `token_mask` [B, L], true on real tokens, and returns logits
      [B, L, V]; `models.with_head` and `objectives.from_hidden` train it without ever holding them.

    Raises:
      ValueError: If the heads do not divide the width; and, when it is applied, if the sequence is too long.

    Reference:
      Radford et al., "Language Models are Unsupervised Multitask Learners", 2019,
      https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    """
    check_heads(width, heads)
    rates = Dropouts(embedding=dropout, attention=dropout, perceptron=dropout)
    form = Form(heads, norm_first=True, dropout=rates)
    encoder = Encoder(vocabulary, layers, width, form, max_length, embedding_norm=False, causal=causal, remat=remat)
    return from_linen(LanguageModel(encoder), inputs=("tokens", "token_mask"))
