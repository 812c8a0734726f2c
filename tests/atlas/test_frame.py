"""The one rule that turns data into a verdict, by hand."""

from __future__ import annotations

import math

import pytest

from triloop.atlas.frame import Contrast, Measured, decide, difference, judge
from triloop.errors import ConfigError


def _contrast(above: float = 0.1, below: float = -0.1, higher: bool = True) -> Contrast:
    return Contrast(metric="m", treatment="t", baseline="b", above=above, below=below, higher_is_better=higher)


def test_the_interval_by_hand() -> None:
    """d = 1, 2, 3: mean 2, sd 1, t(2) = 4.303, half = 4.303 / sqrt(3)."""
    d = difference(_contrast(), [0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    half = 4.303 / math.sqrt(3)
    assert (d.value, d.low, d.high, d.n) == pytest.approx((2.0, 2.0 - half, 2.0 + half, 3))


@pytest.mark.parametrize(
    ("treatment", "verdict"),
    [
        ([0.29, 0.30, 0.31], 1),  # 0.30 +- 0.025: all of it above 0.1
        ([-0.29, -0.30, -0.31], -1),
        ([0.10, 0.11, 0.12], 0),  # above 0, and not all of it above the margin
        ([0.0, 0.3, 0.6], 0),  # a large mean that one seed carries
    ],
)
def test_plus_one_zero_and_minus_one(treatment: list[float], verdict: int) -> None:
    measured = Measured(baseline=[[0.0] * 3], treatment=[treatment])
    assert judge([_contrast()], measured) == verdict


def test_lower_is_better_turns_the_sign() -> None:
    d = difference(_contrast(higher=False), [1.0, 1.1, 1.2], [0.5, 0.6, 0.7])
    assert d.value == pytest.approx(0.5)
    assert decide(_contrast(higher=False), d) == 1


def test_no_worse_than_is_a_negative_threshold() -> None:
    no_worse = _contrast(above=-0.05, below=-0.05)
    same = difference(no_worse, [0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same.low, same.high, decide(no_worse, same)) == (0.0, 0.0, 1)


def test_all_contrasts_must_hold_and_one_contradiction_decides() -> None:
    good, bad, flat = [1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]
    zero = [0.0, 0.0, 0.0]
    both = [_contrast(), _contrast()]
    assert judge(both, Measured(baseline=[zero, zero], treatment=[good, good])) == 1
    assert judge(both, Measured(baseline=[zero, zero], treatment=[good, flat])) == 0
    assert judge(both, Measured(baseline=[zero, zero], treatment=[bad, flat])) == -1


@pytest.mark.parametrize(
    ("baseline", "treatment", "said"),
    [
        ([0.0, 0.0], [1.0, 1.0], "at least 3 seeds"),
        ([0.0, 0.0, 0.0], [1.0, 1.0], "3 baseline and 2 treatment"),
        ([0.0, 0.0, 0.0], [1.0, 1.0, math.nan], "not finite"),
    ],
)
def test_data_that_decide_nothing_are_refused(baseline: list[float], treatment: list[float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        difference(_contrast(), baseline, treatment)


def test_a_contrast_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected as many of each"):
        judge([_contrast(), _contrast()], Measured(baseline=[[0.0] * 3], treatment=[[1.0] * 3]))


def test_thresholds_must_be_in_order() -> None:
    with pytest.raises(ConfigError, match="below <= above"):
        _contrast(above=0.0, below=0.1)


def test_the_rule_says_its_thresholds() -> None:
    assert _contrast().words == "m, t minus b: +1 above 0.1, -1 below -0.1, else 0"
    assert _contrast(higher=False).words.startswith("m, b minus t")
