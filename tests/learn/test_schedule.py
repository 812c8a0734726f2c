from __future__ import annotations

import pytest

from triloop.errors import ConfigError
from triloop.learn.schedule import learning_rate


def test_ramp_then_constant() -> None:
    got = [learning_rate(s, peak=1.0, warmup=4) for s in range(6)]
    assert got == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_and_cosine_by_hand() -> None:
    kept = {"peak": 2.0, "warmup": 2, "total": 10, "floor": 0.1}
    assert learning_rate(2, shape="linear", **kept) == pytest.approx(2.0)
    assert learning_rate(6, shape="linear", **kept) == pytest.approx(2.0 * 0.55)
    assert learning_rate(4, shape="cosine", **kept) == pytest.approx(2.0 * (0.1 + 0.9 * (1 + 2**-0.5) / 2))
    for shape in ("linear", "cosine"):
        assert learning_rate(10, shape=shape, **kept) == pytest.approx(0.2)
        assert learning_rate(99, shape=shape, **kept) == pytest.approx(0.2)


def test_without_ramp_the_first_step_is_at_the_peak() -> None:
    assert learning_rate(0, peak=3.0) == 3.0


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="total number of steps"):
        learning_rate(5, peak=1.0, shape="cosine")
    with pytest.raises(ConfigError, match="step=-1"):
        learning_rate(-1, peak=1.0)
