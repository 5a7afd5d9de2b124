"""One vector of a text from the vectors of its tokens, and sentence embeddings made of any text model."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxkd import numerics
from jaxkd.models.adapters import read_inputs
from jaxkd.models.text.embedding import only_real
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables


def first_token(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Vector of the first token, which BERT's tokenizers make [CLS].

    Args:
      x: [B, L, D].
      mask: [B, L], true on real tokens.

    Returns:
      [B, D].
    """
    return x[:, 0]


def mean_of_tokens(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of the real tokens' vectors; 0 where there is none.

    Args:
      x: [B, L, D].
      mask: [B, L], true on real tokens.

    Returns:
      [B, D], of x's dtype; computed in at least float32.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    total, count = jnp.sum(only_real(x, mask), axis=1, dtype=dtype), jnp.sum(mask.astype(bool), axis=1, dtype=dtype)
    return (total / jnp.maximum(count, 1)[:, None]).astype(x.dtype)


def each_token(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Vectors of all tokens, for a layer that looks at each one.

    Args:
      x: [B, L, D].
      mask: [B, L].

    Returns:
      [B, L, D].
    """
    return x


def unit_length(x: jax.Array) -> jax.Array:
    """Vectors divided by their Euclidean norms; 0 stays 0, with a gradient of 0.

    Args:
      x: [..., D].

    Returns:
      [..., D], of x's dtype; computed in at least float32.
    """
    return numerics.unit(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


def sentence_embeddings(
    model: Model,
    *,
    pool: Callable[[jax.Array, jax.Array], jax.Array] = mean_of_tokens,
    normalise: bool = True,
    feature: str = "tokens",
) -> Model:
    """Model whose logits are one vector of each text, pooled from a text model's tokens.

    Args:
      model: A model that reads `token_mask` [B, L] and has the feature.
      pool: (x [B, L, D], mask [B, L]) -> [B, D]: `mean_of_tokens`, `first_token`, or a function of yours.
      normalise: Whether the vectors have the length 1.
      feature: The vectors of the tokens [B, L, D].

    Returns:
      A model with the same variables: logits [B, D] and the feature `pooled` [B, D] before the length is 1.

    Raises:
      ValueError: If the batch lacks the mask, or the model the feature.
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        (mask,) = read_inputs(batch, ("token_mask",), "the tokenizer's mask, true on real tokens")
        outputs, state = model.apply(variables, batch, key, train)
        if feature not in outputs.features:
            raise ValueError(
                f"sentence embeddings are made of the feature {feature!r} but the model has "
                f"{', '.join(sorted(outputs.features)) or 'none'}: name another one with `feature=`."
            )
        pooled = pool(outputs.features[feature], mask)
        logits = unit_length(pooled) if normalise else pooled
        return Outputs(logits, {**outputs.features, "pooled": pooled}), state

    return Model(model.init, apply)
