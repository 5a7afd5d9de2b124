"""Interactions of users with items, from CSV and TSV files of one interaction a line."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxkd.data.checks import listing, path_of
from jaxkd.data.readers.columns import Columns, shortened
from jaxkd.data.readers.delimited import read_csv, read_tsv
from jaxkd.data.splits import say

_READERS: Mapping[str, Callable[..., Columns]] = {"csv": read_csv, "tsv": read_tsv}
_USUAL = {
    "user": ("user", "userid", "uid", "customer", "customerid", "reviewerid", "member", "visitorid", "u"),
    "item": ("item", "itemid", "iid", "movieid", "productid", "asin", "bookid", "songid", "trackid", "articleid", "i"),
    "rating": ("rating", "ratings", "stars", "score", "r"),
    "time": ("timestamp", "time", "date", "datetime", "unixreviewtime", "t"),
}
NO_FIELD = "none"
"""Name of a field that is not to be read although the file has it."""


class Interactions(NamedTuple):
    """Interactions of users with items, numbered by their names.

    Attributes:
      name: Name of the file, for messages.
      user: Number of the user of each interaction, int32 [N].
      item: Number of its item, int32 [N].
      time: When it was, float64 [N] in the file's unit (seconds since 1970 for dates); its place in the file if the
        file has no times.
      users: Name of each user, in the order of their numbers.
      items: Name of each item.
    """

    name: str
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    users: tuple[str, ...]
    items: tuple[str, ...]

    def take(self, rows: np.ndarray) -> Interactions:
        """Some of the interactions, with the numbers that users and items have.

        Args:
          rows: Booleans [N], or row numbers.

        Returns:
          The interactions.
        """
        return self._replace(user=self.user[rows], item=self.item[rows], time=self.time[rows])


def read_interactions(
    place: str,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    time: str | None = None,
    least_rating: float | None = None,
) -> Interactions:
    """Reads a file of interactions, `user, item[, rating][, time]`, whose first line names the fields.

    Names of users and items may be words or numbers; they are numbered by length and alphabet, so that "9" stands
    before "10". Of interactions of one user with one item the earliest counts. What is left out is counted and logged.

    Args:
      place: "csv:PATH" or "tsv:PATH"; the file may be compressed by xz, gzip or bzip2.
      user: Field of the users; one with a usual name, such as userId, if None.
      item: Field of the items; one with a usual name, such as movieId, if None.
      rating: Field of the ratings, "none" to read none; one with a usual name, if there is one, if None. Ratings only
        serve `least_rating`.
      time: Field of the times, numbers or ISO dates, "none" to go by the order of the file; one with a usual name, if
        there is one, if None.
      least_rating: Least rating of an interaction that counts; all count if None.

    Returns:
      The interactions, in the order of the file.

    Raises:
      ValueError: In one sentence, if the file cannot be read, lacks a field, or holds a name, a rating or a time that
        is none; or if no interaction is left.
    """
    kind, colon, path = place.partition(":")
    if not colon or kind not in _READERS:
        raise ValueError(
            f"{place!r} is no place of interactions: write csv:PATH or tsv:PATH, a file whose first line names the "
            "fields."
        )
    columns = _READERS[kind](path_of(path))
    fields = _choose(columns, {"user": user, "item": item, "rating": rating, "time": time})
    names = {side: _names(columns, fields[side]) for side in ("user", "item")}
    times = _numbers(columns, fields["time"], "time") if fields["time"] else np.arange(len(names["user"]), dtype=float)
    if not fields["time"]:
        say(f"{columns.name} has no field of times, so the order of its lines counts: name one by --time-field.")
    kept = _liked(columns, fields["rating"], least_rating)
    numbers, of = {}, {}
    for side, values in names.items():
        found = [value for value, keep in zip(values, kept, strict=True) if keep]
        of[side] = tuple(sorted(set(found), key=lambda name: (len(name), name)))
        place_of = {name: i for i, name in enumerate(of[side])}
        numbers[side] = np.array([place_of[name] for name in found], np.int32)
    read = Interactions(columns.name, numbers["user"], numbers["item"], times[kept], of["user"], of["item"])
    return _without_repetitions(read)


def _choose(columns: Columns, given: Mapping[str, str | None]) -> dict[str, str]:
    """Role -> name of its field, "" for ratings and times if there are none."""
    have = list(columns.values)
    usual = {re.sub(r"[\W_]+", "", name.lower()): name for name in reversed(have)}
    chosen = {}
    for role, name in given.items():
        if name == NO_FIELD and role in ("rating", "time"):
            chosen[role] = ""
            continue
        if name is not None and name not in have:
            raise ValueError(f"{columns.name} has no field {name!r} (--{role}-field): it has {listing(have)}.")
        known = [usual[word] for word in _USUAL[role] if word in usual]
        chosen[role] = name or next(iter(known), "")
        if not chosen[role] and role in ("user", "item"):
            raise ValueError(
                f"{columns.name} has no field with a usual name of {role}s, such as {role}Id: it has "
                f"{listing([shortened(one) for one in have])}; name one by --{role}-field, or put a line with the "
                "names of the fields first if these are values."
            )
    filled = [name for name in chosen.values() if name]
    if twice := [name for name in filled if filled.count(name) > 1]:
        raise ValueError(
            f"the field {twice[0]!r} of {columns.name} is named twice: name different ones by "
            f"{listing([f'--{role}-field' for role, name in chosen.items() if name == twice[0]])}."
        )
    return chosen


def _names(columns: Columns, field: str) -> list[str]:
    """Names in a field, none of which is empty."""
    names = [value.strip() for value in columns.values[field]]
    if "" in names:
        raise ValueError(f"`{field}` is empty in {columns.place(names.index(''), field)}: give a name in every row.")
    return names


def _numbers(columns: Columns, field: str, what: str) -> np.ndarray:
    """Numbers, or dates as seconds since 1970, of a field, float64 [N]."""
    return np.array([_number(columns, field, what, row) for row in range(len(columns.values[field]))], np.float64)


def _number(columns: Columns, field: str, what: str, row: int) -> float:
    text = columns.values[field][row].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) and what == "time":
        try:
            moment = datetime.datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
            value = moment.timestamp()
        except ValueError:
            value = math.nan
    if not math.isfinite(value):
        wanted = "a number, or a date such as 2024-05-31T12:00" if what == "time" else "a number"
        raise ValueError(
            f"`{field}` is {shortened(text)} in {columns.place(row, field)}, which is no {what}: give {wanted}, or "
            f"--{what}-field {NO_FIELD} to do without."
        )
    return value


def _liked(columns: Columns, field: str, least: float | None) -> np.ndarray:
    """Booleans [N], true where the rating counts."""
    size = len(next(iter(columns.values.values())))
    if least is None:
        return np.ones(size, bool)
    if not field:
        raise ValueError(
            f"--least-rating is {least:g}, but {columns.name} has no field of ratings: name it by --rating-field, or "
            "leave --least-rating out."
        )
    kept = _numbers(columns, field, "rating") >= least
    if not kept.any():
        raise ValueError(f"no rating of {columns.name} is at least {least:g}: give a smaller --least-rating.")
    if not kept.all():
        say(f"{columns.name}: {size - kept.sum():,} of {size:,} interactions have a rating below {least:g}, left out.")
    return kept


def _without_repetitions(found: Interactions) -> Interactions:
    """The interactions, of which each user has one with each item: the earliest."""
    order = np.lexsort((found.time, found.item, found.user))  # stable, so that of equal times the first line counts
    again = np.zeros(len(order), bool)
    same = np.diff(found.user[order]) == 0
    again[order[1:][same & (np.diff(found.item[order]) == 0)]] = True
    if not again.any():
        return found
    say(
        f"{found.name}: {again.sum():,} of {len(again):,} interactions repeat one of the same user and item, and are "
        "left out: the earliest of each counts."
    )
    return found.take(~again)


def number_by(found: Interactions, users: Sequence[str], items: Sequence[str]) -> Interactions:
    """Numbers interactions as those of another file; names that are new get numbers after its own.

    Args:
      found: The interactions.
      users: Names of the other file's users.
      items: Names of its items.

    Returns:
      The same interactions.
    """
    both = []
    for own, others in ((found.users, users), (found.items, items)):
        names = tuple(others) + tuple(name for name in own if name not in set(others))
        place_of = {name: i for i, name in enumerate(names)}
        both.append((names, np.array([place_of[name] for name in own], np.int32)))
    (user_names, user), (item_names, item) = both
    return found._replace(user=user[found.user], item=item[found.item], users=user_names, items=item_names)
