"""Search by directional feedback."""

from __future__ import annotations

import numpy as np
import pytest

from triloop.errors import ConfigError
from triloop.refine.directed import Attempt, propose, search, synthesised


def _at(x: float, y: float, score: float) -> Attempt:
    return Attempt(point=np.array([x, y], dtype=np.float64), score=score)


def test_a_proposal_goes_where_it_is_told_and_guesses_where_it_is_not() -> None:
    rng = np.random.default_rng(0)
    moved = np.array([propose(np.zeros(3), np.array([1.0, -1.0, 0.0]), 2.0, rng) for _ in range(400)])
    assert (moved[:, 0] > 0).all()
    assert (moved[:, 1] < 0).all()
    assert 0.4 < (moved[:, 2] > 0).mean() < 0.6
    assert moved[:, 2].std() == pytest.approx(2.0, rel=0.15)


def test_what_has_paid_by_hand() -> None:
    """Going right from the best cost 2, going up cost 1: left and down it should be."""
    best = _at(0, 0, 0.0)
    assert synthesised([best, _at(1, 0, -2.0), _at(0, 1, -1.0)], best).tolist() == [-1.0, 0.0]
    # mean -1: (1, 0) is 1 below it, (0, 1) exactly at it; of the latter nothing can be said
    assert synthesised([best, _at(1, 0, -4.0), _at(0, 1, -2.5)], best).tolist() == [-1.0, -1.0]
    assert synthesised([best, _at(1, 0, -2.0)], best).tolist() == [0.0, 0.0]


def test_only_the_nearest_attempts_count() -> None:
    best = _at(0, 0, 0.0)
    near = [_at(1, 0, -1.0), _at(0.5, 0, -0.5)]
    far = [_at(9, 0, -0.01)] * 5
    assert synthesised([best, *near, *far], best, nearest=2).tolist() == [-1.0, 0.0]


def test_a_search_keeps_its_best_and_true_signs_lead_it_home() -> None:
    def score(x: np.ndarray) -> float:
        return -float((x**2).sum())

    start = np.full(4, 5.0)
    told = search(score, start, lambda _, best: -np.sign(best.point), 40, rng=np.random.default_rng(1))
    alone = search(score, start, None, 40, rng=np.random.default_rng(1))
    assert len(told) == len(alone) == 40
    assert told[0].score == -100.0
    assert max(a.score for a in told) > -1.0 > max(a.score for a in alone)


def test_no_attempt_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        search(lambda x: 0.0, np.zeros(1), None, 0, rng=np.random.default_rng(0))
