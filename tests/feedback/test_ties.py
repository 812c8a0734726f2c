"""Bradley-Terry, Davidson and Rao-Kupper: closed forms of two players, known truths, and boundaries."""

import math

import numpy as np
import pytest

from triloop import rng
from triloop.errors import ConfigError, DataError
from triloop.feedback.ties import Comparisons, comparisons, fit, log_likelihood, log_probabilities


def two(wins, ties, losses):
    return Comparisons(
        first=np.array([0]), second=np.array([1]), outcomes=np.array([[wins, ties, losses]], dtype=float), n_players=2
    )


def logit(p):
    return math.log(p / (1 - p))


def test_two_players_bradley_terry():
    s = fit(two(6, 0, 3), ridge=0.0)
    d, error = s.difference(0, 1)
    assert d == pytest.approx(math.log(2))
    assert error == pytest.approx(math.sqrt(1 / 6 + 1 / 3))
    assert s.scores.sum() == pytest.approx(0.0, abs=1e-12)
    assert s.errors[0] == pytest.approx(error / 2)
    assert s.log_likelihood == pytest.approx(6 * math.log(2 / 3) + 3 * math.log(1 / 3))


def test_a_tie_is_half_a_win_for_bradley_terry():
    assert fit(two(5, 2, 2), ridge=0.0).difference(0, 1)[0] == pytest.approx(math.log(6 / 3))


def test_two_players_davidson():
    s = fit(two(8, 4, 2), "davidson", ridge=0.0)
    assert s.difference(0, 1)[0] == pytest.approx(math.log(4))
    assert s.tie == pytest.approx(4 / math.sqrt(8 * 2))  # nu = t / sqrt(w l)
    # a saturated multinomial: var(log w/l) = 1/w + 1/l, var(log nu) = 1/t + (1/w + 1/l) / 4
    assert s.difference(0, 1)[1] == pytest.approx(math.sqrt(1 / 8 + 1 / 2))
    assert s.tie_error == pytest.approx(s.tie * math.sqrt(1 / 4 + (1 / 8 + 1 / 2) / 4))
    assert np.exp(log_probabilities(np.array([math.log(4)]), "davidson", 1.0))[0] == pytest.approx(
        np.array([8, 4, 2]) / 14
    )


def test_two_players_rao_kupper():
    s = fit(two(8, 4, 2), "rao_kupper", ridge=0.0)
    assert s.difference(0, 1)[0] == pytest.approx((logit(8 / 14) - logit(2 / 14)) / 2)
    assert math.log(s.tie) == pytest.approx(-(logit(8 / 14) + logit(2 / 14)) / 2)


def test_formulas_as_strengths():
    """P as the papers write it, in strengths and not in scores."""
    p, q, nu, theta = 3.0, 0.5, 0.7, 1.6
    d = np.array([math.log(p / q)])
    davidson = np.exp(log_probabilities(d, "davidson", nu))[0]
    total = p + q + nu * math.sqrt(p * q)
    assert davidson == pytest.approx([p / total, nu * math.sqrt(p * q) / total, q / total])
    kupper = np.exp(log_probabilities(d, "rao_kupper", theta))[0]
    win, lose = p / (p + theta * q), q / (q + theta * p)
    assert kupper == pytest.approx([win, (theta**2 - 1) * p * q / ((p + theta * q) * (q + theta * p)), lose])
    assert kupper.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("model", "tie"), [("davidson", 0.8), ("rao_kupper", 1.7)])
@pytest.mark.parametrize("d", [-800.0, -2.0, 0.0, 800.0])
def test_probabilities_sum_to_one_and_turn_with_the_sides(model, tie, d):
    there = log_probabilities(np.array([d]), model, tie)[0]
    back = log_probabilities(np.array([-d]), model, tie)[0]
    assert there == pytest.approx(back[::-1])
    assert np.exp(there).sum() == pytest.approx(1.0)
    assert np.isfinite(there).all()


