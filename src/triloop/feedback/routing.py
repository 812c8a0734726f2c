"""Whom to ask, and for which kind of feedback: by difficulty, calibrated uncertainty, stakes and price.

All functions are pure: same questions, offers and seed, same routes. Prices, stakes and budgets are in one unit: a wrong
label costs its question's ``stakes`` as a judgement costs its ``price``. Difficulty-routed kinds are the rule of
constructive alignment with diverse feedback (S009, arXiv:2310.06450); the dial from people to machines is A68.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triloop.errors import ConfigError
from triloop.feedback.kinds import KINDS, Kind
from triloop.rng import key

__all__ = [
    "BY_DIFFICULTY",
    "Expected",
    "Offer",
    "Question",
    "Route",
    "by_budget",
    "by_difficulty",
    "by_share",
    "by_value",
    "expected",
    "loss",
]

BY_DIFFICULTY: tuple[Kind, ...] = ("text", "edit", "pair")
"""Easy: a critique is enough to learn from; medium: show it done right; hard: say which is better, all that one knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Something to be judged."""

    id: str
    difficulty: float = 0.5
    """In [0, 1], such as the share of samples that failed."""
    uncertainty: float | None = None
    """Calibrated probability that the cheapest judge is wrong on it; None: what its offer says of this difficulty."""
    stakes: float = 1.0
    """What a wrong label costs, in the unit of prices."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and negative stakes."""
        _within(f"difficulty of {self.id!r}", self.difficulty)
        if self.uncertainty is not None:
            _within(f"uncertainty of {self.id!r}", self.uncertainty)
        if not 0.0 <= self.stakes < float("inf"):
            raise ConfigError(f"stakes of {self.id!r} are {self.stakes}; expected a number of at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A source that can be asked, and what is known of it."""

    source: str
    kind: Kind = "ternary"
    price: float
    accuracy: float
    """Share of right labels on the easiest questions, among those that it decides."""
    accuracy_hard: float | None = None
    """The same on the hardest, linear between; None: as on the easiest."""
    abstains: float = 0.0
    """Share of questions that it does not decide."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and negative prices."""
        for name, value in (("accuracy", self.accuracy), ("abstains", self.abstains)):
            _within(f"{name} of {self.source!r}", value)
        if self.accuracy_hard is not None:
            _within(f"accuracy_hard of {self.source!r}", self.accuracy_hard)
        if not 0.0 <= self.price < float("inf"):
            raise ConfigError(f"price of {self.source!r} is {self.price}; expected a number of at least 0")
        if self.kind not in KINDS:
            raise ConfigError(f"kind of {self.source!r} is {self.kind!r}; expected one of {', '.join(KINDS)}")

    def accuracy_at(self, difficulty: float) -> float:
        """Expected share of right labels at this difficulty, when it decides."""
        hard = self.accuracy if self.accuracy_hard is None else self.accuracy_hard
        return (1.0 - difficulty) * self.accuracy + difficulty * hard


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One question, and who is asked for what."""

    question: str
    source: str
    kind: Kind
    price: float
    right: float
    """Probability that the label is right; an abstention is not right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What routes will cost and be worth, before anybody is asked."""

    cost: float
    accuracy: float
    """Mean probability of a right label."""
    risk: float
    """Sum of stakes times the probability of no right label."""
    asked: Mapping[str, float]
    """Questions per source."""


def by_difficulty(
    questions: Sequence[Question],
    kinds: Sequence[Kind] = BY_DIFFICULTY,
    *,
    cuts: Sequence[float] | None = None,
    seed: int = 0,
) -> dict[str, Kind]:
    """Which kind of feedback each question gets, from the easiest kind to the hardest.

    ``cuts`` are the difficulties between kinds, each the lowest of the harder side; without them every kind gets an equal
    share of the questions (what does not divide goes to the easier ones), equals in an order drawn from the seed.
    """
    if not kinds:
        raise ConfigError("no kind to route to; expected at least one, easiest first")
    if cuts is not None:
        if len(cuts) != len(kinds) - 1 or list(cuts) != sorted(cuts):
            raise ConfigError(
                f"cuts are {list(cuts)}; expected {len(kinds) - 1} ascending difficulties for {len(kinds)} kinds"
            )
        return {q.id: kinds[sum(q.difficulty >= cut for cut in cuts)] for q in questions}
    ranked = sorted(questions, key=lambda q: (q.difficulty, key(seed, "difficulty", q.id)))
    size, more = divmod(len(ranked), len(kinds))
    counts = [size + (k < more) for k in range(len(kinds))]
    places = [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    return {q.id: kind for q, kind in zip(ranked, places, strict=True)}


def by_value(questions: Sequence[Question], offers: Sequence[Offer], *, seed: int = 0) -> list[Route]:
    """Each question to the offer with the least ``price + stakes * P(not right)``; equals by the seed."""
    _check(offers)
    return [
        _route(q, min(offers, key=lambda o: (loss(q, o, offers), key(seed, "offer", q.id, o.source))), offers)
        for q in questions
    ]


def by_budget(questions: Sequence[Question], offers: Sequence[Offer], budget: float, *, seed: int = 0) -> list[Route]:
    """Routes of least risk within the budget: everybody starts at the cheapest offer, and money goes where it helps most.

    Greedy by risk avoided per unit of price along each question's efficient offers; against the best division of a budget
    it loses less than one question's dearest step. ``ConfigError`` when the cheapest routes alone cost more.
    """
    _check(offers)
    ladders = {q.id: _ladder(q, offers, seed) for q in questions}
    level = dict.fromkeys(ladders, 0)
    left = budget - math.fsum(ladder[0].price for ladder in ladders.values())
    if left < -1e-9 * abs(budget):
        raise ConfigError(
            f"the budget is {budget:g}; asking the cheapest source of each question costs {budget - left:g}"
        )
    steps = []
    for q in questions:
        ladder = ladders[q.id]
        for k in range(1, len(ladder)):
            gain = q.stakes * (_right(q, ladder[k], offers) - _right(q, ladder[k - 1], offers))
            price = ladder[k].price - ladder[k - 1].price
            steps.append((-gain / price, key(seed, "budget", q.id), k, q.id, price))
    for _, _, k, id, price in sorted(steps):
        # a step may be taken only from the one below it: the ladder is concave, so they come in this order
        if price <= left and level[id] == k - 1:
            level[id], left = k, left - price
    return [_route(q, ladders[q.id][level[q.id]], offers) for q in questions]


def by_share(questions: Sequence[Question], cheap: Offer, dear: Offer, share: float, *, seed: int = 0) -> list[Route]:
    """The dial: a share of the questions, those where it avoids most risk, to the dear source, the rest to the cheap one.

    0 is wholly autonomous, 1 wholly by the dear source. Equals by the seed.
    """
    _within("share", share)
    both = (cheap, dear)

    def worth(q: Question) -> float:
        return q.stakes * (_right(q, dear, both) - _right(q, cheap, both))

    ranked = sorted(questions, key=lambda q: (-worth(q), key(seed, "share", q.id)))
    chosen = {q.id for q in ranked[: round(share * len(ranked))]}
    return [_route(q, dear if q.id in chosen else cheap, both) for q in questions]


def expected(routes: Sequence[Route], questions: Sequence[Question]) -> Expected:
    """Accounts of the routes, one for each question, in any order."""
    stakes = {q.id: q.stakes for q in questions}
    if sorted(stakes) != sorted(r.question for r in routes):
        raise ConfigError(f"{len(routes)} routes for {len(stakes)} questions; expected one route for each question")
    asked: dict[str, float] = {}
    for r in routes:
        asked[r.source] = asked.get(r.source, 0.0) + 1.0
    return Expected(
        cost=sum(r.price for r in routes),
        accuracy=sum(r.right for r in routes) / len(routes) if routes else 0.0,
        risk=sum(stakes[r.question] * (1.0 - r.right) for r in routes),
        asked=asked,
    )


def loss(question: Question, offer: Offer, offers: Sequence[Offer] = ()) -> float:
    """``price + stakes * P(not right)``. The question's own uncertainty speaks for the cheapest of the offers."""
    return offer.price + question.stakes * (1.0 - _right(question, offer, offers or (offer,)))


def _right(question: Question, offer: Offer, offers: Sequence[Offer]) -> float:
    accuracy = offer.accuracy_at(question.difficulty)
    if question.uncertainty is not None and offer == min(offers, key=lambda o: o.price):
        accuracy = 1.0 - question.uncertainty
    return (1.0 - offer.abstains) * accuracy


def _route(question: Question, offer: Offer, offers: Sequence[Offer]) -> Route:
    right = _right(question, offer, offers)
    return Route(question=question.id, source=offer.source, kind=offer.kind, price=offer.price, right=right)


def _ladder(question: Question, offers: Sequence[Offer], seed: int) -> list[Offer]:
    """Offers on the upper hull of (price, P(right)), cheapest first: each step up buys less per unit than the last."""
    ranked = sorted(
        offers, key=lambda o: (o.price, -_right(question, o, offers), key(seed, "ladder", question.id, o.source))
    )
    hull: list[Offer] = []
    for offer in ranked:
        right = _right(question, offer, offers)
        if hull and (right <= _right(question, hull[-1], offers) or offer.price <= hull[-1].price):
            continue
        while len(hull) > 1 and _slope(question, hull[-2], hull[-1], offers) <= _slope(
            question, hull[-2], offer, offers
        ):
            hull.pop()
        hull.append(offer)
    return hull


def _slope(question: Question, low: Offer, high: Offer, offers: Sequence[Offer]) -> float:
    return (_right(question, high, offers) - _right(question, low, offers)) / (high.price - low.price)


def _check(offers: Sequence[Offer]) -> None:
    names = [o.source for o in offers]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"offers are of {names}; expected at least one, each of a source of its own")


def _within(what: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{what} is {value}; expected a number in [0, 1]")
