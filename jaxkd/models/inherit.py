"""Initial variables of a network taken from a trained one, such as for other classes."""

from __future__ import annotations

import jax

from jaxkd.patterns import matches
from jaxkd.types import Variables, as_variables, leaf_name


def inherit(own: Variables, trained: Variables, *, fresh: str = r"(^|/)head") -> Variables:
    """Variables of a network with those of a trained one in all but the fresh layers.

    `inherit(models.init(student, key, batch), pretrained)` gives a student all pretrained layers but the last.

    Args:
      own: The network's own variables, as `init` makes them.
      trained: Those of a network that differs in the fresh layers only.
      fresh: Regular expression, searched in paths such as "head/kernel": these params and states stay its own.

    Returns:
      Variables of the structure of `own`.

    Raises:
      ValueError: If an inherited array has no counterpart or another shape (the sentence names path and shapes), or if
        `fresh` matches no path.
    """
    own, trained = as_variables(own), as_variables(trained)
    known = {leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(trained)}
    paths = [leaf_name(path) for path, _ in jax.tree.leaves_with_path(own)]
    if not any(is_fresh(fresh, path) for path in paths):
        raise ValueError(f"no path has {fresh!r}, so that nothing would begin anew: they are {', '.join(paths[:10])}.")

    def choose(path: tuple, leaf: jax.Array) -> jax.Array:
        name = leaf_name(path)
        if is_fresh(fresh, name):
            return leaf
        if name not in known or known[name].shape != leaf.shape:
            found = f"has shape {known[name].shape}" if name in known else "does not exist"
            raise ValueError(
                f"{name} has shape {leaf.shape} but in the trained network {found}: give networks that differ in their "
                "fresh layers only."
            )
        return known[name]

    return jax.tree_util.tree_map_with_path(choose, own)


def is_fresh(fresh: str, path: str) -> bool:
    """Search of a pattern in a path of variables: true for layers that begin anew.

    Args:
      fresh: Regular expression, as for `inherit`.
      path: Path from the variables on, such as "params/head/kernel", of which the first part is left out.

    Returns:
      True if it is found.
    """
    return matches(fresh, path.split("/", 1)[1])
