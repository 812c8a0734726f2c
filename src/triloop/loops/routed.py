"""Whom to ask about each prompt: a cheap judge about all of them, people where it is least sure and the budget allows."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby

from triloop import rng
from triloop.feedback.routing import Offer, Question, by_budget, by_difficulty
from triloop.loops.asked import Kind
from triloop.loops.crew import Crew
from triloop.records import Completion, Episode, Prompt

__all__ = ["question_of", "routed"]


def routed(
    crew: Crew, prompts: Mapping[str, Prompt], completions: Sequence[Completion], round: int
) -> tuple[list[Episode], dict[str, float]]:
    """Judged episodes of these completions, and what was spent on whom.

    The cheap judge gives every completion a number. A prompt is as difficult as these are low, and as uncertain as that
    judge is unsure. What is left of the budget goes to people, ``feedback.routing.by_budget``, who are asked for the kind
    that suits the difficulty (``by_difficulty``): one judgement a prompt, a critique or revision of its worst sample. Their
    word stands before the cheap judge's. Kinds are asked for equally often and priced at their mean, so that a round spends
    at most its budget, or what the cheap judge alone costs.
    """
    c = crew.config.cycle
    cheap = crew.ask(c.route.cheap, "scalar", prompts, completions, round)
    groups = {id: list(g) for id, g in groupby(cheap, key=lambda e: e.completion.prompt_id)}
    questions = [question_of(id, group) for id, group in groups.items()]
    spent = sum(f.cost for e in cheap for f in e.feedback)
    chosen = _for_people(crew, questions, c.route.budget - spent, round)
    kinds = by_difficulty(chosen, c.route.kinds, seed=rng.key(crew.config.seed, "kinds", round)) if chosen else {}
    said: dict[str, Episode] = {}
    for kind in c.route.kinds:
        shown = [e for q in chosen if kinds[q.id] == kind for e in _shown(kind, groups[q.id])]
        if shown:
            told = crew.ask("people", kind, prompts, [e.completion for e in shown], round)
            said |= {e.completion.id: e for e in told}
    facts = {
        "cost_cheap": spent,
        "cost_people": float(sum(f.cost for e in said.values() for f in e.feedback)),
        "asked_people": len(chosen) / max(1, len(questions)),
    }
    return [_both(e, said.get(e.completion.id)) for e in cheap], facts


def question_of(id: str, group: Sequence[Episode]) -> Question:
    """A prompt as a question: difficulty (1 - mean value) / 2, uncertainty 1 - mean confidence of its judgements. Where
    all of them failed it is as difficult and as uncertain as can be."""
    told = [f for e in group for f in e.feedback if not f.failed and f.value is not None]
    if not told:
        return Question(id=id, difficulty=1.0, uncertainty=1.0)
    worth = statistics.fmean(float(f.value or 0.0) for f in told)
    return Question(
        id=id,
        difficulty=min(1.0, max(0.0, (1 - worth) / 2)),
        uncertainty=1 - statistics.fmean(f.confidence for f in told),
    )


def _for_people(crew: Crew, questions: Sequence[Question], budget: float, round: int) -> list[Question]:
    """The questions that people are asked about: the cheap judge has been paid, so its word costs nothing more."""
    how, people = crew.config.cycle.route, crew.people("scalar")
    price = statistics.fmean(_price(kind, crew) for kind in how.kinds)
    if price == 0:
        return list(questions)
    offers = [
        Offer(source="cheap", price=0.0, accuracy=0.0),  # each question brings its own uncertainty
        Offer(source=people[0].name, price=price, accuracy=how.accuracy),
    ]
    # a label is worth more than its price wherever it is worth anything: the budget alone decides how many are bought
    routes = by_budget(questions, offers, max(0.0, budget), seed=rng.key(crew.config.seed, "route", round))
    asked = {r.question for r in routes if r.source != "cheap"}
    return [q for q in questions if q.id in asked]


def _price(kind: Kind, crew: Crew) -> float:
    """Of one judgement of this kind: a vote asks everybody, and a revision costs its critique, too."""
    people = crew.people("scalar")
    if kind in ("scalar", "ternary", "pair"):
        return sum(p.annotator.price(kind) for p in people)
    price = people[0].annotator.price(kind)
    return price + (people[0].annotator.price("text") if kind == "edit" else 0.0)


def _shown(kind: Kind, group: Sequence[Episode]) -> Sequence[Episode]:
    """What of a group people see: two samples to compare, all to rank, else the one that the cheap judge likes least."""
    if kind == "ranking":
        return group
    if kind == "pair":
        return group[:2]
    return [min(group, key=lambda e: -1.0 if e.reward is None else e.reward)]


def _both(cheap: Episode, people: Episode | None) -> Episode:
    if people is None:
        return cheap
    return dataclasses.replace(cheap, feedback=(*people.feedback, *cheap.feedback))
