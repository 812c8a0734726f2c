"""Weights against a condition that goes with its context, by hand."""

from __future__ import annotations

import pytest

from triloop.errors import ConfigError
from triloop.learn.propensity import inverse_propensity

CONDITIONS = ["good"] * 3 + ["bad"] + ["good"] + ["bad"] * 3
CONTEXTS = ["fox"] * 4 + ["owl"] * 4


def test_by_hand() -> None:
    """P(good) = 1/2, P(good | fox) = 3/4: 2/3 for the common pairs, 2 for the rare ones."""
    weights = inverse_propensity(CONDITIONS, CONTEXTS)
    assert weights == pytest.approx([2 / 3] * 3 + [2.0] + [2.0] + [2 / 3] * 3)
    assert sum(weights) == pytest.approx(len(weights))


def test_the_correlation_is_gone() -> None:
    weights = inverse_propensity(CONDITIONS, CONTEXTS)
    for context in ("fox", "owl"):
        here = [(c, w) for c, x, w in zip(CONDITIONS, CONTEXTS, weights, strict=True) if x == context]
        assert sum(w for c, w in here if c == "good") == pytest.approx(sum(w for c, w in here if c == "bad"))


def test_no_weight_is_larger_than_asked() -> None:
    assert max(inverse_propensity(CONDITIONS, CONTEXTS, largest=1.5)) == 1.5


def test_independent_conditions_weigh_one() -> None:
    assert inverse_propensity(["a", "b", "a", "b"], [0, 0, 1, 1]) == pytest.approx([1.0] * 4)


def test_as_many_of_each() -> None:
    with pytest.raises(ConfigError, match="2 conditions for 1 contexts"):
        inverse_propensity(["a", "b"], [0])
