"""Static embeddings: a table with a vector for each token, whose mean is that of a text; and the tables of a teacher.

A teacher's table is pure arithmetic on what it says of single tokens:

    vectors = ...  # [V, D], the teacher's sentence embedding of each token alone
    basis = principal_basis(vectors, width, centre=frequencies @ vectors)
    table = token_weights(frequencies)[:, None] * to_basis(vectors, basis)
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.models.adapters import from_linen
from jaxkd.models.misfits import check_sizes
from jaxkd.models.text.embedding import embed
from jaxkd.models.text.pooling import mean_of_tokens, unit_length
from jaxkd.types import Batch, Model, Outputs, PyTree, Variables


class StaticEmbeddings(nn.Module):
    """Sentence embeddings from a table.

    Attributes:
      vocabulary: Number of different tokens V.
      width: D.
      normalise: Whether the vectors have the length 1.
      dropout: Rate at which tokens are left out in training.
    """

    vocabulary: int
    width: int
    normalise: bool = True
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, train: bool) -> Outputs:
        """Tokens and mask [B, L] -> Outputs with sentence embeddings [B, D] as logits."""
        kept = nn.Dropout(self.dropout, deterministic=not train)(jnp.ones(mask.shape)) > 0
        mask = mask.astype(bool) & kept
        x = embed(tokens, mask, self.vocabulary, self.width)
        pooled = mean_of_tokens(x, mask)
        logits = unit_length(pooled) if self.normalise else pooled
        return Outputs(logits, {"embedding": x, "tokens": x, "pooled": pooled})


def static_embeddings(*, vocabulary: int, width: int, normalise: bool = True, dropout: float = 0.0) -> Model:
    """Sentence embeddings that are the mean of their tokens' rows in a table, at length 1.

    unit( (1/L) sum_l E[w_l] ); weights of tokens are in the lengths of the rows, as in `token_weights`

    The params are the table alone, at `token/embedding`: `models.with_embedding(variables, table)` puts a teacher's
    there. The first m columns of a table are one for narrower embeddings, by `narrowed`.

    Args:
      vocabulary: Number of different tokens V.
      width: D.
      normalise: Whether the vectors have the length 1.
      dropout: Rate at which tokens are left out of the mean in training, 0..1: so that a text's vector does not lean on
        a few of them, which a large table learns by heart.

    Returns:
      A model that reads `tokens`, integers [B, L], and `token_mask` [B, L], true on tokens that count, and returns
      embeddings [B, D] as logits; the feature `pooled` [B, D] is the mean. Both are 0 for a text without tokens.

    Raises:
      ValueError: If a size is not positive.

    Reference:
      Tulkens, van Dongen, "Model2Vec: Fast State-of-the-Art Static Embeddings", 2024,
      https://github.com/MinishLab/model2vec (token dropout: Iyyer, Manjunatha, Boyd-Graber, Daumé III, "Deep
      Unordered Composition Rivals Syntactic Methods for Text Classification", ACL 2015,
      https://aclanthology.org/P15-1162)
    """
    check_sizes(vocabulary=vocabulary, width=width)
    return from_linen(StaticEmbeddings(vocabulary, width, normalise, dropout), inputs=("tokens", "token_mask"))


def narrowed(variables: Variables, width: int) -> Variables:
    """Variables of static embeddings with the first columns of the table, as Matryoshka prefixes are used.

    Args:
      variables: Those of `static_embeddings`.
      width: Columns that are kept, at most those that there are.

    Returns:
      The variables of `static_embeddings(..., width=width)`.

    Raises:
      ValueError: If the table has fewer columns.
    """
    table = variables.params["token"]["embedding"]
    if not 1 <= width <= table.shape[1]:
        raise ValueError(f"width is {width}, but the table has {table.shape[1]} columns: give 1 to {table.shape[1]}.")
    return Variables({"token": {"embedding": table[:, :width]}}, variables.state)


class Basis(NamedTuple):
    """An affine map to fewer dimensions.

    Attributes:
      centre: [D], what is subtracted first.
      axes: [D, d], orthonormal columns, those of the largest variance first.
    """

    centre: np.ndarray
    axes: np.ndarray


def principal_basis(vectors: np.ndarray, width: int, *, centre: np.ndarray | None = None) -> Basis:
    """The axes of the largest variance of some vectors (PCA).

    Args:
      vectors: [V, D] floating.
      width: d, at most D; axes along which nothing varies have any direction.
      centre: [D], the origin of the new coordinates, such as the vectors' mean weighted by the tokens' frequencies; the
        plain mean if None. The variance is that around the plain mean in any case.

    Returns:
      The basis, in the vectors' dtype. The largest entry of each axis is positive, so that it does not depend on the
      machine.

    Raises:
      ValueError: If the width is not in 1..D.
    """
    if vectors.ndim != 2 or not 1 <= width <= vectors.shape[1]:
        raise ValueError(f"vectors have shape {vectors.shape}, of which no {width} axes can be taken: give 1 to D.")
    wide = vectors.astype(np.float64)
    mean = wide.mean(axis=0)
    axes = np.linalg.eigh((wide - mean).T @ (wide - mean))[1][:, ::-1][:, :width]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(width)])
    origin = mean if centre is None else centre
    return Basis(origin.astype(vectors.dtype), axes.astype(vectors.dtype))


def to_basis(vectors: np.ndarray, basis: Basis) -> np.ndarray:
    """Coordinates (x - centre) A of vectors in a basis.

    Args:
      vectors: [..., D].
      basis: Its axes A are [D, d].

    Returns:
      [..., d].
    """
    return (vectors - basis.centre) @ basis.axes


def token_weights(frequencies: np.ndarray, *, a: float = 1e-3) -> np.ndarray:
    """Smooth inverse frequencies, by which frequent tokens count less in the mean.

    a / (a + p_w)

    Args:
      frequencies: p [V], relative frequencies of the tokens in a corpus, 0 for those that it lacks.
      a: Frequency at which the weight is 1/2.

    Returns:
      Weights [V] in (0, 1], 1 for tokens that the corpus lacks.

    Raises:
      ValueError: If a is not positive, or the frequencies are no such numbers.

    Reference:
      Arora, Liang, Ma, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings", ICLR 2017,
      https://openreview.net/forum?id=SyK00v5xx
    """
    p = np.asarray(frequencies)
    if not a > 0 or p.ndim != 1 or not np.all(p >= 0) or not np.sum(p) <= 1 + 1e-3:
        raise ValueError(
            f"a is {a} and frequencies of shape {p.shape} sum to {np.sum(p):.4g}: give a > 0, and relative frequencies "
            "[V] that are at least 0 and sum to 1 at most."
        )
    return a / (a + p)


def zipf_weights(vocabulary: int) -> np.ndarray:
    """Weights for tokens in the order of their frequency, where no corpus is at hand.

    log(1 + rank_w),  rank 1 for the most frequent token

    Args:
      vocabulary: V, of a vocabulary that lists frequent tokens first, as those of BERT do roughly.

    Returns:
      Weights [V], float64.

    Reference:
      Tulkens, van Dongen, "Model2Vec: Fast State-of-the-Art Static Embeddings", 2024,
      https://github.com/MinishLab/model2vec
    """
    return np.log1p(np.arange(1, vocabulary + 1))


def in_basis(teacher: Model, basis: Basis) -> Model:
    """A teacher of sentence embeddings that also gives them in a basis.

    Args:
      teacher: A model whose logits are embeddings [B, D].
      basis: Such as that of the student's first table, in which student and teacher can be compared one by one.

    Returns:
      The model with the feature `in_basis` [B, d]; its variables are the teacher's.
    """

    def apply(variables: Variables, batch: Batch, key: jax.Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = teacher.apply(variables, batch, key, train)
        found = jnp.asarray(outputs.logits) - jnp.asarray(basis.centre[None], outputs.logits.dtype)
        moved = found @ jnp.asarray(basis.axes, outputs.logits.dtype)
        return outputs._replace(features={**outputs.features, "in_basis": moved}), state

    return Model(teacher.init, apply)
