"""Several networks of one form in one: the mean of their weights, and soups of those that help."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import PyTree, Variables, as_variables, leaf_name


def average(networks: Sequence[Variables], weights: Sequence[float] | None = None) -> Variables:
    """Mean of the weights of several networks of one form: the uniform soup.

    sum_i w_i theta_i / sum_i w_i

    It is taken in float64 and rounded once, so that equal networks give exactly themselves. Running statistics of
    batch norms are averaged too, but are not those of the result: `reestimate_statistics` measures these. Networks
    that were trained from different beginnings are to be matched first, by `match_weights`.

    Args:
      networks: Their variables.
      weights: w, one number for each that is not negative; all 1 if None.

    Returns:
      Variables in the networks' dtypes.

    Raises:
      ValueError: If there is no network, two differ in their arrays' paths or shapes (the sentence names them) or have
        different integers, or the weights are others.

    Reference:
      Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
      increasing inference time", ICML 2022, https://arxiv.org/abs/2203.05482
    """
    given = [as_variables(network) for network in networks]
    w = np.ones(len(given)) if weights is None else np.asarray(weights, np.float64)
    if not given or w.shape != (len(given),) or not np.all(w >= 0) or not 0 < w.sum() < np.inf:
        raise ValueError(
            f"{len(given)} networks cannot be averaged with the weights {weights}: give one or more networks, and a "
            "number for each that is not negative, not all of them 0."
        )
    return Variables(*(mean_of_trees([network[part] for network in given], w) for part in (0, 1)))


def mean_of_trees(trees: Sequence[PyTree], weights: Any = None) -> PyTree:
    """Weighted mean of trees of arrays, as `average` takes it of networks.

    Args:
      trees: The trees.
      weights: One number for each; all 1 if None.

    Returns:
      The tree.

    Raises:
      ValueError: If two trees differ in paths, shapes, or integers.
    """
    w = np.ones(len(trees)) if weights is None else weights
    flat = [{leaf_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in trees]
    for number, one in enumerate(flat[1:], 2):
        for path in sorted(flat[0].keys() | one.keys()):
            shapes = [jnp.shape(x[path]) if path in x else None for x in (flat[0], one)]
            if shapes[0] != shapes[1]:
                told = ["has none" if shape is None else f"has shape {shape}" for shape in shapes]
                raise ValueError(
                    f"{path} of the first {told[0]}, but that of number {number} {told[1]}: give weights of one form."
                )

    def mean(path: Sequence[Any], leaf: Any) -> Any:
        each = [np.asarray(one[leaf_name(path)]) for one in flat]
        if not jnp.issubdtype(each[0].dtype, jnp.floating):
            if any(not np.array_equal(x, each[0]) for x in each):
                raise ValueError(f"{leaf_name(path)} is of {each[0].dtype} and differs: only real numbers have a mean.")
            return leaf
        total = sum(w_i * x.astype(np.float64) for w_i, x in zip(w, each, strict=True) if w_i)
        return jnp.asarray((total / sum(w)).astype(each[0].dtype))

    return jax.tree_util.tree_map_with_path(mean, trees[0])


def greedy_soup(
    networks: Sequence[Variables], score: Callable[[Variables], float]
) -> tuple[Variables, tuple[int, ...]]:
    """Soup to which networks are added one after the other, the best first, as long as its score does not fall.

    Args:
      networks: Variables of networks of one form, such as fine-tunings of one beginning.
      score: Variables -> a figure on validation data that is better if larger. It may re-estimate running statistics
        before; it is called once for each network, and once for each soup that is tried.

    Returns:
      The soup, and the numbers of its networks, in the order in which they were added.

    Raises:
      ValueError: If there is no network or none has a score; as for `average`.

    Reference:
      As for `average`, algorithm 1.
    """
    scores = [float(score(network)) for network in networks]
    order = sorted((i for i, x in enumerate(scores) if not math.isnan(x)), key=lambda i: -scores[i])
    if not order:
        raise ValueError(f"the scores of the networks are {scores}: give networks of which one has a score.")
    chosen, best, soup = order[:1], scores[order[0]], average([networks[order[0]]])
    for i in order[1:]:
        tried = average([networks[j] for j in (*chosen, i)])
        if (found := float(score(tried))) >= best:
            chosen, best, soup = [*chosen, i], found, tried
    return soup, tuple(chosen)
