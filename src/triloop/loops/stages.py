"""What a generation is made of, as plain data: its stages, and what each of them does. Loads no numerics.

A generation is one turn of the whole loop: the policy generates, somebody judges, policy and judge learn, a gate decides
whether the new policy stays. Each stage is so many rounds, and each is committed whole, so that a run goes on after
a kill wherever it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Literal

from triloop.errors import ConfigError
from triloop.learn.objective_config import ObjectiveConfig, ObjectiveName
from triloop.sources.reward_config import Ties

__all__ = [
    "FEEDS",
    "STAGES",
    "CollectConfig",
    "CycleConfig",
    "GateConfig",
    "ImitateConfig",
    "JudgeConfig",
    "OpposeConfig",
    "PeopleConfig",
    "PreferConfig",
    "RewardStageConfig",
    "ReviseConfig",
    "Source",
    "Stage",
    "Step",
    "StepsConfig",
    "plan",
]

Stage = Literal["imitate", "collect", "revise", "oppose", "reward", "prefer", "improve", "gate"]
STAGES: tuple[Stage, ...] = ("imitate", "collect", "revise", "oppose", "reward", "prefer", "improve", "gate")
FEEDS: tuple[Stage, ...] = ("collect", "revise", "oppose")
"""Stages whose judged samples later ones learn from."""
Source = Literal["task", "people", "judge", "self", "reward"]
Kind = Literal["scalar", "ternary", "pair", "ranking", "spans", "text", "edit"]


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """How a stage learns from what has been collected. It starts with a fresh optimiser."""

    steps: int = 100
    """Optimiser steps of a round."""
    batch: int = 64
    """Examples of a step."""
    lr: float = 3e-4
    """Learning rate."""
    fresh: bool = True
    """Whether the stage starts with a fresh optimiser, warms up over a tenth of its steps and falls to a tenth of the rate;
    off keeps the optimiser and the rate from stage to stage, for many short ones."""
    history: int = 0
    """Generations before this one whose feedback is learned from too."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name in ("steps", "batch", "rounds") and getattr(self, f.name) < 1:
                raise ConfigError(f"{f.name} is {getattr(self, f.name)}; expected at least 1")
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"lr is {self.lr}; expected above 0")


@dataclass(frozen=True, kw_only=True)
class ImitateConfig(StepsConfig):
    """Stage ``imitate``: supervised steps."""

    rounds: int = 1
    """Rounds of the stage."""
    on: Literal["teacher", "best", "edits", "feedback"] = "teacher"
    """``teacher``: demonstrations by the task's own; ``best``: the best of each group collected; ``edits``: what was
    revised; ``feedback``: everything collected, each conditioned on the feedback that it got."""
    noise: float = 0.0
    """How often the task's teacher errs: the level at which it demonstrates."""
    examples: int = 512
    """Demonstrations that the teacher writes."""
    keep: float = 0.5
    """With ``feedback``: share of the examples whose condition is left out, so that the policy can do without."""


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Stage ``collect``: the policy generates, a source judges."""

    rounds: int = 1
    """Rounds of the stage."""
    prompts: int = 256
    """Prompts of a round."""
    samples: int = 2
    """Completions of each prompt."""
    source: Source = "people"
    """Who judges: the task's verifier, simulated people, a judge on the original policy, one on the present policy, or the
    reward model."""
    kinds: tuple[Kind, ...] = ("pair",)
    """What is asked for. Each prompt gets one of these, in turn."""
    condition: str = ""
    """Feedback that the samples are asked to earn from the second generation on, such as ``good``; empty: none."""


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
class ReviseConfig:
    """Stage ``revise``: the policy criticises its own answers and writes them anew."""

    rounds: int = 1
    """Rounds of the stage."""
    prompts: int = 256
    """Prompts of a round."""
    times: int = 2
    """Critiques and revisions one after another."""
    source: Literal["judge", "self", "people"] = "judge"
    """Who criticises and revises: a judge on the original policy, one on the present policy, or simulated people."""


@dataclass(frozen=True, kw_only=True)
class OpposeConfig:
    """Stage ``oppose``: what the task's teacher writes against what the policy answers, the same requests each time."""

    rounds: int = 1
    """Rounds of the stage."""
    prompts: int = 256
    """Requests that the teacher has answered."""
    noise: float = 0.0
    """How often the teacher errs."""


