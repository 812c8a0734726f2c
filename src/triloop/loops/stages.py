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
from triloop.loops.asked import (
    HybridConfig,
    JudgeConfig,
    Kind,
    Payer,
    PeopleConfig,
    RouteConfig,
    Source,
    UsersConfig,
)
from triloop.sources.reward_config import Ties

__all__ = [
    "FEEDS",
    "STAGES",
    "CollectConfig",
    "CycleConfig",
    "GateConfig",
    "HybridConfig",
    "ImitateConfig",
    "InstructConfig",
    "JudgeConfig",
    "Kind",
    "OpposeConfig",
    "Payer",
    "PeopleConfig",
    "PreferConfig",
    "RewardStageConfig",
    "ReviseConfig",
    "RouteConfig",
    "Source",
    "Stage",
    "Step",
    "StepsConfig",
    "UsersConfig",
    "plan",
]

Stage = Literal["imitate", "collect", "revise", "oppose", "reward", "prefer", "improve", "gate", "instruct"]
STAGES: tuple[Stage, ...] = (
    *("imitate", "collect", "revise", "oppose", "reward", "prefer", "improve", "gate", "instruct"),
)
FEEDS: tuple[Stage, ...] = ("collect", "revise", "oppose")
"""Stages whose judged samples later ones learn from."""


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
    """Who judges: the task's verifier, simulated people, users by their reactions, a judge on the original policy, one on
    the present policy, the reward model, verifier and reward model together (``hybrid``), or a cheap judge and people by
    difficulty, doubt and price (``routed``). ``recorded`` samples nothing, and takes judgements from ``cycle.recorded``."""
    kinds: tuple[Kind, ...] = ("pair",)
    """What is asked for. Each prompt gets one of these, in turn; of ``routed`` and ``recorded`` it asks nothing."""
    condition: str = ""
    """Feedback that the samples are asked to earn from the second generation on, such as ``good``; empty: none."""


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
    pooled: float = 0.0
    """Scale of what every token of the response says, averaged, beside the score that is read at its end. Without a
    ``template`` it tells much more from few pairs (docs/log.md)."""
    members: int = 1
    """Reward models in the ensemble; with several, the mean less ``caution`` standard deviations is paid."""
    caution: float = 1.0
    """See ``members``."""
    held_out: float = 0.1
    """Share of the prompts whose pairs decide when to stop, and make the audit."""
    history: int | None = None
    """Generations before this one whose pairs are learned from again; None: all. The weights go on from where they are, so
    that a few are enough, and spare time, where there are many generations."""
    words: float = 0.0
    """Weight of a second reward model, of a density of its own: it marks every token, as critiques and marked passages
    taught it, and is paid where the token stands; the score of the whole is paid at the end (arXiv:2306.01693). 0: none.
    Needs algorithm ppo, whose value head credits what still comes."""


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
    counter_margin: float = 0.02
    """So it is when one of ``cycle.counters`` has fallen by more than this, with 95 % confidence."""


@dataclass(frozen=True, kw_only=True)
class InstructConfig:
    """Stage ``instruct``: what does the judge go by? Sets of principles are tried on pairs that people have compared, those
    that agreed best so far more often than others, and the best one judges from then on. Nothing else learns from these."""

    rounds: int = 1
    """Rounds of the stage."""
    prompts: int = 32
    """Pairs of a round, each of one prompt, that people compare."""
    tried: int = 4
    """Sets that are tried in a round."""
    sets: tuple[str, ...] = ()
    """Names of principles joined by +, one entry a set; none is all together, and all but each."""
    memory: float = 0.9
    """Weight of what was counted before, per round: the policy changes, and with it what is hard to judge."""

    def __post_init__(self) -> None:
        if self.prompts < 1 or self.tried < 1:
            raise ConfigError(
                f"cycle.instruct has prompts {self.prompts} and tried {self.tried}; expected at least 1 of each"
            )
        if not 0 < self.memory <= 1:
            raise ConfigError(f"cycle.instruct.memory is {self.memory}; expected above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class CycleConfig:
    """The stages of a generation."""

    first: tuple[Stage, ...] = ()
    """Stages before the first generation, once."""
    stages: tuple[Stage, ...] = ()
    """Stages of every generation."""
    judge: Payer = "reward"
    """Who pays in the rounds of ``improve``."""
    counters: tuple[str, ...] = ()
    """Counter-metrics, shares that must not fall while pay rises: parts of the task's gold (such as ``clean``), or
    ``plain``, answers without a charming word. Guard ``counter`` and stage ``gate`` watch them; nobody learns from them."""
    recorded: str = ""
    """A file that ``triloop import`` wrote, or any that it reads: each round of ``collect`` takes so many of its items as
    ``cycle.collect.prompts`` says, in order and from the start again, and later stages learn from what was said of them."""
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
    instruct: InstructConfig = field(default_factory=InstructConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)
    users: UsersConfig = field(default_factory=UsersConfig)
    route: RouteConfig = field(default_factory=RouteConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)
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
