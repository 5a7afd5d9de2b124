"""Embeddings of tokens that small students share, and how they start from a table such as a teacher's."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxkd.types import PyTree, Variables, as_variables

_PATH = "token/embedding"


def embed(tokens: jax.Array, mask: jax.Array, vocabulary: int, width: int, name: str = "token") -> jax.Array:
    """Embeddings of the real tokens, as a submodule of the module that is being called.

    Args:
      tokens: Integers [B, L].
      mask: [B, L], true on real tokens.
      vocabulary: Number of different tokens V.
      width: D.
      name: The submodule's name.

    Returns:
      [B, L, D]; 0 at padding, whatever stands there. An unknown token (outside 0..V-1) is NaN.
    """
    init = nn.initializers.normal(width**-0.5)  # vectors of about unit length
    return only_real(nn.Embed(vocabulary, width, embedding_init=init, name=name)(tokens), mask)


def only_real(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Values of real tokens, with 0 at padding.

    Args:
      x: [B, L, ...].
      mask: [B, L], true on real tokens.

    Returns:
      Of x's shape.
    """
    return jnp.where(jnp.expand_dims(mask.astype(bool), tuple(range(2, x.ndim))), x, 0)


def with_embedding(variables: Variables, table: ArrayLike, *, path: str = _PATH) -> Variables:
    """Variables of a text student whose token embeddings start from a given table.

    A teacher's word embeddings, reduced to the student's width D by PCA:

        basis = models.principal_basis(teacher_table, D)
        variables = models.with_embedding(variables, models.to_basis(teacher_table, basis))

    An optimizer trains it on. `models.frozen(student, "^token/")` keeps it as it is, which costs neither a gradient
    nor moments of the table.

    Args:
      variables: The student's.
      table: [V, D] floating.
      path: Where the embedding stands in the params, with slashes; "encoder/token/embedding" in transformers.

    Returns:
      The same variables with a copy of the table, in the dtype of the array that it replaces.

    Raises:
      ValueError: If there is no array at the path (the sentence names what is there), it has another shape, or the
        table has numbers that are not finite.
    """
    variables, given = as_variables(variables), jnp.asarray(table)
    found, parts = variables.params, path.split("/")
    for number, part in enumerate(parts):
        if not isinstance(found, dict) or part not in found:
            known = ", ".join(sorted(found)) if isinstance(found, dict) else "an array"
            place = "/".join(parts[:number]) or "the top of the params"
            raise ValueError(
                f"the student has no {path!r}: at {place} there is {known}; name the embedding by `path=`."
            )
        found = found[part]
    if not hasattr(found, "shape") or found.shape != given.shape:
        own = getattr(found, "shape", "no array")
        raise ValueError(
            f"the table has shape {given.shape} but the student's {path!r} has {own}: give one row for each token of "
            "its vocabulary, reduced to its width (by PCA, say)."
        )
    if not bool(jnp.all(jnp.isfinite(given))):
        raise ValueError("the table has numbers that are not finite: leave out or repair those rows.")
    return Variables(_replaced(variables.params, parts, jnp.array(given, found.dtype)), variables.state)


def _replaced(tree: PyTree, parts: list[str], array: jax.Array) -> PyTree:
    """The tree with another array at a path."""
    return {**tree, parts[0]: array if len(parts) == 1 else _replaced(tree[parts[0]], parts[1:], array)}
