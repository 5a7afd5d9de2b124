"""Recommendation: interactions that the flags opened, rules without training as floors, a teacher's rankings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, metrics
from jaxkd.data.ranking import Holdout, Interactions, hold_out, leave_last_out, ranking_source
from jaxkd.data.readers.interactions import read_interactions
from jaxkd.data.splits import first_few, say
from jaxkd.experiment.config import Config
from jaxkd.experiment.context import Context
from jaxkd.experiment.domains import NON_NEGATIVE
from jaxkd.experiment.evaluator import Evaluator, predict
from jaxkd.experiment.flags import DATA, flag
from jaxkd.experiment.trials import Column, Scores
from jaxkd.types import Batch, Model, Outputs, TrainState, Variables

COLUMNS: Mapping[str, Column] = {
    "hit_rate": Column("HR@10", digits=4),
    "ndcg": Column("NDCG@10", digits=4),
    "mrr": Column("MRR", digits=4),
}
HEADERS = {"bytes": "bytes"}
_DENSE = 500_000_000
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class RecommendationConfig(Config):
    """Base configuration of an experiment on interactions of users with items."""

    source: str = flag("csv:ratings.csv", "interactions: csv:PATH or tsv:PATH, whose first line names fields", DATA)
    test_source: str | None = flag(
        None, "interactions to test on, as --source; each user's last one of --source if absent", DATA
    )
    user_field: str | None = flag(None, "field of the users; one with a usual name, such as userId, if absent", DATA)
    item_field: str | None = flag(None, "field of the items; one with a usual name, such as movieId, if absent", DATA)
    rating_field: str | None = flag(None, "field of the ratings, which only --least-rating reads", DATA)
    time_field: str | None = flag(None, "field of the times; none for the order of the lines", DATA)
    least_rating: float | None = flag(
        None, "least rating of an interaction that counts; all if absent", DATA, NON_NEGATIVE
    )
    recommend_to: tuple[str, ...] = flag((), "users whose ten best items are printed at the end", DATA)
    evaluate: Literal["test", "validation"] = flag(
        "test", "items that are held out: each user's last, or for tuning the last but one, without the last", DATA
    )

    def check(self) -> None:
        """Checks values before the run's folder is made.

        Raises:
          ValueError: If a value is outside its domain.
        """
        super().check()
        if self.test_source is not None and self.evaluate == "validation":
            raise ValueError(
                "--evaluate validation holds out interactions of --source: leave --test-source out for it."
            )


class Ranked(NamedTuple):
    """Interactions as a source of users, and what rules need of them.

    Attributes:
      split: Interactions to train on, and held-out items.
      source: Its users; the training reads the items that they have had, the evaluation those held out too.
      seen: 1 for the items that a user has had in training, float32 [U, I].
    """

    split: Holdout
    source: data.Source
    seen: np.ndarray

    @property
    def popularity(self) -> np.ndarray:
        """Number of users of each item in training, [I]."""
        return self.seen.sum(axis=0)


def open_ranked(config: RecommendationConfig) -> Ranked:
    """Opens what a configuration names.

    Args:
      config: The configuration.

    Returns:
      Interactions to train on, and held-out items.

    Raises:
      ValueError: As the reader says; or if there are too many users and items for the rules of this experiment.
    """
    fields = {n: getattr(config, f"{n}_field") for n in ("user", "item", "rating", "time")}
    read = (
        made_up()
        if config.source == "made-up"
        else read_interactions(config.source, least_rating=config.least_rating, **fields)
    )
    if config.test_source is None:
        split = leave_last_out(read, last=1 if config.evaluate == "test" else 2)
    else:
        test = read_interactions(config.test_source, least_rating=config.least_rating, **fields)
        split = hold_out(read, test)
    return as_ranked(split)


def as_ranked(split: Holdout) -> Ranked:
    """Makes a source of users, and the matrix that rules read.

    Args:
      split: Interactions to train on, and held-out items.

    Returns:
      The users.

    Raises:
      ValueError: If there are too many users and items for a matrix.
    """
    users, items = len(split.train.users), len(split.train.items)
    if users * items > _DENSE:
        raise ValueError(
            f"{split.train.name} has {users:,} users and {items:,} items, whose matrix takes "
            f"{users * items * 4 / 1e9:.0f} GB: take a part of the users, or items with more interactions."
        )
    seen = np.zeros((users, items), np.float32)
    seen[split.train.user, split.train.item] = 1
    return Ranked(split, ranking_source(split, split.train.name), seen)


def made_up(users: int = 24, items: int = 40, each: int = 8, seed: int = 0) -> Interactions:
    """Interactions of users with two tastes, for smoke runs.

    Args:
      users: Number of users.
      items: Number of items.
      each: Interactions of each user.
      seed: Seed of the choice.

    Returns:
      The interactions.
    """
    rng = np.random.default_rng(seed)
    half = items // 2
    item = np.stack([rng.choice(half, each, replace=False) + half * (u % 2) for u in range(users)]).astype(np.int32)
    user = np.repeat(np.arange(users, dtype=np.int32), each)
    names = [tuple(f"{kind}{i}" for i in range(n)) for kind, n in (("user", users), ("item", items))]
    return Interactions("made-up interactions", user, item.ravel(), np.arange(users * each, dtype=float), *names)


def popular(seen: np.ndarray) -> np.ndarray:
    """Scores by the number of users of an item, the same for all.

    Args:
      seen: Items that users have had, [U, I].

    Returns:
      Scores [U, I].
    """
    return np.broadcast_to(seen.sum(axis=0), seen.shape)


def item_neighbours(seen: np.ndarray) -> np.ndarray:
    """Item kNN with all neighbours: the sum of an item's cosines to the items that a user has had.

    s_ui = sum_{j of u, j != i} n_ij / sqrt(n_i n_j),  n_ij users who had both

    Args:
      seen: Items that users have had, [U, I].

    Returns:
      Scores [U, I].

    Reference:
      Sarwar, Karypis, Konstan, Riedl, "Item-based Collaborative Filtering Recommendation Algorithms", WWW 2001,
      https://doi.org/10.1145/371920.372071
    """
    unit = seen / np.sqrt(np.maximum(seen.sum(axis=0), 1))
    # By products of users, of which there are fewer than items: the matrix of all pairs of items is never made.
    return (unit @ seen.T) @ unit - seen if len(seen) < seen.shape[1] else seen @ _hollow(unit.T @ unit)


def _hollow(square: np.ndarray) -> np.ndarray:
    np.fill_diagonal(square, 0)
    return square


def ease(seen: np.ndarray, l2: float) -> np.ndarray:
    """EASE: the linear map of items to items without itself that rebuilds best what users have had, in closed form.

    S = X B,  B = I - P / diag(P),  P = (X^T X + lambda I)^-1

    With fewer users than items P follows from a matrix of users: P = (I - X^T K X) / lambda with
    K = (X X^T + lambda I)^-1, so that S = X - K X / diag(P).

    Args:
      seen: X, items that users have had, [U, I].
      l2: Lambda, > 0.

    Returns:
      Scores [U, I], float32.

    Reference:
      Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, https://arxiv.org/abs/1905.03375
    """
    x = seen.astype(np.float64)
    if len(x) < x.shape[1]:
        inner = np.linalg.solve(x @ x.T + l2 * np.eye(len(x)), x)
        diagonal = (1 - (x * inner).sum(axis=0)) / l2
        return (x - inner / diagonal).astype(np.float32)
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    return (x @ _hollow(inverse / -np.diag(inverse))).astype(np.float32)


def best_items(scores: np.ndarray, seen: np.ndarray, count: int) -> np.ndarray:
    """Each user's best items among those not seen.

    Args:
      scores: [U, I].
      seen: Items that users have had, [U, I].
      count: Number of items.

    Returns:
      Numbers of items, the best first, int32 [U, count]; -1 where there are fewer.
    """
    hidden = np.where(seen > 0, -np.inf, scores)
    count = min(count, hidden.shape[1])
    some = np.argpartition(-hidden, count - 1, axis=1)[:, :count]
    at = np.take_along_axis(hidden, some, axis=1)
    order = np.lexsort((some, -at), axis=1)
    found = np.take_along_axis(some, order, axis=1).astype(np.int32)
    return np.where(np.isneginf(np.take_along_axis(at, order, axis=1)), -1, found).astype(np.int32)


def measure_scores(scores: np.ndarray, source: data.Source) -> Scores:
    """Metrics of a rule's scores.

    Args:
      scores: [U, I], in the source's order.
      source: The users.

    Returns:
      Name -> figure.
    """
    parts = []
    for start in range(0, len(source), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(source)))
        batch = source.read(rows)
        parts.append(_measure(np.asarray(scores[rows], np.float32), batch["label"], batch["seen"]))
    total = jax.tree.map(lambda *x: np.sum(x, axis=0), *parts)
    return {name: float(value) for name, value in metrics.values(total).items()}


@jax.jit
def _measure(scores: jax.Array, label: jax.Array, seen: jax.Array) -> dict[str, Any]:
    batch = {"label": label, "seen": seen}
    return {name: metric(Outputs(scores), Outputs(None), batch) for name, metric in metrics.RANKING.items()}


def scorer(context: Context, model: Model, source: data.Source) -> Callable[[Variables], Scores]:
    """Makes the evaluation of a network, compiled once.

    Args:
      context: The context of the experiment's trainings.
      model: The network.
      source: The users.

    Returns:
      Variables -> name -> figure.
    """
    evaluator = Evaluator(context, model, metrics.RANKING)

    def score(variables: Variables) -> Scores:
        params, state = variables
        whole = TrainState(jnp.zeros((), jnp.int32), {"student": params}, {"student": state}, (), jax.random.key(0))
        return {name: float(value) for name, value in metrics.values(evaluator(whole, source)).items()}

    return score


def logits_of(context: Context, model: Model, variables: Variables, source: data.Source) -> np.ndarray:
    """Logits of all users.

    Args:
      context: The context of the experiment's trainings.
      model: The network.
      variables: Its variables.
      source: The users.

    Returns:
      [U, I], in the source's order.
    """
    return np.asarray(predict(context, model, variables, source)[1])


def with_shares(batch: Batch) -> dict[str, Any]:
    """A batch with the share that each item has in what its user has had, as soft labels.

    Args:
      batch: Holds `seen` [B, I].

    Returns:
      The batch, and `share`, float32 [B, I].
    """
    seen = jnp.asarray(batch["seen"]).astype(jnp.float32)
    return {**batch, "share": seen / jnp.maximum(jnp.sum(seen, axis=-1, keepdims=True), 1)}


def rows_of_users(ranked: Ranked, names: Sequence[str]) -> np.ndarray:
    """Rows of users that are named, to recommend items to.

    Args:
      ranked: The users.
      names: Their names in the file.

    Returns:
      Row numbers.

    Raises:
      ValueError: If a user has no interaction to train on.
    """
    known = {name: row for row, name in enumerate(ranked.split.train.users)}
    for name in names:
        if name not in known:
            raise ValueError(
                f"user {name!r} (--recommend-to) has no interaction to train on in {ranked.split.train.name}, so "
                f"nothing is known of them: name one of its {len(known):,} users, such as {first_few([*known][:4])}, "
                "or recommend the most popular items."
            )
    return np.array([known[name] for name in names], np.int64)


def say_best(ranked: Ranked, rows: np.ndarray, scores: np.ndarray, by: str) -> None:
    """Prints the ten best items of users among those not seen.

    Args:
      ranked: The users.
      rows: Row numbers of some of them.
      scores: [U, I] of all users.
      by: Name of the network.
    """
    train = ranked.split.train
    for row, best in zip(rows, best_items(scores[rows], ranked.seen[rows], 10), strict=True):
        print(f"{by} recommends to {train.users[row]}: {', '.join(train.items[i] for i in best if i >= 0)}")


def with_bytes(rows: list[Mapping[str, Any]]) -> None:
    """Adds to rows of a table the bytes that their parameters take in float32, in place.

    Args:
      rows: The rows; those without `parameters` stay as they are.
    """
    for i, row in enumerate(rows):
        if "parameters" in row:
            rows[i] = {**row, "bytes": f"{4 * int(row['parameters'].replace(',', '')):,}"}


def say_below(teacher: Scores, rule: Scores) -> None:
    """Says if a teacher ranks held-out items lower than EASE does, so that there is little to learn from it.

    Args:
      teacher: The teacher's figures.
      rule: Those of EASE.
    """
    if teacher["ndcg"] < rule["ndcg"]:
        say(
            f"the teacher's NDCG@10 is {teacher['ndcg']:.4f}, but EASE's {rule['ndcg']:.4f}: a teacher below EASE is "
            "none; give a larger --ease-factor, or more --teacher-steps."
        )
