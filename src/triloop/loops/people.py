"""Those who judge a run and do not exist: simulated people, in turn or as a vote, and users who react to what they get."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from triloop import rng
from triloop.envs.attributes import Attributes
from triloop.envs.base import Env
from triloop.feedback.simulate import Annotator
from triloop.loops.asked import PeopleConfig, UsersConfig
from triloop.records import Feedback, Prompt
from triloop.sources.annotators import Attributed, Finding, JudgedKind, Person
from triloop.sources.users import (
    ATTRIBUTE_PHRASES,
    Persona,
    Phrases,
    Situation,
    UserJudge,
    UserSimulator,
    attribute_situation,
)

__all__ = ["InTurn", "people", "users"]


def people(p: PeopleConfig, env: Env, kind: JudgedKind, seed: int) -> list[Person]:
    """The simulated people, each with a mind of their own; ``kind`` is what their ``judge`` gives."""
    seen: Attributed = env if isinstance(env, Attributes) else _Seen(env)
    weights = dict(seen.weights) if isinstance(seen, Attributes) else {"utility": 1.0}
    return [Person(seen, _annotator(p, i, weights, seed), kind=kind) for i in range(p.number)]


def users(u: UsersConfig, env: Env, seed: int, *, round: int, scaled: bool = False) -> UserJudge:
    """The simulated users of a round. ``scaled``: love is worth more than thanks."""
    who = Persona(pleased=u.pleased, speaks=u.speaks, love=u.love, charm=u.charm, explains=u.explains, noise=u.noise)
    situation, phrases = Situation(quality=_quality(env)), Phrases()
    if isinstance(env, Attributes):
        situation, phrases = attribute_situation(env), ATTRIBUTE_PHRASES
    simulator = UserSimulator(situation, (who,), phrases, seed=rng.key(seed, "users") % 2**31)
    return UserJudge(simulator, round=round, scaled=scaled)


class InTurn:
    """Several people who share the work: item ``i`` goes to person ``i`` modulo their number."""

    def __init__(self, people: Sequence[Person]) -> None:
        self._people = people
        self.name = "people"

    def _each(self, n: int) -> Iterator[Person]:
        return (self._people[i % len(self._people)] for i in range(n))

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, text), in order."""
        rows = zip(self._each(len(texts)), prompts, texts, strict=True)
        return [person.judge([p], [t])[0] for person, p, t in rows]

    def critique(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One critique per (prompt, text), in order."""
        rows = zip(self._each(len(texts)), prompts, texts, strict=True)
        return [person.critique([p], [t])[0] for person, p, t in rows]

    def revise(self, prompts: Sequence[Prompt], texts: Sequence[str], critiques: Sequence[str]) -> list[Feedback]:
        """One revision per (prompt, text, critique), in order."""
        rows = zip(self._each(len(texts)), prompts, texts, critiques, strict=True)
        return [person.revise([p], [t], [c])[0] for person, p, t, c in rows]


class _Seen:
    """A task as people see it that knows no attributes: how good, by its own gold, and no more."""

    def __init__(self, env: Env) -> None:
        self._env = env

    def attributes(self, prompt: Prompt, text: str) -> dict[str, float]:
        (gold,) = self._env.gold([prompt], [text])
        share = gold.breakdown.get("share")
        worth = 2 * share - 1 if share is not None else gold.value or 0.0
        return {"utility": (worth + 1) / 2}

    def defects(self, prompt: Prompt, text: str) -> Sequence[Finding]:
        return ()

    def revise(self, prompt: Prompt, text: str, attributes: Collection[str] | None = None) -> str:
        return text


def _quality(env: Env) -> Callable[[Prompt, str], float]:
    """How good a text is by the task's own gold, in [-1, 1]; NaN where that fails."""

    def quality(prompt: Prompt, text: str) -> float:
        (gold,) = env.gold([prompt], [text])
        return math.nan if gold.value is None else float(gold.value)

    return quality


def _annotator(p: PeopleConfig, i: int, weights: Mapping[str, float], seed: int) -> Annotator:
    """Person ``i``, the same whatever their number."""
    careless = rng.generator(seed, "skill", i).random() < p.unskilled
    return Annotator(
        name=f"{i}",
        weights=weights,
        bias={"length": p.length_bias, "distractor": p.distractor_bias},
        temperature=p.noise,
        flip=p.flip,
        tie=p.tie,
        abstain=p.tie,
        skill=0.0 if careless else 1.0,
        cost=p.price,
        seed=rng.key(seed, "person", i) % 2**31,
    )
