"""Routing: values worked by hand, the budget against an exhaustive search, cascades that escalate on 0."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.errors import ConfigError
from triloop.feedback.cascade import Rung, ask_next, expected_of_cascade, needed_confidence, settled, tally
from triloop.feedback.kinds import Abstention, Pair, Ternary, write
from triloop.feedback.routing import (
    Offer,
    Question,
    by_budget,
    by_difficulty,
    by_share,
    by_value,
    expected,
    loss,
)
from triloop.records import Feedback
from triloop.rng import generator

VERIFIER = Offer(source="verifier", price=0.001, accuracy=0.9, accuracy_hard=0.5)
JUDGE = Offer(source="judge", price=0.02, accuracy=0.9, accuracy_hard=0.8)
PERSON = Offer(source="person", price=1.0, accuracy=0.98)
ALL = (VERIFIER, JUDGE, PERSON)


def test_difficulty_by_cuts_and_by_equal_shares() -> None:
    questions = [Question(id=str(k), difficulty=k / 10) for k in range(10)]
    cut = by_difficulty(questions, cuts=(0.3, 0.8))
    assert [cut[str(k)] for k in (0, 2, 3, 7, 8, 9)] == ["text", "text", "edit", "edit", "pair", "pair"]
    equal = by_difficulty(questions)
    assert [list(equal.values()).count(kind) for kind in ("text", "edit", "pair")] == [4, 3, 3]
    assert equal["0"] == "text" and equal["5"] == "edit" and equal["9"] == "pair"


def test_equals_are_divided_by_the_seed_alone() -> None:
    questions = [Question(id=str(k)) for k in range(30)]
    assert by_difficulty(questions, seed=1) == by_difficulty(questions[::-1], seed=1)
    assert by_difficulty(questions, seed=1) != by_difficulty(questions, seed=2)
    chosen = [
        {r.question for r in by_share(questions, JUDGE, PERSON, 0.5, seed=s) if r.source == "person"} for s in (0, 1)
    ]
    assert len(chosen[0]) == len(chosen[1]) == 15 and chosen[0] != chosen[1]


def test_the_cheapest_in_price_and_risk_by_hand() -> None:
    """Difficulty 1/2: the verifier is right in 0.7, the judge in 0.85, a person in 0.98 of the cases."""
    losses = [loss(Question(id="q", stakes=1.0), o, ALL) for o in ALL]
    assert losses == pytest.approx([0.001 + 0.3, 0.02 + 0.15, 1.0 + 0.02])
    by_stakes = [by_value([Question(id="q", stakes=s)], ALL)[0].source for s in (0.01, 1.0, 100.0)]
    assert by_stakes == ["verifier", "judge", "person"]


def test_own_uncertainty_speaks_for_the_cheapest_only() -> None:
    sure, unsure = Question(id="a", uncertainty=0.0), Question(id="b", uncertainty=0.9)
    routes = by_value([sure, unsure], ALL)
    assert [r.source for r in routes] == ["verifier", "judge"]
    assert [r.right for r in routes] == pytest.approx([1.0, 0.85])


def test_the_dial_sends_what_is_worth_most() -> None:
    cheap = Offer(source="cheap", price=0.01, accuracy=1.0, accuracy_hard=0.5)
    questions = [Question(id=str(k), difficulty=k / 9) for k in range(10)]
    assert {r.question for r in by_share(questions, cheap, PERSON, 0.2) if r.source == "person"} == {"8", "9"}
    costs = [expected(by_share(questions, cheap, PERSON, h / 10), questions).cost for h in range(11)]
    assert costs == pytest.approx([0.1 + 0.99 * h for h in range(11)])


def test_accounts_by_hand() -> None:
    questions = [Question(id="a", stakes=2.0), Question(id="b", stakes=1.0)]
    routes = [*by_share(questions[:1], JUDGE, PERSON, 1.0), *by_share(questions[1:], JUDGE, PERSON, 0.0)]
    told = expected(routes, questions)
    assert told.cost == pytest.approx(1.02)
    assert told.accuracy == pytest.approx((0.98 + 0.85) / 2)
    assert told.risk == pytest.approx(2 * 0.02 + 0.15)
    assert told.asked == {"person": 1.0, "judge": 1.0}
    with pytest.raises(ConfigError, match="one route for each"):
        expected(routes[:1], questions)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 5)), min_size=1, max_size=4),
    st.floats(0.0, 4.0),
    st.integers(0, 3),
)
def test_the_budget_is_kept_and_spent_nearly_as_well_as_possible(
    items: list[tuple[float, float]], extra: float, seed: int
) -> None:
    """Greedy is within the best single step of the exhaustive optimum, and never above the budget."""
    questions = [Question(id=str(k), difficulty=d, stakes=s) for k, (d, s) in enumerate(items)]
    budget = 0.001 * len(items) + extra
    told = expected(by_budget(questions, ALL, budget, seed=seed), questions)
    assert told.cost <= budget + 1e-9
    best = min(
        sum(q.stakes * (1 - o.accuracy_at(q.difficulty)) for q, o in zip(questions, chosen, strict=True))
        for chosen in product(ALL, repeat=len(questions))
        if sum(o.price for o in chosen) <= budget + 1e-9
    )
    step = max(q.stakes * 0.5 for q in questions)
    assert best - 1e-9 <= told.risk <= best + step


def test_more_money_never_hurts_and_the_least_is_needed() -> None:
    questions = [Question(id=str(k), difficulty=k / 19, stakes=1 + k % 3) for k in range(20)]
    risks = [expected(by_budget(questions, ALL, b), questions).risk for b in (0.02, 0.1, 0.4, 2, 8, 21)]
    assert all(a >= b - 1e-9 for a, b in pairwise(risks)) and risks[0] > risks[-1]
    with pytest.raises(ConfigError, match="the cheapest source"):
        by_budget(questions, ALL, 0.01)


def test_a_dominated_offer_is_never_bought() -> None:
    bad = Offer(source="bad", price=0.5, accuracy=0.6)
    questions = [Question(id=str(k)) for k in range(5)]
    assert "bad" not in {r.source for b in (0.5, 1, 2, 5) for r in by_budget(questions, (JUDGE, PERSON, bad), b)}


CASCADE = (Rung(offer=VERIFIER), Rung(offer=JUDGE, accept_at=0.8), Rung(offer=PERSON))


def _said(value: int, confidence: float = 1.0, cost: float = 1.0, source: str = "s") -> Feedback:
    return write(Ternary(value), source=source, confidence=confidence, cost=cost)  # type: ignore[arg-type]


def test_a_cascade_escalates_on_zero_failure_and_doubt() -> None:
    broke = Feedback(value=None, failure="raised", cost=1.0)
    quiet = write(Abstention("?"), source="v")
    assert ask_next(CASCADE, []) == VERIFIER
    assert ask_next(CASCADE, [_said(-1)]) is None
    for undecided in (_said(0), broke, quiet):
        assert ask_next(CASCADE, [undecided]) == JUDGE
    assert ask_next(CASCADE, [_said(0), _said(1, 0.79)]) == PERSON
    assert ask_next(CASCADE, [_said(0), _said(1, 0.80)]) is None
    assert ask_next(CASCADE, [_said(0), _said(0), _said(0)]) is None
    assert ask_next(CASCADE, [write(Pair(0), source="p")]) is None  # a tie is a decision
    assert ask_next(CASCADE, [_said(0, cost=0.5)], budget=0.51) is None
    assert ask_next(CASCADE, [_said(0, cost=0.5)], budget=0.52) == JUDGE
    with pytest.raises(ConfigError, match="at most one a rung"):
        ask_next(CASCADE, [_said(0)] * 4)


def test_a_rung_that_cannot_be_worth_its_price_is_not_asked() -> None:
    """A person is right in 0.98; at stakes 2 that is worth asking below a confidence of 0.98 - 1/2."""
    assert needed_confidence(Question(id="q", stakes=2.0), PERSON) == pytest.approx(0.48)
    assert needed_confidence(Question(id="q", stakes=0.5), PERSON) == 0.0
    said = [_said(0), _said(1, 0.6)]
    assert ask_next(CASCADE, said, question=Question(id="q", stakes=2.0)) is None
    assert ask_next(CASCADE, said, question=Question(id="q", stakes=10.0)) == PERSON


def test_what_stands_in_the_end() -> None:
    broke = Feedback(value=None, failure="raised", cost=1.0, source="v")
    assert settled(CASCADE, [_said(0), _said(-1, 0.9)]).value == -1
    unsure = settled(CASCADE, [_said(0), _said(1, 0.3), _said(0)])
    assert unsure.value == 1 and unsure.cost == 3.0
    nobody = settled(CASCADE, [_said(0), broke])
    assert nobody.kind == "abstention" and nobody.value == 0 and not nobody.failed and nobody.cost == 2.0
    assert settled(CASCADE, [broke, broke]).failed
    assert settled(CASCADE, []).kind == "abstention"


def test_accounts_of_a_cascade_by_hand() -> None:
    """Half the questions pass the first rung by; a quarter of those the second."""
    first = Offer(source="a", price=1.0, accuracy=0.8, abstains=0.5)
    second = Offer(source="b", price=4.0, accuracy=1.0, abstains=0.25)
    told = expected_of_cascade([Rung(offer=first), Rung(offer=second)], [Question(id="q", stakes=2.0)])
    assert told.cost == pytest.approx(1 + 0.5 * 4)
    assert told.accuracy == pytest.approx(0.5 * 0.8 + 0.5 * 0.75)
    assert told.risk == pytest.approx(2 * (1 - 0.775))
    assert told.asked == {"a": 1.0, "b": 0.5}


def test_simulated_stream_agrees_with_the_accounts() -> None:
    """4,000 questions through a cascade of simulated judges; expectation within three standard errors."""
    draw = generator(7, "cascade").random
    cheap = Offer(source="cheap", price=0.02, accuracy=0.9, abstains=0.3)
    cascade = (Rung(offer=cheap), Rung(offer=PERSON))
    questions = [Question(id=str(k)) for k in range(4000)]
    final = []
    for _ in questions:
        said: list[Feedback] = []
        while (offer := ask_next(cascade, said)) is not None:
            silent, right = draw() < offer.abstains, draw() < offer.accuracy
            said.append(_said(0 if silent else 1 if right else -1, cost=offer.price, source=offer.source))
        final.append(settled(cascade, said))
    found, told = tally(final, [1.0] * len(final)), expected_of_cascade(cascade, questions)
    error = (told.accuracy * (1 - told.accuracy) / len(final)) ** 0.5
    assert abs(found.accuracy - told.accuracy) < 3 * error
    assert found.cost == pytest.approx(told.cost, rel=0.05)
    assert found.share["person"] == pytest.approx(0.3, abs=0.03)


def test_wrong_offers_and_questions_are_refused() -> None:
    for make, message in (
        (lambda: Offer(source="s", price=-1, accuracy=1), "price"),
        (lambda: Offer(source="s", price=0, accuracy=1.1), "accuracy"),
        (lambda: Offer(source="s", kind="stars", price=0, accuracy=1), "kind"),  # type: ignore[arg-type]
        (lambda: Question(id="q", difficulty=2), "difficulty"),
        (lambda: Question(id="q", uncertainty=-1), "uncertainty"),
        (lambda: Question(id="q", stakes=-1), "stakes"),
        (lambda: Rung(offer=JUDGE, accept_at=2), "accept_at"),
        (lambda: by_value([], ()), "at least one"),
        (lambda: by_value([], (JUDGE, JUDGE)), "of its own"),
        (lambda: by_difficulty([], ()), "no kind"),
        (lambda: by_difficulty([], cuts=(0.5, 0.1)), "ascending"),
        (lambda: by_share([], JUDGE, PERSON, 1.5), "share"),
        (lambda: tally([_said(1)], []), "one each"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
