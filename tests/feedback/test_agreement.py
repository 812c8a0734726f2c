"""Agreement: the worked examples of the papers, and properties of what has none."""

import numpy as np
import pytest

from triloop import rng
from triloop.errors import DataError
from triloop.feedback.agreement import (
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    percent_agreement,
    position_bias,
)

NAN = float("nan")

# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C: 4 observers, 12 units, gaps.
RELIABILITY = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)

# Fleiss' kappa's usual example: 10 subjects, 14 raters, 5 categories.
FLEISS = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_paper(level, alpha):
    assert krippendorff_alpha(RELIABILITY, level=level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_two_observers_without_gaps():
    """The same text, section A: ten units, two observers, binary; 0.095."""
    a = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    b = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(np.array([a, b], dtype=float)) == pytest.approx(0.095, abs=5e-4)


def test_fleiss_of_the_example():
    assert fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)


def test_cohen_by_hand():
    """50 proposals, yes/yes 20, yes/no 5, no/yes 10, no/no 15: p_o = 0.7, p_e = 0.5."""
    a = np.array([1] * 25 + [0] * 25)
    b = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    agreed = percent_agreement(a, b)
    assert (agreed.value, agreed.n) == (0.7, 50)
    assert cohen_kappa(a, b, weighting="quadratic") == pytest.approx(0.4)  # two labels have one distance


def test_weighted_kappa_by_hand():
    """Labels 0 0 2 2 against 0 1 2 1: linear cost 2/4; expected: 0.5*(0 .25 + 1 .5 + 2 .25) + 0.5*(2 .25 + 1 .5) = 1."""
    a, b = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 1])
    assert cohen_kappa(a, b, weighting="linear") == pytest.approx(0.5)
    assert cohen_kappa(a, b, weighting="quadratic") == pytest.approx(1 - 0.5 / 1.5)


def test_agreement_is_one_and_chance_is_zero():
    g = rng.generator(0, "agreement")
    a = g.integers(0, 3, 4000)
    b = g.integers(0, 3, 4000)
    assert cohen_kappa(a, a) == 1.0
    assert abs(cohen_kappa(a, b)) < 0.05
    assert krippendorff_alpha(np.stack([a, a]).astype(float)) == 1.0
    assert abs(krippendorff_alpha(np.stack([a, b]).astype(float), level="ordinal")) < 0.05
    assert np.isnan(cohen_kappa(np.ones(3, int), np.ones(3, int)))


def test_alpha_ignores_an_item_with_one_value_and_the_names_of_nominal_labels():
    lonely = np.concatenate([RELIABILITY, [[5], [NAN], [NAN], [NAN]]], axis=1)
    assert krippendorff_alpha(lonely, level="ordinal") == pytest.approx(
        krippendorff_alpha(RELIABILITY, level="ordinal")
    )
    renamed = np.where(RELIABILITY == 1, 77.0, RELIABILITY)
    assert krippendorff_alpha(renamed) == pytest.approx(krippendorff_alpha(RELIABILITY))


def test_position_bias_by_hand():
    # consistent +, consistent -, first twice, first twice, second twice, tie twice, tie then decided
    there = [1, -1, 1, 1, -1, 0, 0]
    back = [-1, 1, 1, 1, -1, 0, 1]
    bias = position_bias(there, back)
    assert bias.inconsistent.value == pytest.approx(4 / 7)
    assert bias.favours_first is not None and bias.favours_first.value == pytest.approx(2 / 3)
    assert bias.ties.value == pytest.approx(3 / 14)
    # first preferred less second, over 14 verdicts: there 3 - 2, back 4 - 2
    assert bias.lean.value == pytest.approx(3 / 14)
    assert bias.consensus.tolist() == [1, -1, 0, 0, 0, 0, -1]


def test_a_judge_without_bias_has_none():
    bias = position_bias([1, -1, 1, 0], [-1, 1, -1, 0])
    assert (bias.inconsistent.value, bias.favours_first, bias.lean.value) == (0.0, None, 0.0)


def test_refusals():
    with pytest.raises(DataError, match="same number"):
        fleiss_kappa(np.array([[1, 1], [2, 1]]))
    with pytest.raises(DataError, match="equally long"):
        position_bias([1], [1, 0])
    with pytest.raises(DataError, match="equally long"):
        position_bias([2], [1])
    with pytest.raises(DataError, match="two values"):
        krippendorff_alpha(np.array([[1.0, NAN]]))
