"""Who can be asked for a judgement in a run of stages, and what there is to set about each, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from triloop.errors import ConfigError

__all__ = [
    "HybridConfig",
    "JudgeConfig",
    "Kind",
    "Payer",
    "PeopleConfig",
    "RouteConfig",
    "Source",
    "UsersConfig",
]

Payer = Literal["task", "people", "users", "judge", "self", "reward", "hybrid"]
"""Who can pay for single samples, and be asked about any."""
Source = Literal["task", "people", "users", "judge", "self", "reward", "hybrid", "routed", "recorded"]
Kind = Literal["scalar", "ternary", "pair", "ranking", "spans", "text", "edit"]


@dataclass(frozen=True, kw_only=True)
class PeopleConfig:
    """Simulated people: what the task measures, seen through bias and noise."""

    number: int = 1
    """How many judge each item. Scores and pairs are aggregated; a ranking, critique or edit is asked of one in turn."""
    aggregate: Literal["majority", "mean", "crowd"] = "majority"
    """How several judgements become one: by majority, by mean, or by Dawid and Skene's model of who can be trusted."""
    flip: float = 0.1
    """Share of judgements that are turned round."""
    noise: float = 0.0
    """Scale of logistic noise on utilities, which run from -1 to 1."""
    tie: float = 0.05
    """Difference of utility below which a person sees none."""
    unskilled: float = 0.0
    """Share of the people who answer at random."""
    length_bias: float = 0.0
    """Utility that ten further words seem to add."""
    distractor_bias: float = 0.0
    """Utility that each distracting word seems to add."""
    price: float = 1.0
    """Of one judgement."""

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ConfigError(f"cycle.people.number is {self.number}; expected at least 1")
        if not 0 <= self.unskilled <= 1:
            raise ConfigError(f"cycle.people.unskilled is {self.unskilled}; expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class UsersConfig:
    """Simulated users: each asks one request and reacts to what comes: thanks, a correction, the same request again, or
    silence. What he truly thinks is the task's gold, from -1 to 1, and is not told."""

    pleased: float = 0.6
    """True quality from which the need is met."""
    speaks: float = 0.7
    """Chance that a pleased user says anything."""
    love: float = 0.3
    """Chance that a pleased user who speaks says more than thanks."""
    charm: float = 0.0
    """Chance that a charming word alone (wow, great, amazing, super) makes a user say so, whatever else the answer is."""
    explains: float = 0.7
    """Chance that a displeased user says what he meant; else he only asks again."""
    noise: float = 0.1
    """Chance that a reaction has the wrong polarity."""

    def __post_init__(self) -> None:
        for f in fields(self):
            low = -1 if f.name == "pleased" else 0
            if not low <= getattr(self, f.name) <= 1:
                raise ConfigError(f"cycle.users.{f.name} is {getattr(self, f.name)}; expected {low} to 1")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A judge that is itself a language model."""

    policy: str = ""
    """Its directory; empty is the policy as it was at the start."""
    constitution: str | None = None
    """YAML file of principles; none is the task's own, where it has one."""
    principles: tuple[str, ...] = ()
    """Names of the principles that it goes by; none is all."""
    both_orders: bool = True
    """Whether it sees each pair in both orders."""
    inconsistent: Literal["tie", "average"] = "tie"
    """What a pair is on which its two orders disagree: a tie, or whatever the mean of both probabilities says."""
    reasoning: bool = False
    """Whether it writes its reasons before the verdict."""
    form: Literal["rubric", "yes_no"] = "rubric"
    """How it gives a number: a mark of +1, 0 or -1 for each principle, or the mean of its probabilities of yes (ZYN)."""
    price: float = 0.0
    """Of a token read or written."""


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """A verifier's word first, the reward model's shades within it (HERO, arXiv:2510.07242): the task's verifier, or your
    own, and the reward model that stage ``reward`` trains."""

    how: Literal["stratified", "sum"] = "stratified"
    """``stratified``: no shade lifts what the verifier rejects above what it accepts; ``sum``: half each."""
    alpha: float = 0.1
    """Half the breadth of the shades among rejected samples, where acceptance is worth 1."""
    beta: float = 0.1
    """Half the breadth of the shades among accepted ones."""

    def __post_init__(self) -> None:
        if not (self.alpha >= 0 and self.beta >= 0 and self.alpha + self.beta < 1):
            raise ConfigError(
                f"cycle.hybrid has alpha {self.alpha} and beta {self.beta}; expected both at least 0 and together below 1"
            )


@dataclass(frozen=True, kw_only=True)
class RouteConfig:
    """Source ``routed``: a cheap judge gives every sample a number; what is left of the budget buys people's word on the
    prompts of which it is least sure, in the kind that suits their difficulty."""

    cheap: Literal["judge", "self", "reward", "users", "task"] = "judge"
    """Who is asked about everything."""
    budget: float = 100.0
    """Of one round of ``collect``, in the unit of prices (``cycle.people.price``, ``cycle.ai.price``)."""
    kinds: tuple[Kind, ...] = ("text", "edit", "pair")
    """What people are asked for, from the easiest prompts to the hardest, equally often (S009, arXiv:2310.06450)."""
    accuracy: float = 0.95
    """Share of right judgements that is expected of people: nobody pays for them where the cheap judge is as sure."""

    def __post_init__(self) -> None:
        if not 0 <= self.budget < float("inf"):
            raise ConfigError(f"cycle.route.budget is {self.budget}; expected 0 or more")
        if not self.kinds:
            raise ConfigError("cycle.route.kinds is empty; expected what people are asked for, easiest first")
        if not 0 <= self.accuracy <= 1:
            raise ConfigError(f"cycle.route.accuracy is {self.accuracy}; expected 0 to 1")
