"""Rules of recommendation against their plain formulas, a teacher's rankings, and mistakes of the flags."""

import logging

import numpy as np
import pytest

from jaxkd.data.ranking import leave_last_out
from jaxkd.experiment.fields import recommendation as field

RANKED = field.as_ranked(leave_last_out(field.made_up(users=9, items=14, each=5)))


def item_by_item(seen, l2):
    """EASE as its paper has it, over items."""
    inverse = np.linalg.inv(seen.T @ seen + l2 * np.eye(seen.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return seen @ weights


@pytest.mark.parametrize("seen", [RANKED.seen, RANKED.seen[:, :6]], ids=["fewer users", "fewer items"])
def test_rules_equal_their_formulas_over_users_and_over_items(seen):
    np.testing.assert_allclose(field.ease(seen, 3.0), item_by_item(seen.astype(np.float64), 3.0), atol=1e-5)
    norms = np.sqrt(np.maximum(seen.sum(axis=0), 1))
    cosines = seen.T @ seen / np.outer(norms, norms)
    np.fill_diagonal(cosines, 0)
    np.testing.assert_allclose(field.item_neighbours(seen), seen @ cosines, atol=1e-5)
    assert np.all(field.popular(seen) == seen.sum(axis=0))


def test_rankings_hold_the_best_items_not_seen_and_rules_are_measured_on_held_out_ones(capsys):
    scores = field.ease(RANKED.seen, 3.0)
    best = field.best_items(scores, RANKED.seen, 12)
    for row, (items, seen) in enumerate(zip(best, RANKED.seen, strict=True)):
        there = items[items >= 0]
        assert not seen[there].any()
        assert len(there) == min(12, 14 - int(seen.sum()))
        assert np.all(np.diff(scores[row, there]) <= 0)
    found = field.measure_scores(scores, RANKED.source)
    held = RANKED.split.held[:, 0]
    place = [list(items).index(i) if i in items else 12 for items, i in zip(best, held, strict=True)]
    assert found["hit_rate"] == pytest.approx(np.mean(np.array(place) < 10))
    field.say_best(RANKED, field.rows_of_users(RANKED, ["user3"]), scores, "ease")
    assert capsys.readouterr().out.startswith(f"ease recommends to user3: item{best[3, 0]}, item{best[3, 1]}")


def test_strangers_are_refused_and_a_teacher_below_ease_is_said(caplog):
    with pytest.raises(
        ValueError, match=r"user 'nobody' \(--recommend-to\) has no interaction .* its 9 users, such as"
    ):
        field.rows_of_users(RANKED, ["user1", "nobody"])
    with caplog.at_level(logging.WARNING):
        field.say_below({"ndcg": 0.1}, {"ndcg": 0.1})
        assert not caplog.text
        field.say_below({"ndcg": 0.1}, {"ndcg": 0.2})
    assert "a teacher below EASE is none" in caplog.text


def test_another_files_test_goes_without_a_validation():
    config = field.RecommendationConfig(test_source="csv:test.csv", evaluate="validation")
    with pytest.raises(ValueError, match="leave --test-source out"):
        config.check()


def test_parameters_are_given_in_bytes_too():
    rows = [{"network": "a", "parameters": "1,000"}, {"network": "b"}]
    field.with_bytes(rows)
    assert rows == [{"network": "a", "parameters": "1,000", "bytes": "4,000"}, {"network": "b"}]
