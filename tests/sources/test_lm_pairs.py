import pytest

from sources.judging import TEMPLATES, Fake, ask
from triloop.errors import ConfigError
from triloop.policies.sampling import Sampling
from triloop.sources.asking import Asking, Thinking
from triloop.sources.constitution import Constitution, Principle
from triloop.sources.lm_pairs import Comparing, PairwiseJudge

ASKING = Asking(templates=TEMPLATES)
POLITE = Principle(name="polite", text="polite")


def biased(text):
    """Likes red, and whatever stands first: P(A) = 0.9 when A is red, 0.6 when B is."""
    return {"A": 0.45, "B": 0.05} if "A red" in text else {"A": 0.3, "B": 0.2}


def test_both_orders_by_hand():
    model = Fake(biased)
    judge = PairwiseJudge(model, POLITE, ASKING, Comparing(inconsistent="average"))
    (f,) = judge.compare(ask(text="x"), ["red"], ["blue"])
    # forward P(A) = 0.9; backward P(B) = 0.4: red wins with 0.65, and 0.5 is bias
    assert dict(f.breakdown) == pytest.approx({"forward": 0.9, "backward": 0.4, "bias": 0.5})
    assert f.value == pytest.approx(0.3) and f.kind == "pair"
    assert model.scored == [4], "one call: two orders, two letters"
    (g,) = judge.compare(ask(text="x"), ["blue"], ["red"])
    assert g.value == pytest.approx(-0.3), "which is named first does not matter"
    assert g.breakdown["bias"] == pytest.approx(0.5)


def test_orders_that_disagree_are_a_tie():
    (f,) = PairwiseJudge(Fake(biased), POLITE, ASKING).compare(ask(text="x"), ["red"], ["blue"])
    assert (f.value, f.reason) == (0.0, "the orders disagree")
    assert f.confidence == pytest.approx(0.5)


def test_orders_that_agree_are_averaged():
    model = Fake(lambda t: {"A": 0.9, "B": 0.1} if "A red" in t else {"A": 0.3, "B": 0.7})
    (f,) = PairwiseJudge(model, POLITE, ASKING).compare(ask(text="x"), ["red"], ["blue"])
    assert f.value == pytest.approx(0.6) and f.confidence == pytest.approx(0.8)


def test_one_order_is_biased_and_a_random_one_is_not_on_average():
    given = PairwiseJudge(Fake(biased), POLITE, ASKING, Comparing(orders="given"))
    assert given.compare(ask(text="x"), ["blue"], ["red"])[0].value == pytest.approx(0.2), "the worse one wins in front"
    coin = PairwiseJudge(Fake(biased), POLITE, ASKING, Comparing(orders="random", seed=1))
    values = [f.value for f in coin.compare(ask(400, "x"), ["red"] * 400, ["blue"] * 400)]
    assert {round(v, 3) for v in values} == {0.8, -0.2}
    assert sum(values) / 400 == pytest.approx(0.3, abs=0.075)  # three standard errors of 0.5 / sqrt(400)


def test_clamp_and_hard_verdicts():
    model = Fake(lambda t: {"A": 0.9, "B": 0.1} if "A red" in t else {"A": 0.1, "B": 0.9})
    clamped = PairwiseJudge(model, POLITE, ASKING, Comparing(clamp=(0.4, 0.6)))
    assert clamped.compare(ask(text="x"), ["red"], ["blue"])[0].value == pytest.approx(0.2)
    hard = PairwiseJudge(model, POLITE, ASKING, Comparing(hard=True))
    assert hard.compare(ask(text="x"), ["blue"], ["red"])[0].value == -1.0
    with pytest.raises(ConfigError, match="clamp"):
        Comparing(clamp=(0.6, 0.9))
    with pytest.raises(ConfigError, match="orders"):
        Comparing(orders="three")


def test_a_word_for_ties_counts_half_for_either():
    from dataclasses import replace

    asking = Asking(templates=replace(TEMPLATES, tie=("none",)))
    model = Fake(lambda _: {"A": 0.2, "B": 0.2, "none": 0.6})
    (f,) = PairwiseJudge(model, POLITE, asking).compare(ask(text="x"), ["red"], ["blue"])
    assert f.value == pytest.approx(0.0, abs=1e-9) and f.breakdown["tie"] == pytest.approx(0.6)


def test_principles_are_drawn_per_item_or_all_asked():
    rules = Constitution(name="rules", principles=(POLITE, Principle(name="long", text="long")))
    model = Fake(lambda t: {"A": 0.8, "B": 0.2} if "polite ?" in t else {"A": 0.4, "B": 0.6})
    drawn = PairwiseJudge(model, rules, ASKING, Comparing(orders="given"))
    values = [round(f.value, 3) for f in drawn.compare(ask(50, "x"), ["red"] * 50, ["blue"] * 50)]
    assert set(values) == {0.6, -0.2}
    assert values == [round(f.value, 3) for f in drawn.compare(ask(50, "x"), ["blue"] * 50, ["red"] * 50)]
    every = PairwiseJudge(model, rules, ASKING, Comparing(orders="given", drawn=False))
    (f,) = every.compare(ask(text="x"), ["red"], ["blue"])
    assert f.value == pytest.approx(0.2)


def test_self_reference_shows_the_judges_own_answer():
    model = Fake(lambda t: {"A": 0.9, "B": 0.1} if "x own red A red" in t else {"A": 0.5, "B": 0.5}, lambda t, i: "red")
    judge = PairwiseJudge(
        model, POLITE, ASKING, Comparing(orders="given", reference=Sampling(max_tokens=2)), sampler=model
    )
    assert judge.compare(ask(text="x"), ["red"], ["blue"])[0].value == pytest.approx(0.8)
    mute = Fake(biased, lambda t, i: "")
    judge = PairwiseJudge(mute, POLITE, ASKING, Comparing(reference=Sampling(max_tokens=2)), sampler=mute)
    assert "no answer of its own" in judge.compare(ask(text="x"), ["red"], ["blue"])[0].failure
    with pytest.raises(ConfigError, match="answers first"):
        PairwiseJudge(mute, POLITE, ASKING, Comparing(reference=Sampling()))


def test_reasoning_first_in_each_order():
    model = Fake(
        lambda t: {"A": 0.8, "B": 0.2} if t.endswith("own A so") else {"A": 0.2, "B": 0.8},
        lambda t, i: "own A" if "A red" in t else "own B",
    )
    asking = Asking(templates=TEMPLATES, thinking=Thinking())
    (f,) = PairwiseJudge(model, POLITE, asking, sampler=model).compare(ask(text="x"), ["red"], ["blue"])
    assert f.value == pytest.approx(0.6) and f.reason == "own A; own B"


def test_failures_stay_alone():
    model = Fake(lambda t: {"A": None, "B": 0.5} if "sorry" in t else biased(t))
    out = PairwiseJudge(model, POLITE, ASKING).compare(ask(3, "x"), ["red", "sorry", ""], ["blue", "x", "x"])
    assert [f.failed for f in out] == [False, True, True]
    assert all(f.value is None and f.kind == "pair" for f in out[1:])
