"""Sources of users whose held-out items a network is to rank first among all items that they have not had yet."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxkd.data.readers.interactions import Interactions, number_by
from jaxkd.data.source import Source
from jaxkd.data.splits import first_few, say
from jaxkd.kernels.rows import take

NO_ITEM = -1
"""Entry of the held-out items of a user who has fewer than others."""


class Holdout(NamedTuple):
    """Interactions to train on, and each user's items that are held out.

    Attributes:
      train: The interactions to train on.
      held: Numbers of the held-out items of each user, int32 [U, H]; `NO_ITEM` fills up rows of fewer.
    """

    train: Interactions
    held: np.ndarray


def leave_last_out(found: Interactions, *, last: int = 1) -> Holdout:
    """Holds out one interaction of each user by time: the last one, or one of those before it.

    Of interactions of one time the one further down in the file is the later one. Users with fewer than three
    interactions are left out, so that those of test and validation are the same; how many is logged.

    Args:
      found: The interactions.
      last: 1 holds out the last one, for a test; 2 the last but one, for validation, and trains on none after it.

    Returns:
      Interactions to train on, and held-out items.

    Raises:
      ValueError: If no user has three interactions.
    """
    counts = np.bincount(found.user, minlength=len(found.users))
    if (few := counts < 3).any():
        if few.all():
            raise ValueError(
                f"{found.name} has no user with three interactions: one to train on, one to validate and one to test "
                "are needed."
            )
        say(
            f"{found.name}: {few.sum():,} of {len(counts):,} users have fewer than three interactions, and are left "
            f"out ({first_few([found.users[u] for u in np.flatnonzero(few)[:4]])})."
        )
        found = _of_users(found, ~few)
    order = np.lexsort((found.time, found.user))  # stable
    place = np.empty(len(order), np.int64)  # from the end of the user's
    ends = np.cumsum(np.bincount(found.user))
    place[order] = ends[found.user[order]] - np.arange(len(order))
    held = np.empty(len(found.users), np.int32)
    held[found.user[place == last]] = found.item[place == last]
    return _told(Holdout(found.take(place > last), held[:, None]))


def hold_out(train: Interactions, test: Interactions) -> Holdout:
    """Holds out the interactions of another file.

    Users without an interaction to train on are left out. Items without one count as misses: no network can know
    them. Interactions that are to be trained on too are left out of the test. All three are counted and logged.

    Args:
      train: The interactions to train on.
      test: The interactions to test on.

    Returns:
      Interactions to train on, and held-out items.

    Raises:
      ValueError: If no user has both.
    """
    test = number_by(test, train.users, train.items)
    if new := test.users[len(train.users) :]:
        say(
            f"{test.name}: {len(new):,} of its users have no interaction in {train.name}, and are left out "
            f"({first_few(new[:4])})."
        )
    train = train._replace(items=test.items)
    pairs = test.user.astype(np.int64) * len(test.items) + test.item
    again = np.isin(pairs, train.user.astype(np.int64) * len(test.items) + train.item)
    if again.any():
        say(f"{test.name}: {again.sum():,} of its interactions are also in {train.name}, and are left out.")
    test = test.take(~again & (test.user < len(train.users)))
    counts = np.bincount(test.user, minlength=len(train.users))
    if not counts.any():
        raise ValueError(f"no user of {test.name} has interactions in {train.name} too: give files of the same users.")
    held = np.full((len(train.users), counts.max()), NO_ITEM, np.int32)
    order = np.argsort(test.user, kind="stable")
    column = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    held[test.user[order], column] = test.item[order]
    return _told(Holdout(train, held))


def _of_users(found: Interactions, kept: np.ndarray) -> Interactions:
    """Interactions of some users, booleans [U], who get new numbers; items without an interaction lose theirs."""
    found = found.take(kept[found.user])
    used = np.bincount(found.item, minlength=len(found.items)) > 0
    user, item = (np.cumsum(x, dtype=np.int32) - 1 for x in (kept, used))
    names = [tuple(np.array(a, object)[b]) for a, b in ((found.users, kept), (found.items, used))]
    return found._replace(user=user[found.user], item=item[found.item], users=names[0], items=names[1])


def _told(split: Holdout) -> Holdout:
    """The same, after it was said how many held-out items no training can know."""
    known = np.bincount(split.train.item, minlength=len(split.train.items)) > 0
    there = split.held[split.held != NO_ITEM]
    if unseen := int((~known[there]).sum()):
        say(
            f"{split.train.name}: {unseen:,} of {len(there):,} held-out items have no interaction to train on, and "
            "count as misses wherever they are ranked below ten others."
        )
    return split


def ranking_source(split: Holdout, name: str) -> Source:
    """Source whose rows are users.

    Args:
      split: Interactions to train on, and held-out items.
      name: Name for messages.

    Returns:
      A source with the fields `user`, int32 [B], their numbers; `seen`, uint8 [B, I], 1 for the items that they have
      had in training; `label`, int32 [B, H], numbers of their held-out items, filled up with -1. Its rows are read from
      sorted interactions, so that the matrix of all users and items is never in memory.
    """
    train, held = split
    order = np.argsort(train.user, kind="stable")
    items, ends = train.item[order], np.cumsum(np.bincount(train.user, minlength=len(train.users)))
    starts = np.concatenate([[0], ends[:-1]])

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        seen = np.zeros((len(rows), len(train.items)), np.uint8)
        for to, row in zip(seen, rows, strict=True):
            to[items[starts[row] : ends[row]]] = 1
        users = np.asarray(rows, np.int32)
        return {"id": users, "user": users, "seen": seen, "label": take(held, rows)}

    return Source(name, len(train.users), len(train.items), None, read, task="ranking")
