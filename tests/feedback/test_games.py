"""Preference games by hand: rock, paper, scissors, and an answer that beats all."""

from __future__ import annotations

import numpy as np
import pytest

from triloop.errors import DataError
from triloop.feedback.games import beaten_by, exploitability, winner

ROUND = np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
"""0 beats 2, 1 beats 0, 2 beats 1."""


def test_what_a_mixture_loses_by_hand() -> None:
    assert exploitability(ROUND, np.full(3, 1 / 3)) == pytest.approx(0.0)
    assert exploitability(ROUND, np.array([1.0, 0.0, 0.0])) == 0.5
    # against (1/2, 1/2, 0): 0 wins 1/4, 1 wins 3/4, 2 wins 1/2
    assert beaten_by(ROUND, np.array([0.5, 0.5, 0.0])) == pytest.approx([0.25, 0.75, 0.5])


def test_the_winner_of_a_round_is_everybody() -> None:
    assert winner(ROUND) == pytest.approx(np.full(3, 1 / 3), abs=0.05)


def test_the_winner_of_weighted_rounds() -> None:
    """With margins a (0 over 2), b (1 over 0), c (2 over 1) the winner has weights c, a, b over their sum."""
    a, b, c = 0.1, 0.2, 0.4
    game = np.full((3, 3), 0.5)
    for i, j, lead in ((0, 2, a), (1, 0, b), (2, 1, c)):
        game[i, j] += lead
        game[j, i] -= lead
    assert winner(game, rounds=40_000) == pytest.approx(np.array([c, a, b]) / (a + b + c), abs=0.03)


def test_the_winner_of_a_ladder_is_its_top() -> None:
    ladder = np.array([[0.5, 0.6, 0.9], [0.4, 0.5, 0.7], [0.1, 0.3, 0.5]])
    found = winner(ladder)
    assert found[0] > 0.99
    assert exploitability(ladder, found) < 0.01


def test_what_is_no_game_is_refused() -> None:
    with pytest.raises(DataError, match="expected a square matrix"):
        exploitability(np.array([[0.5, 0.9], [0.9, 0.5]]), np.array([0.5, 0.5]))
