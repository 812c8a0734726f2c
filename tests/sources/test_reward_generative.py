"""A policy that is asked yes or no learns to answer, and its answer is the score."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from policies import small
from sources.rewarding import TRAINING, ask, numbers, pairs
from triloop.errors import DataError
from triloop.records import Prompt
from triloop.sources.asking import Asking
from triloop.sources.constitution import Principle
from triloop.sources.reward_examples import RewardPair, RewardRating
from triloop.sources.reward_generative import GenerativeReward
from triloop.sources.templates import PLAIN

TEMPLATES = replace(PLAIN, ask="{request}{response}=", yes=("1",), no=("0",), none=())
GOOD = Principle(name="good", text="good", question="?")


def judge(question=GOOD, **training):
    how = replace(TRAINING, **training)
    return GenerativeReward(small.native(), question, Asking(templates=TEMPLATES, least_mass=0.0), training=how)


def test_the_score_is_the_difference_of_the_answers():
    g = judge()
    t = g.policy.tokenizer
    yes, no = (float(g.policy.logprobs([(t.encode("a=bc="), t.encode(w))])[0][0]) for w in "10")
    assert g.score(ask(), ["bc"]) == pytest.approx([yes - no], abs=1e-5)
    (f,) = g.judge(ask(), ["bc"])
    assert (f.source, f.kind) == ("generative:good", "scalar")
    assert f.value == pytest.approx(math.tanh((yes - no) / 2), abs=1e-5)
    turned = judge(replace(GOOD, wanted=False))
    assert turned.score(ask(), ["bc"]) == pytest.approx([no - yes], abs=1e-5)


def test_the_first_loss_is_the_cross_entropy_of_the_answer():
    g = judge(epochs=1)
    (s,) = g.score(ask(), ["bc"])
    t = g.policy.tokenizer
    yes, no = (float(g.policy.logprobs([(t.encode("a=bc="), t.encode(w))])[0][0]) for w in "10")
    (loss,) = g.learn([RewardRating(prompt=ask()[0], text="bc", value=0.5)])
    assert loss == pytest.approx(-0.75 * yes - 0.25 * no, rel=1e-4)
    assert g.score(ask(), ["bc"])[0] != s


@pytest.mark.parametrize("wanted", [True, False])
def test_it_learns_from_pairs(wanted):
    """Pairs label their texts: the better one is answered yes, or, where no is the good answer, no."""
    g = judge(replace(GOOD, wanted=wanted), epochs=6)
    losses = g.learn(pairs(300))
    assert len(losses) == 6 and losses[-1] < losses[0]
    test = pairs(150, seed=9)
    assert g.audit(test).accuracy.value > 0.85
    said = g.compare([e.prompt for e in test], [e.first for e in test], [e.second for e in test])
    assert np.mean([(f.value > 0) == (e.p > 0.5) for f, e in zip(said, test, strict=True)]) > 0.85


def test_a_value_becomes_a_probability_and_steps_are_counted():
    g = judge(epochs=40, batch=8)
    g.learn([RewardRating(prompt=ask()[0], text="ab", value=0.6)] * 8)
    assert numbers(g.judge(ask(), ["ab"])) == pytest.approx([0.6], abs=0.05)
    before = g.policy.version
    g.learn([RewardRating(prompt=ask()[0], text="ab", value=0.6)] * 20, training=replace(TRAINING, steps=4, batch=8))
    assert g.policy.version - before == 4
    with pytest.raises(DataError, match="got none"):
        g.learn([RewardRating(prompt=ask()[0], text="ab")])


def test_a_question_that_fails_fails_the_comparison():
    g = GenerativeReward(small.native(), GOOD, Asking(templates=TEMPLATES, least_mass=0.0, longest=8))
    good, bad = g.compare([Prompt(id="p", text="a=")] * 2, ["a", "a"], ["b", "b" * 20])
    assert not good.failed and bad.failed
    assert RewardPair(prompt=ask()[0], first="a", second="b").p == 1.0