@dataclass(frozen=True, kw_only=True)
class RewardStageConfig:
    """Stage ``reward``: train the reward model on all that has been collected, and audit it on pairs that it has not
    seen."""

    rounds: int = 1
    """Rounds of the stage."""
    epochs: int = 4
    """Passes over the pairs; the weights of the best one by held-out loss are kept."""
    batch: int = 32
    """Pairs of a step."""
    lr: float = 1e-3
    """Learning rate."""
    ties: Ties = "davidson"
    """Likelihood of a pair: without ties (a tie is then half of each), by Davidson (1970), or by Rao and Kupper (1967)."""
    template: str = ""
    """What the reward model reads, with ``{request}`` and ``{response}`` in it, for a policy that has learned to judge when
    it is asked; empty: request and response as the policy wrote them."""
    members: int = 1
    """Reward models in the ensemble; with several, the mean less ``caution`` standard deviations is paid."""
    caution: float = 1.0
    """See ``members``."""
    held_out: float = 0.1
    """Share of the prompts whose pairs decide when to stop, and make the audit."""


@dataclass(frozen=True, kw_only=True)
class PreferConfig(StepsConfig):
    """Stage ``prefer``: learn from judgements directly, without a reward model."""

    rounds: int = 1
    """Rounds of the stage."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What is minimised. Alone, it takes every kind of feedback, converted to what it reads."""
    beside: tuple[ObjectiveName, ...] = ()
    """Further objectives, for other kinds of examples. Then each takes what is of its own kind, all in the same batches."""
    coefficients: tuple[float, ...] = ()
    """Weights of the losses of ``beside``, in their order, against 1 of ``objective``; none is 1 for each."""
    reference: Literal["start", "generation"] = "start"
    """Where they measure from: the policy at the start of the run, or of the generation."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Stage ``gate``: does the new policy stay? On canary prompts, which nothing else learns from."""

    n: int = 128
    """Prompts, the same each time, so that generations compare pairwise."""
    margin: float = 0.0
    """A generation is refused when it is worse than the last accepted one by more than this, with 95 % confidence."""


@dataclass(frozen=True, kw_only=True)
class CycleConfig:
    """The stages of a generation."""

    first: tuple[Stage, ...] = ()
    """Stages before the first generation, once."""
    stages: tuple[Stage, ...] = ()
    """Stages of every generation."""
    judge: Source = "reward"
    """Who pays in the rounds of ``improve``."""
    condition: str = ""
    """Feedback that the policy is asked to earn in held-out checks after the first round, such as ``good``."""
    condition_template: str = "{control} ; {request}"
    """How wished-for feedback stands before a request."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    revise: ReviseConfig = field(default_factory=ReviseConfig)
    oppose: OpposeConfig = field(default_factory=OpposeConfig)
    imitate: ImitateConfig = field(default_factory=ImitateConfig)
    reward: RewardStageConfig = field(default_factory=RewardStageConfig)
    prefer: PreferConfig = field(default_factory=PreferConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)
    ai: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        p = self.prefer
        if p.coefficients and len(p.coefficients) != len(p.beside):
            raise ConfigError(
                f"cycle.prefer has {len(p.beside)} objectives beside its own and {len(p.coefficients)} coefficients; "
                "expected as many"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One round of a run made of stages, and where it stands."""

    generation: int
    """From 1; 0 is what comes before the first."""
    stage: Stage
    index: int
    """Which round of its stage, from 0."""
    count: int
    """Rounds of its stage."""

    @property
    def last(self) -> bool:
        """Whether its stage ends with it."""
        return self.index == self.count - 1


@lru_cache(maxsize=8)  # asked several times a round, of thousands of steps where only a budget ends the run
def plan(cycle: CycleConfig, generations: int, improve_rounds: int) -> tuple[Step, ...]:
    """Every round of the run, in order. A longer run's plan begins with a shorter one's."""

    def each(generation: int, stages: tuple[Stage, ...]) -> Iterator[Step]:
        for stage in stages:
            count = improve_rounds if stage == "improve" else _rounds(cycle, stage)
            for index in range(count):
                yield Step(generation=generation, stage=stage, index=index, count=count)

    later = [s for g in range(1, generations + 1) for s in each(g, cycle.stages)]
    return (*each(0, cycle.first), *later)


def _rounds(cycle: CycleConfig, stage: Stage) -> int:
    return 1 if stage == "gate" else int(getattr(cycle, stage).rounds)
