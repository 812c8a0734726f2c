"""Votes and majorities: values by hand, stated rules, refusals."""

import jaxtyping
import numpy as np
import pytest

from triloop.errors import ConfigError, DataError
from triloop.feedback.aggregate import (
    Votes,
    ballot,
    confidence,
    decide,
    expected_value,
    majority,
    ternary_ballot,
    weighted_majority,
)
from triloop.records import Feedback

ROWS = [("ann", "i", "yes"), ("bob", "i", "yes"), ("cy", "i", "no"), ("ann", "j", "no"), ("bob", "j", "yes")]


def votes(item, worker, label, n_items, n_workers, n_labels):
    return Votes(
        item=np.array(item, dtype=np.int64),
        worker=np.array(worker, dtype=np.int64),
        label=np.array(label, dtype=np.int64),
        n_items=n_items,
        n_workers=n_workers,
        n_labels=n_labels,
    )


def test_ballot_numbers_as_they_come_and_labels_as_listed():
    b = ballot(ROWS)
    assert (b.items, b.workers, b.labels) == (("i", "j"), ("ann", "bob", "cy"), ("no", "yes"))
    assert b.votes.label.tolist() == [1, 1, 0, 0, 1]
    assert ballot(ROWS, labels=("yes", "no")).votes.label.tolist() == [0, 0, 1, 1, 0]
    assert b.votes.counts().tolist() == [[1, 2], [1, 1]]


def test_a_missing_label_keeps_its_item_and_worker():
    b = ballot([*ROWS, ("dee", "k", "?")], missing=("?",))
    assert (b.items[-1], b.workers[-1], b.dropped, len(b.votes.item)) == ("k", "dee", 1, 5)
    assert b.votes.voted().tolist() == [True, True, False]
    assert majority(b.votes)[2].tolist() == [0.5, 0.5]


def test_majority_is_shares_and_ties_follow_the_rule():
    q = majority(ballot(ROWS).votes)
    assert q == pytest.approx(np.array([[1 / 3, 2 / 3], [0.5, 0.5]]))
    assert decide(q).tolist() == [1, 0]
    assert decide(q, ties="none").tolist() == [1, -1]


def test_weighted_majority_by_hand():
    v = ballot(ROWS).votes
    assert weighted_majority(v, np.array([1.0, 1.0, 6.0]))[0] == pytest.approx([6 / 8, 2 / 8])
    assert weighted_majority(v, np.ones(3)) == pytest.approx(majority(v))
    assert weighted_majority(v, np.zeros(3))[0].tolist() == [0.5, 0.5]
    with pytest.raises(DataError, match="none below 0"):
        weighted_majority(v, np.array([1.0, -1.0, 1.0]))
    with pytest.raises(DataError, match="3 workers"):
        weighted_majority(v, np.ones(2))


def test_repeats_count_unless_they_are_dropped():
    v = votes([0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 1], 2, 2, 2)
    assert v.counts()[0].tolist() == [2, 1]
    kept = v.without_repeats()
    assert (kept.item.tolist(), kept.label.tolist()) == ([0, 0, 1], [1, 0, 1])


def test_confidence_by_hand():
    q = np.array([[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    assert confidence(q) == pytest.approx([0.8, 0.0, 1.0])
    assert confidence(q, "top") == pytest.approx([0.9, 0.5, 1.0])
    assert confidence(q, "entropy") == pytest.approx([1 + (0.9 * np.log2(0.9) + 0.1 * np.log2(0.1)), 0.0, 1.0])
    assert confidence(np.array([[0.5, 0.25, 0.25]])) == pytest.approx([0.25])
    with pytest.raises(ConfigError, match="two labels"):
        confidence(np.ones((1, 1)))


def test_confidence_times_the_hard_label_is_the_expected_label():
    q = np.array([[0.9, 0.1], [0.3, 0.7]])
    hard = 2.0 * decide(q) - 1.0
    assert confidence(q) * hard == pytest.approx(expected_value(q, (-1, 1)))
    assert expected_value(np.array([[0.2, 0.3, 0.5]]), (-1, 0, 1)) == pytest.approx([0.3])
    with pytest.raises(DataError, match="3 labels"):
        expected_value(np.ones((1, 3)), (0, 1))


def judged(value, source, failure=None, kind="scalar"):
    return Feedback(value=value, source=source, failure=failure, kind=kind)


def test_feedback_votes_with_its_sign_and_abstentions_are_a_choice():
    given = [
        ("i", judged(0.3, "a")),
        ("i", judged(-1.0, "b")),
        ("i", judged(0.0, "c")),
        ("j", judged(None, "a", failure="no network")),
        ("j", judged(None, "b", kind="text")),
        ("j", judged(0.0, "c")),
    ]
    as_label = ternary_ballot(given, abstentions="label")
    assert as_label.labels == (-1, 0, 1)
    assert as_label.votes.counts().tolist() == [[1, 1, 1], [0, 1, 0]]
    assert as_label.dropped == 2
    gone = ternary_ballot(given, abstentions="missing")
    assert gone.labels == (-1, 1)
    assert gone.votes.counts().tolist() == [[1, 1], [0, 0]]
    assert gone.dropped == 4
    assert gone.workers == ("a", "b", "c")


def test_refusals():
    with pytest.raises((DataError, jaxtyping.TypeCheckError)):  # the shape checker of the tests comes first
        votes([0], [0, 1], [0], 1, 2, 2)
    with pytest.raises(DataError, match="worker runs from 0 to 2"):
        votes([0, 0], [0, 2], [0, 0], 1, 2, 2)
    with pytest.raises(DataError, match="label runs from -1"):
        votes([0], [0], [-1], 1, 1, 2)
    with pytest.raises(DataError, match="perhaps"):
        ballot([("a", "i", "perhaps")], labels=("yes", "no"))