def test_without_ties_all_three_are_one():
    d = np.linspace(-3, 3, 7)
    plain = log_probabilities(d, "bradley_terry")[:, [0, 2]]
    assert log_probabilities(d, "davidson", 0.0)[:, [0, 2]] == pytest.approx(plain)
    assert log_probabilities(d, "rao_kupper", 1.0)[:, [0, 2]] == pytest.approx(plain)
    rows = [(0, 1, 1), (0, 1, -1), (1, 2, 1), (2, 0, 1), (0, 2, 1), (1, 2, -1)]
    fits = [fit(comparisons(rows, 3), m) for m in ("bradley_terry", "davidson", "rao_kupper")]
    assert [f.tie for f in fits] == [0.0, 0.0, 1.0]
    for f in fits[1:]:
        assert f.scores == pytest.approx(fits[0].scores, abs=1e-8)


def drawn(model, tie, scores, n, order=0.0, seed=0):
    g = rng.generator(seed, "ties", model)
    first = g.integers(0, len(scores), n)
    second = (first + g.integers(1, len(scores), n)) % len(scores)
    p = np.exp(log_probabilities(scores[first] - scores[second] + order, model, tie))
    outcome = 1 - (g.random(n)[:, None] > np.cumsum(p, axis=1)).sum(axis=1).clip(max=2)
    return comparisons(zip(first.tolist(), second.tolist(), outcome.tolist(), strict=True), len(scores))


@pytest.mark.parametrize(("model", "tie"), [("davidson", 0.8), ("rao_kupper", 1.7)])
def test_finds_what_was_drawn_within_its_own_errors(model, tie):
    truth = np.array([-1.0, -0.3, 0.2, 1.1])
    s = fit(drawn(model, tie, truth, 8000, order=0.4), model, order_effect=True)
    assert (np.abs(s.scores - truth) < 3.5 * s.errors).all()
    assert abs(s.tie - tie) < 3.5 * s.tie_error
    assert abs(s.order - 0.4) < 3.5 * s.order_error
    assert 0 < s.order_error < 0.06


@pytest.mark.parametrize("model", ["bradley_terry", "davidson", "rao_kupper"])
def test_the_maximum_is_a_maximum(model):
    """No small step in any direction does better: gradient and curvature agree with the likelihood itself."""
    played = drawn("davidson", 0.6, np.array([0.5, 0.0, -0.5]), 300)
    s = fit(played, model, ridge=0.0)

    def value(scores, tie):
        logs = log_probabilities(scores[played.first] - scores[played.second], model, tie)
        return float((played.outcomes * logs).sum())

    best = value(s.scores, s.tie)
    assert best == pytest.approx(s.log_likelihood)
    for step in (-0.01, 0.01):
        for i in range(3):
            moved = s.scores.copy()
            moved[i] += step
            # curvature: half the inverse of the conditional variance, to first order
            assert value(moved, s.tie) < best
        if model != "bradley_terry":
            assert value(s.scores, s.tie + step) < best


def test_the_ridge_keeps_an_unbeaten_player_finite():
    s = fit(two(5, 0, 0), ridge=1e-2)
    assert 2 < s.difference(0, 1)[0] < 20
    assert fit(two(5, 0, 0), ridge=1.0).difference(0, 1)[0] < s.difference(0, 1)[0]


def test_players_that_never_met_have_no_errors():
    s = fit(comparisons([(0, 1, 1), (0, 1, -1), (2, 3, 1), (2, 3, -1)], 4))
    assert np.isnan(s.errors).all()
    assert np.isfinite(s.scores).all()


def test_likelihood_picks_the_outcome():
    d = np.array([0.3, 0.3, 0.3])
    logs = log_probabilities(d, "davidson", 0.5)[0]
    assert log_likelihood(d, np.array([1, 0, -1]), "davidson", 0.5) == pytest.approx(logs)


def test_refusals():
    with pytest.raises(ConfigError, match="theta >= 1"):
        log_probabilities(np.zeros(1), "rao_kupper", 0.5)
    with pytest.raises(DataError, match="against itself"):
        comparisons([(1, 1, 1)], 2)
    with pytest.raises(DataError, match="outcome"):
        comparisons([(0, 1, 2)], 2)
    with pytest.raises(DataError, match="expected 0 to 1"):
        comparisons([(0, 2, 1)], 2)
