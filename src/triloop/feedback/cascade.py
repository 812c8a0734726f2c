"""Cascades: ask the cheapest source first, and the next one where it abstains, fails or is not sure enough.

``ask_next`` and ``settled`` are pure: they read what was said of one question so far, and a loop asks in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from triloop.errors import ConfigError
from triloop.feedback.kinds import Abstention, said_nothing, write
from triloop.feedback.routing import Expected, Offer, Question
from triloop.records import Feedback

__all__ = ["Rung", "Tally", "ask_next", "expected_of_cascade", "needed_confidence", "settled", "tally"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One source of a cascade, and when its word is taken."""

    offer: Offer
    accept_at: float = 0.0
    """Calibrated confidence from which its judgement settles the question. An abstention (0) or a failure never does."""

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0.0 <= self.accept_at <= 1.0:
            raise ConfigError(f"accept_at of {self.offer.source!r} is {self.accept_at}; expected a number in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a stream of questions did cost, and how right the labels were."""

    questions: int
    cost: float
    decided: int
    right: int
    by_source: Mapping[str, int]
    """Questions that each source settled."""

    @property
    def accuracy(self) -> float:
        """Right labels among all questions: an undecided one is not right."""
        return self.right / self.questions if self.questions else 0.0

    @property
    def share(self) -> Mapping[str, float]:
        """Part of the questions that each source settled."""
        return {source: n / self.questions for source, n in self.by_source.items()}


def needed_confidence(question: Question, following: Offer) -> float:
    """The confidence below which the next source is worth its price.

    stakes * (P(next right) - confidence) > price   <=>   confidence < P(next right) - price / stakes
    """
    if question.stakes == 0:
        return 0.0
    reach = (1.0 - following.abstains) * following.accuracy_at(question.difficulty)
    return max(0.0, reach - following.price / question.stakes)


def ask_next(
    cascade: Sequence[Rung], said: Sequence[Feedback], *, question: Question | None = None, budget: float | None = None
) -> Offer | None:
    """Whom to ask next, given what the first ``len(said)`` rungs said in order; None when the question is settled.

    With a ``question`` a rung is also passed over where its price exceeds what it can be worth (``needed_confidence``), and
    with a ``budget`` where it can no longer be paid. The first rung is always asked when there is money for it.
    """
    if len(said) > len(cascade):
        raise ConfigError(f"{len(said)} judgements for a cascade of {len(cascade)}; expected at most one a rung")
    if len(said) == len(cascade) or (said and _accepts(cascade[len(said) - 1], said[-1])):
        return None
    following = cascade[len(said)].offer
    if budget is not None and following.price > budget - sum(f.cost for f in said):
        return None
    heard = [f for f in said if not said_nothing(f)]
    if question is not None and heard and max(f.confidence for f in heard) >= needed_confidence(question, following):
        return None
    return following


def settled(cascade: Sequence[Rung], said: Sequence[Feedback]) -> Feedback:
    """The judgement that stands: the first that its rung accepts, else the surest that decided, else an abstention.

    Its cost is that of everybody who was asked. An abstention of all is a 0 of value, not a failure, unless all failed.
    """
    total = sum(f.cost for f in said)
    taken = next((f for rung, f in zip(cascade, said, strict=False) if _accepts(rung, f)), None)
    heard = [f for f in said if not said_nothing(f)]
    if taken is None and heard:
        taken = max(heard, key=lambda f: f.confidence)  # among equals the earlier one
    if taken is not None:
        return _paid(taken, total)
    if said and all(f.failed for f in said):
        return _paid(said[-1], total)
    source = "+".join(dict.fromkeys(f.source for f in said if f.source)) or "cascade"
    return write(
        Abstention("nobody who was asked could tell"), source=source, cost=total, about=said[0].about if said else ()
    )


def expected_of_cascade(cascade: Sequence[Rung], questions: Sequence[Question]) -> Expected:
    """Accounts before anybody is asked: a rung is reached when all above it abstained, and accepted otherwise.

    Confidence thresholds need the judge's own distribution and are left out, so this is the cost of the
    abstentions alone; ``tally`` counts what really happened.
    """
    cost = right = risk = 0.0
    asked = dict.fromkeys((rung.offer.source for rung in cascade), 0.0)
    for q in questions:
        reached, good = 1.0, 0.0
        for rung in cascade:
            cost += reached * rung.offer.price
            asked[rung.offer.source] += reached
            good += reached * (1.0 - rung.offer.abstains) * rung.offer.accuracy_at(q.difficulty)
            reached *= rung.offer.abstains
        right += good
        risk += q.stakes * (1.0 - good)
    return Expected(cost=cost, accuracy=right / len(questions) if questions else 0.0, risk=risk, asked=asked)


def tally(final: Sequence[Feedback], truth: Sequence[float]) -> Tally:
    """Count settled judgements against the truth, by sign: 0 is right only where the truth is 0."""
    if len(final) != len(truth):
        raise ConfigError(f"{len(final)} judgements for {len(truth)} truths; expected one each")
    by_source: dict[str, int] = {}
    decided = right = 0
    for f, true in zip(final, truth, strict=True):
        if f.failed or f.value is None:
            continue
        decided += not said_nothing(f)
        right += (f.value > 0) - (f.value < 0) == (true > 0) - (true < 0)
        by_source[f.source] = by_source.get(f.source, 0) + 1
    return Tally(
        questions=len(final), cost=sum(f.cost for f in final), decided=decided, right=right, by_source=by_source
    )


def _accepts(rung: Rung, said: Feedback) -> bool:
    return not said_nothing(said) and said.confidence >= rung.accept_at


def _paid(feedback: Feedback, cost: float) -> Feedback:
    return replace(feedback, cost=cost)
