"""Held-out items: each user's last ones or those of another file, who is left out, and the rows of users."""

import logging

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.ranking import NO_ITEM, hold_out, leave_last_out, ranking_source
from jaxkd.data.readers.interactions import Interactions

NAMES = ("a", "b", "c", "d", "e")


def interactions(*triples, users=("u", "v", "w"), items=NAMES, name="file"):
    """From (user, item, time)."""
    user, item, time = (np.array(column) for column in zip(*triples, strict=True))
    return Interactions(name, user.astype(np.int32), item.astype(np.int32), time.astype(float), users, items)


FOUND = interactions(
    *[(0, 0, 9), (0, 1, 2), (1, 0, 4), (0, 2, 9), (1, 3, 4), (1, 4, 1), (0, 3, 5), (2, 4, 0), (2, 1, 0)]
)


def pairs(found):
    return {(found.users[u], found.items[i]) for u, i in zip(found.user, found.item, strict=True)}


@pytest.mark.parametrize(
    ("last", "held", "train"),
    [
        (1, ["c", "d"], {("u", "a"), ("u", "b"), ("u", "d"), ("v", "a"), ("v", "e")}),
        (2, ["a", "a"], {("u", "b"), ("u", "d"), ("v", "e")}),
    ],
)
def test_the_last_or_the_one_before_it_is_held_out_and_of_equal_times_the_later_line_is_the_last(
    last, held, train, caplog
):
    with caplog.at_level(logging.WARNING):
        split = leave_last_out(FOUND, last=last)
    assert split.train.users == ("u", "v")
    assert [split.train.items[i] for i in split.held[:, 0]] == held
    assert pairs(split.train) == train
    assert "1 of 3 users have fewer than three interactions, and are left out (w)" in caplog.text
    assert "held-out items have no interaction to train on" in caplog.text


def test_another_files_interactions_are_held_out_and_what_cannot_be_known_is_said(caplog):
    train = interactions((0, 0, 0), (0, 1, 0), (1, 1, 0), users=("u", "v"), items=("a", "b"))
    test = interactions(
        (0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 2, 0), users=("v", "x"), items=("c", "b", "a"), name="test"
    )
    with caplog.at_level(logging.WARNING):
        split = hold_out(train, test)
    assert split.train.items == ("a", "b", "c")
    assert split.held.tolist() == [[NO_ITEM], [2]]
    assert "1 of its users have no interaction in file, and are left out (x)" in caplog.text
    assert "1 of its interactions are also in file" in caplog.text
    assert "1 of 1 held-out items have no interaction to train on" in caplog.text
    with pytest.raises(ValueError, match="no user of test has interactions in file too"):
        hold_out(train, test.take(test.user == 1))


def test_a_file_of_strangers_is_refused():
    with pytest.raises(ValueError, match="file has no user with three interactions"):
        leave_last_out(interactions((0, 0, 0), (1, 1, 0), users=("u", "v")))


def test_rows_are_users_with_what_they_have_had():
    source = ranking_source(leave_last_out(FOUND), "mine")
    assert (len(source), source.num_classes, source.task) == (2, 5, "ranking")
    batch = data.train_batches(source, 2, seed=0)[0]
    order = np.argsort(batch["user"])
    assert batch["seen"][order].tolist() == [[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert batch["label"][order].tolist() == [[2], [3]]
    np.testing.assert_array_equal(batch["id"], batch["user"])
