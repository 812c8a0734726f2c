"""Calibration: values by hand, identities, and coverage as promised."""

import math

import numpy as np
import pytest

from triloop import rng
from triloop.errors import ConfigError, DataError
from triloop.feedback.calibration import brier, conformal, ece, isotonic, log_loss, reliability, temperature, top

P = np.array([0.1, 0.1, 0.4, 0.8, 0.8, 1.0])
Y = np.array([False, True, False, True, False, True])


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def draw(n, seed=0, k=3, scale=2.0):
    """Logits whose softmax is the truth, and labels drawn from it."""
    g = rng.generator(seed, "calibration")
    logits = g.normal(size=(n, k)) * scale
    label = (g.random(n)[:, None] > np.cumsum(softmax(logits), axis=1)).sum(axis=1).clip(max=k - 1)
    return logits, label


def test_ece_by_hand():
    """Two bins: mean 0.2 against 1/3, mean 2.6/3 against 2/3."""
    assert ece(P, Y, bins=2) == pytest.approx(0.5 * abs(0.2 - 1 / 3) + 0.5 * abs(2.6 / 3 - 2 / 3))
    table = reliability(P, Y, bins=2)
    assert table.count.tolist() == [3, 3]
    assert table.forecast == pytest.approx([0.2, 2.6 / 3])


def test_equal_mass_splits_by_rank_and_keeps_equals_together():
    table = reliability(P, Y, bins=3, binning="mass")
    assert table.count.tolist() == [2, 1, 3]  # cuts before 0.4 and before 0.8
    assert table.observed == pytest.approx([0.5, 0.0, 2 / 3])
    assert reliability(np.full(5, 0.5), np.array([True] * 5), bins=4, binning="mass").count.tolist() == [5]


def test_brier_by_hand_and_its_decomposition():
    score = brier(P, Y)
    by_hand = (0.01 + 0.81 + 0.16 + 0.04 + 0.64 + 0.0) / 6
    assert score.score == pytest.approx(by_hand)
    # groups 0.1: 1 of 2, 0.4: 0 of 1, 0.8: 1 of 2, 1.0: 1 of 1
    assert score.reliability == pytest.approx((2 * 0.16 + 0.16 + 2 * 0.09) / 6)
    assert score.resolution == pytest.approx((0.25 + 0.25) / 6)
    assert score.uncertainty == pytest.approx(0.25)
    assert score.score == pytest.approx(score.reliability - score.resolution + score.uncertainty)


def test_log_loss_by_hand():
    assert log_loss(np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([0, 0])) == pytest.approx(math.log(8) / 2)
    assert math.isfinite(log_loss(np.array([[0.0, 1.0]]), np.array([0])))


@pytest.mark.parametrize("sharpened", [0.25, 1.0, 5.0])
def test_temperature_finds_what_the_logits_were_multiplied_by(sharpened):
    logits, label = draw(6000)
    t = temperature(logits * sharpened, label)
    assert t == pytest.approx(sharpened, rel=0.08)
    # a minimum: both sides are worse
    here = log_loss(softmax(logits * sharpened / t), label)
    assert here < min(log_loss(softmax(logits * sharpened / (t * f)), label) for f in (0.9, 1.1))
    assert ece(*top(softmax(logits * sharpened / t), label)) < 0.03


def test_temperature_by_hand():
    """One logit z = 2 for yes, right 3 times of 4: s(2 / T) = 3/4."""
    logits, label = np.tile([0.0, 2.0], (4, 1)), np.array([1, 1, 1, 0])
    assert temperature(logits, label) == pytest.approx(2 / math.log(3))


def test_temperature_has_ends():
    logits = np.tile([0.0, 2.0], (4, 1))
    assert 0.01 <= temperature(logits, np.ones(4, int)) < 0.1
    assert temperature(logits, np.zeros(4, int)) == pytest.approx(100.0)


def test_isotonic_by_hand():
    """1 0 pools to a half, and stays under the next."""
    fitted = isotonic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]))
    assert fitted.values == pytest.approx([0.0, 0.5, 0.5, 1.0])
    assert fitted(np.array([0.0, 1.5, 9.0])) == pytest.approx([0.0, 0.25, 1.0])
    falling = isotonic(np.array([1.0, 2.0]), np.array([True, False]))
    assert falling.values == pytest.approx([0.5, 0.5])


def test_isotonic_never_falls_and_keeps_the_mean():
    logits, label = draw(500, k=2)
    scores, yes = logits[:, 1] - logits[:, 0], label == 1
    fitted = isotonic(scores, yes)
    assert (np.diff(fitted.values) >= 0).all()
    assert fitted(scores).mean() == pytest.approx(yes.mean())


def test_conformal_threshold_by_hand():
    """n = 4, level 0.4: rank ceil(5 * 0.6) = 3, the third largest probability of the truth."""
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    fitted = conformal(p, np.array([0, 0, 0, 0]), level=0.4)
    assert fitted.threshold == pytest.approx(0.7)
    assert fitted.answer(np.array([[0.75, 0.25], [0.55, 0.45]])).tolist() == [0, -1]
    few = conformal(p, np.array([0, 0, 0, 0]), level=0.1)
    assert few.answer(p).tolist() == [-1] * 4  # four items cannot promise 90 %


def test_conformal_keeps_its_promise_with_a_bad_posterior():
    """Overconfident by a factor of 4: coverage holds all the same, over 200 splits; answered and wrong stays below."""
    missed, wrong = [], []
    for seed in range(200):
        logits, label = draw(300, seed=seed, scale=1.0)
        p = softmax(4.0 * logits)
        fitted = conformal(p[:200], label[:200], level=0.2)
        missed.append(1 - fitted.plausible(p[200:])[np.arange(100), label[200:]].mean())
        given = fitted.answer(p[200:])
        wrong.append(((given >= 0) & (given != label[200:])).mean())
    assert np.mean(missed) == pytest.approx(0.2, abs=0.02)
    assert np.mean(wrong) <= np.mean(missed)


def test_refusals():
    with pytest.raises(DataError, match="between 0 and 1"):
        ece(np.array([1.2]), np.array([True]))
    with pytest.raises(ConfigError, match="level"):
        conformal(np.ones((1, 2)), np.array([0]), level=1.0)
    with pytest.raises(ConfigError, match="bins"):
        ece(P, Y, bins=0)
