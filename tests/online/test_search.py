"""Successive halving: who goes on, what it costs, and what it finds."""

from __future__ import annotations

import math

import pytest

from triloop.errors import ConfigError
from triloop.online.search import successive_halving


def test_the_rungs_by_hand() -> None:
    spent = dict.fromkeys(range(9), 0)

    def train(candidate: int, updates: int) -> float:
        spent[candidate] += updates
        return abs(candidate - 5) + 1 / spent[candidate]

    found = successive_halving(range(9), train, first=10)
    assert found.best == 5 and found.loss == pytest.approx(1 / 90)
    assert [len(r) for r in found.rungs] == [9, 3, 1]
    assert spent == {0: 10, 1: 10, 2: 10, 3: 10, 4: 30, 5: 90, 6: 30, 7: 10, 8: 10}


def test_a_late_riser_is_lost_and_a_diverged_one_too() -> None:
    """What halving gives up for its price: a candidate that only pays off later."""
    spent = {"early": 0, "late": 0, "diverged": 0}

    def train(candidate: str, updates: int) -> float:
        spent[candidate] += updates
        if candidate == "diverged":
            return math.nan
        return 1.0 if candidate == "early" else 10.0 / spent[candidate]

    found = successive_halving(("diverged", "late", "early"), train, first=3)
    assert found.best == "early"


def test_two_that_are_left_are_compared_and_done() -> None:
    found = successive_halving([3.0, 1.0], lambda c, n: c, first=1)
    assert found.best == 1.0 and len(found.rungs) == 1


@pytest.mark.parametrize("wrong", [([], 1, 3), ([1], 0, 3), ([1], 1, 1)])
def test_nonsense_is_refused(wrong: tuple[list[int], int, int]) -> None:
    with pytest.raises(ConfigError, match="candidates"):
        successive_halving(wrong[0], lambda c, n: 0.0, first=wrong[1], factor=wrong[2])
