"""Students of a text classifier by name: light networks, and the terms that teach a shallower transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from jaxkd import data, losses, models, objectives
from jaxkd.experiment.optimizers import adamw, warmed_up
from jaxkd.train import optimizers
from jaxkd.types import Model, Term, Variables

LIGHT: Mapping[str, Callable[[int, int], Model]] = {
    "bag": lambda K, V: models.bag_of_embeddings(K, vocabulary=V, width=64, bigrams=2**14, dropout=0.3),
    "cnn": lambda K, V: models.text_cnn(K, vocabulary=V, width=64, filters=64, dropout=0.5),
    "bigru": lambda K, V: models.bigru(K, vocabulary=V, width=64, hidden=64, dropout=0.5),
}
"""Light network -> (classes, tokens) -> model."""

METHODS = ("kd", "pkd", "tinybert", "minilm", "minilmv2", "theseus")
"""Methods for a transformer that starts from some of its teacher's blocks."""

EMBEDDINGS = r"^encoder/(?!block)"
"""Params of a published encoder outside its blocks, as a regular expression of their paths."""


class Shape(NamedTuple):
    """What methods have to know of a transformer.

    Attributes:
      blocks: Number of its blocks.
      heads: Attention heads of each.
    """

    blocks: int
    heads: int


def shape_of(model: Model, variables: Variables, student: int) -> Shape:
    """Numbers of blocks and of heads, from the features of a published encoder.

    Args:
      model: The encoder, or a classifier on it.
      variables: Its variables, or their abstract shapes.
      student: Blocks of the students.

    Returns:
      The numbers.

    Raises:
      ValueError: If the students' blocks do not divide the teacher's.
    """
    batch = {"tokens": jax.ShapeDtypeStruct((1, 2), "int32"), "token_mask": jax.ShapeDtypeStruct((1, 2), bool)}
    features = jax.eval_shape(lambda v, b: model.apply(v, b, None, False)[0].features, variables, batch)
    blocks = sum(f"block{i}" in features for i in range(len(features)))
    if blocks % student:
        raise ValueError(
            f"--blocks is {student} but the teacher has {blocks}: give a divisor of {blocks}, so that each block of a "
            "student stands for as many of the teacher's."
        )
    return Shape(blocks, features["attention0"].shape[1])


def starts(model: Model, source: data.Source, table: Mapping[str, ArrayLike], seed: int, count: int) -> Variables:
    """Makes the first variables of light students, whose embeddings of tokens are those of a table.

    Args:
      model: The light network.
      source: Tokens.
      table: {"embedding": those of a published encoder [V, D]}; their first principal components are taken.
      seed: Seed of what begins anew.
      count: Number of students S.

    Returns:
      Variables [S, ...].
    """
    batch, key = source.read(np.zeros(1, np.int64)), jax.random.key(seed)
    own = [models.init(model, jax.random.fold_in(key, number), batch) for number in range(count)]
    narrow = principal(np.asarray(table["embedding"]), own[0].params["token"]["embedding"].shape[1])
    return jax.tree.map(lambda *x: jnp.stack(x), *[models.with_embedding(one, narrow) for one in own])


def principal(table: np.ndarray, width: int) -> np.ndarray:
    """Reduces vectors to their first principal components, scaled to a mean square length of one.

    Args:
      table: [V, D].
      width: Components; zeros are appended where there are fewer than that.

    Returns:
      float32 [V, width].
    """
    centred = np.asarray(table, np.float64) - np.mean(table, axis=0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :width]
    found = centred @ axes
    found = np.pad(found, ((0, 0), (0, width - found.shape[1])))
    return (found / np.sqrt(np.mean(np.sum(found**2, axis=1)))).astype(np.float32)


def fresh_heads(variables: Variables, key: jax.Array, count: int) -> Variables:
    """Stacks a network with last layers that begin anew, for students that differ in their seeds.

    Args:
      variables: The network's.
      key: PRNG key.
      count: Number of students S.

    Returns:
      Variables [S, ...], alike in all but the kernel of `head`.
    """
    stacked = jax.tree.map(lambda x: jnp.stack([x] * count), variables)
    head = stacked.params["head"]
    kernel = 0.02 * jax.random.normal(key, head["kernel"].shape, head["kernel"].dtype)
    return stacked._replace(params={**stacked.params, "head": {**head, "kernel": kernel}})


def method_terms(soft: Mapping[str, Any], blocks: int, teacher: Shape) -> dict[str, Term]:
    """Makes the term of each method but Theseus, whose term is that of the labels.

    Args:
      soft: Name -> term or (weight, term) of plain distillation, which all methods have.
      blocks: Blocks of the student.
      teacher: The teacher's numbers.

    Returns:
      Method -> term.
    """
    at, last = objectives.uniform_layers(blocks, teacher.blocks), (f"qkv{blocks - 1}", f"qkv{teacher.blocks - 1}")
    names: dict[str, Any] = objectives.layer_names(blocks, teacher.blocks)

    def qkv(loss: Any, **options: Any) -> Term:
        paths = (f"student.{last[0]}", f"teacher.{last[1]}", "batch.token_mask")
        return objectives.from_outputs(loss, *paths, **options)

    return {
        "kd": objectives.weighted(**soft),
        "pkd": objectives.weighted(**soft, pkd=(10.0, objectives.pkd(at[:-1] or at))),
        "tinybert": objectives.weighted(**soft, tinybert=objectives.tinybert(**names, token_mask="token_mask")),
        "minilm": objectives.weighted(**soft, minilm=qkv(losses.minilm, attention_heads=teacher.heads)),
        "minilmv2": objectives.weighted(**soft, minilmv2=qkv(losses.minilmv2, relation_heads=teacher.heads)),
    }


def fine_tuning(
    rate: float, steps: int, blocks: Sequence[int], *, decay: float = 0.8, every: int = 0
) -> optax.GradientTransformation:
    """AdamW that fine-tunes a transformer: deeper blocks learn faster and, with `every`, earlier.

    rate_i(step) = rate decay^i, i = 0 for the last layers, 1 for the deepest block, 2 for the one before it, ...

    Rates rise over the first tenth of the steps and then fall along a cosine.

    Args:
      rate: Highest rate, that of the last layers.
      steps: Updates of the training.
      blocks: Numbers of the blocks that are trained.
      decay: Factor from one group to the next.
      every: Steps until the next group thaws; 0 trains all of them from the start.

    Returns:
      An optax transformation, for a student whose other params are frozen.
    """
    groups = [r"^(?!student/encoder/)", *(rf"^student/encoder/block{i}/" for i in sorted(blocks, reverse=True))]
    return optimizers.unfreezing(adamw, groups, warmed_up(rate, steps), decay=decay, every=every)


def fine_tuning_of(rate: float, blocks: Sequence[int]) -> Callable[[int], optax.GradientTransformation]:
    """Makes `fine_tuning` of a number of updates.

    Args:
      rate: Highest rate, that of the last layers.
      blocks: Numbers of the blocks that are trained.

    Returns:
      Updates of the training -> the optax transformation.
    """
    return lambda steps: fine_tuning(rate, steps, blocks)
