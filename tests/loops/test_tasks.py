"""Sampling tasks by learning progress."""

from __future__ import annotations

import math

import pytest

from triloop.errors import ConfigError
from triloop.loops.tasks import Trend, progress_weights, trended


def test_trends_by_hand() -> None:
    first = trended(None, 0.2)
    assert first == Trend(fast=0.2, slow=0.2)
    assert first.progress == 0
    second = trended(first, 1.0, fast=0.5, slow=0.25)
    assert (second.fast, second.slow) == (pytest.approx(0.6), pytest.approx(0.4))
    assert second.progress == pytest.approx(0.2)


def test_a_plateau_has_no_progress() -> None:
    trend = trended(None, 0.0)
    for _ in range(100):
        trend = trended(trend, 0.7)
    assert abs(trend.progress) < 1e-6


def test_weights_by_hand() -> None:
    weights = progress_weights({"a": 0.4, "b": 0.0, "c": -0.4}, floor=0.1, sharpness=math.log(2))
    assert weights == {"a": pytest.approx(0.1 + 0.7 * 0.4), "b": pytest.approx(0.1 + 0.7 * 0.2), "c": weights["a"]}
    assert sum(weights.values()) == pytest.approx(1)


def test_equal_where_nothing_moves() -> None:
    assert progress_weights({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}


def test_impossible_floors_are_refused() -> None:
    with pytest.raises(ConfigError, match="floor"):
        progress_weights({"a": 1.0, "b": 1.0}, floor=0.6)
    with pytest.raises(ConfigError, match="0 tasks"):
        progress_weights({})
