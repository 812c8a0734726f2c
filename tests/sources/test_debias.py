import math

import numpy as np
import pytest

from triloop import rng
from triloop.errors import DataError
from triloop.feedback.kinds import Scalar, write
from triloop.records import Feedback, Prompt
from triloop.sources.debias import (
    BothOrders,
    KnownPair,
    KnownText,
    LengthControlled,
    LengthCorrection,
    auc,
    fit_length_correction,
    measure_bias,
    measure_scores,
)
from triloop.sources.lm_pairs import pair_of

PROMPT = Prompt(id="p", text="")


class Logistic:
    """Log-odds for the first: quality (number in the text) + place + slope * difference in words."""

    name = "logistic"

    def __init__(self, place=0.0, slope=0.0):
        self.place, self.slope = place, slope

    def compare(self, prompts, firsts, seconds):
        out = []
        for a, b in zip(firsts, seconds, strict=True):
            if "broken" in a + b:
                out.append(Feedback(value=None, failure="broken", kind="pair", source=self.name))
                continue
            quality = float(a.split()[0]) - float(b.split()[0])
            odds = quality + self.place + self.slope * (len(a.split()) - len(b.split()))
            out.append(write(pair_of(math.tanh(odds / 2)), source=self.name))
        return out


def pairs(n=200, seed=0):
    draw = rng.generator(seed, "pairs")
    out = []
    for _ in range(n):
        a, b = draw.integers(-2, 3, size=2)
        la, lb = draw.integers(1, 9, size=2)
        texts = [" ".join([str(q), *["w"] * (k - 1)]) for q, k in ((a, la), (b, lb))]
        out.append(KnownPair(prompt=PROMPT, first=texts[0], second=texts[1], truth=float(a - b)))
    return out


def test_an_unbiased_judge_has_none():
    report = measure_bias(Logistic(), pairs())
    assert (report.n, report.failures) == (200, 0)
    assert report.accuracy.value == report.one_order.value == 1.0
    assert report.position.value == 0.0 and report.flips.value == 0.0
    assert report.longer.value == 0.0


def test_position_bias_is_seen_and_both_orders_cure_it():
    judge = Logistic(place=1.5)
    items = pairs()
    report = measure_bias(judge, items)
    # By hand: value in either order is tanh((+-q + 1.5) / 2); half their sum is the place's part.
    q = np.array([x.truth for x in items])
    by_hand = (np.tanh((q + 1.5) / 2) + np.tanh((-q + 1.5) / 2)) / 2
    assert report.position.value == pytest.approx(by_hand.mean())
    assert report.position.low > 0.2
    assert report.flips.value == pytest.approx(np.mean(np.abs(q) < 1.5))
    assert report.one_order.value < 0.9 < report.accuracy.value == 1.0
    cured = measure_bias(BothOrders(judge), items)
    assert cured.position.value == pytest.approx(0.0, abs=1e-12) and cured.flips.value == 0.0


def test_both_orders_by_hand():
    average, tie = BothOrders(Logistic(place=1.5), inconsistent="average"), BothOrders(Logistic(place=1.5))
    (f,) = average.compare([PROMPT], ["1"], ["0"])
    forward, backward = math.tanh(1.25), -math.tanh(0.25)
    assert f.value == pytest.approx((forward + backward) / 2)
    assert f.breakdown["bias"] == pytest.approx((forward - backward) / 2)
    assert tie.compare([PROMPT], ["1"], ["0"])[0].value == 0.0
    assert tie.compare([PROMPT], ["1 broken"], ["0"])[0].failure == "broken"


def test_failures_are_counted_and_not_scored():
    items = [*pairs(20), KnownPair(prompt=PROMPT, first="1 broken", second="0", truth=1.0)]
    report = measure_bias(Logistic(), items)
    assert (report.n, report.failures, report.accuracy.value) == (20, 1, 1.0)
    empty = measure_bias(Logistic(), items[-1:])
    assert (empty.n, empty.accuracy, empty.position, empty.flips) == (0, None, None, None)


def test_length_bias_is_seen_fitted_and_taken_out():
    judge, items = Logistic(place=0.5, slope=0.6), pairs(400)
    report = measure_bias(judge, items)
    assert report.longer.low > 0.1 and report.accuracy.value < 0.85
    correction = fit_length_correction(judge, items)
    assert correction.offset == pytest.approx(0.5, abs=0.25) and correction.slope > 1.0
    controlled = LengthControlled(judge, correction)
    after = measure_bias(controlled, pairs(200, seed=1))
    assert abs(after.longer.value) < 0.05 and after.accuracy.value > 0.95
    told = controlled.compare([PROMPT, PROMPT], ["1 w w", "1 broken"], ["0", "0"])
    assert told[0].source == "length-controlled(logistic)" and "uncorrected" in told[0].breakdown
    assert told[1].failure == "broken"


def test_length_correction_by_hand():
    correct = LengthCorrection(slope=2.0, scale=4.0, offset=0.5)
    odds = math.log(0.8 / 0.2) - 0.5 - 2.0 * math.tanh(1.0)
    assert correct(0.6, 4.0) == pytest.approx(2 / (1 + math.exp(-odds)) - 1)
    assert -1 < correct(1.0, 4.0) < 1, "a judge without doubt stays finite"
    with pytest.raises(DataError, match="some difference"):
        fit_length_correction(Logistic(), [KnownPair(prompt=PROMPT, first="1", second="0", truth=1.0)] * 20)


class Lengthy:
    name = "lengthy"

    def __init__(self, slope):
        self.slope = slope

    def judge(self, prompts, texts):
        return [
            write(Scalar(math.tanh(float(t.split()[0]) / 2 + self.slope * len(t.split()))), source=self.name)
            if t
            else Feedback(value=None, failure="empty", source=self.name)
            for t in texts
        ]


def test_scores():
    items = [KnownText(prompt=PROMPT, text=x.first, truth=float(x.first.split()[0])) for x in pairs(300)]
    honest = measure_scores(Lengthy(0.0), [*items, KnownText(prompt=PROMPT, text="", truth=1.0)])
    assert (honest.n, honest.failures, honest.auc, honest.accuracy.value) == (300, 1, 1.0, 1.0)
    assert abs(honest.length) < 0.15 and honest.correlation > 0.95
    swayed = measure_scores(Lengthy(0.2), items)
    assert swayed.length > 0.5 and swayed.auc < 0.99


def test_auc_by_hand():
    # good 3, 1 against bad 2, 1: wins 3>2, 3>1; 1<2; 1=1 half
    assert auc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False])) == pytest.approx(2.5 / 4)
    assert math.isnan(auc(np.array([1.0]), np.array([True])))
