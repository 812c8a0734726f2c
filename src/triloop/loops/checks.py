"""What cannot be is refused before a run of stages starts: stages in an order without sense, sources asked for what they
cannot give, tasks that lack what a stage needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triloop.envs.attributes import Attributes
from triloop.envs.base import Env
from triloop.envs.domains import teacher
from triloop.errors import ConfigError
from triloop.loops.asked import Kind, Payer, Source
from triloop.loops.config import RunConfig
from triloop.loops.counters import known_counters
from triloop.loops.crew import constitution_of
from triloop.loops.instructions import Instructions
from triloop.loops.stages import FEEDS, CycleConfig, Stage

__all__ = ["GIVES", "check_cycle", "check_task"]

GIVES: Mapping[Payer, tuple[Kind, ...]] = {
    "task": ("scalar", "ternary", "pair"),
    "people": ("scalar", "ternary", "pair", "ranking", "spans", "text", "edit"),
    "users": ("scalar", "ternary", "text"),
    "judge": ("scalar", "ternary", "pair", "text", "edit"),
    "self": ("scalar", "ternary", "pair", "text", "edit"),
    "reward": ("scalar", "ternary", "pair"),
    "hybrid": ("scalar", "ternary"),
}
"""What each source can be asked for."""


def check_cycle(config: RunConfig) -> None:
    """Raise ConfigError for stages that cannot follow each other, and for sources asked for what they cannot give."""
    c = config.cycle
    stages = (*c.first, *c.stages)
    if "collect" in stages:
        for source, kind in _questions(c):
            if kind not in GIVES[source]:
                raise ConfigError(f"cycle.collect asks {source} for {kind}; it gives {', '.join(GIVES[source])}")
            if kind in ("pair", "ranking") and c.collect.samples < 2:
                raise ConfigError(f"cycle.collect.samples is {c.collect.samples}; a {kind} needs at least 2")
    _check_recorded(c, stages)
    judging = {*_judges(c, stages)}
    if judging & {"reward", "hybrid"} and "reward" not in stages:
        raise ConfigError("the reward model judges, but no stage trains it; add the stage `reward`")
    if c.reward.words and "reward" in stages and config.algorithm.name != "ppo" and "improve" in stages:
        raise ConfigError(
            f"cycle.reward.words is {c.reward.words:g} and algorithm.name {config.algorithm.name!r}: rewards of single "
            "tokens need a value head; choose ppo, or set it to 0"
        )
    if "instruct" in stages and not {"judge", "self"} & (
        judging | ({c.revise.source} if "revise" in stages else set())
    ):
        raise ConfigError(
            "stage instruct chooses what a judge goes by, and no stage asks one; let cycle.collect.source, cycle.judge or "
            "cycle.route.cheap be judge or self"
        )
    if c.counters and not {"improve", "gate"} & set(stages):
        raise ConfigError("cycle.counters are watched in stages improve and gate; add one of them, or name no counters")
    fed = {*FEEDS, "imitate"} if c.imitate.on == "teacher" else {*FEEDS}
    for learner in ("reward", "prefer"):
        if learner in stages and not fed & set(stages[: stages.index(learner)]):
            raise ConfigError(
                f"stage {learner} learns from what was collected; let one of {', '.join(FEEDS)} come before it"
            )


def check_task(config: RunConfig, env: Env) -> None:
    """Raise ConfigError for what a run needs of its task and the task has not: a teacher, words for what is wrong,
    principles for a judge, parts that counter-metrics name."""
    c = config.cycle
    stages = (*c.first, *c.stages)
    if ("oppose" in stages or ("imitate" in stages and c.imitate.on == "teacher")) and teacher(env) is None:
        raise ConfigError(
            f"{env.name} has no teacher; leave out the stages that need one: oppose, and imitate on teacher"
        )
    told = _questions(c) if "collect" in stages else []
    worded = any(source == "people" and kind in ("spans", "text", "edit") for source, kind in told)
    if (worded or ("revise" in stages and c.revise.source == "people")) and not isinstance(env, Attributes):
        raise ConfigError(
            f"simulated people cannot say what is wrong in {env.name}; ask them for numbers, pairs or rankings"
        )
    asked = {*_judges(c, stages)} | ({c.revise.source} if "revise" in stages else set())
    if {"judge", "self"} & asked and c.ai.constitution is None and not isinstance(env, Attributes):
        raise ConfigError(f"{env.name} brings no principles; give the judge a YAML file: --cycle.ai.constitution FILE")
    if "instruct" in stages:
        known = [p.name for p in constitution_of(c.ai, env).principles]
        Instructions.of(known, c.instruct.sets)
    strange = sorted({*c.counters} - known_counters(env)) if c.counters else []
    if strange:
        raise ConfigError(
            f"cycle.counters names {', '.join(strange)}; the counter-metrics of {env.name} are "
            f"{', '.join(sorted(known_counters(env)))}"
        )


def _questions(c: CycleConfig) -> list[tuple[Payer, Kind]]:
    """Who is asked for what in stage ``collect``."""
    source = c.collect.source
    if source == "recorded":
        return []
    if source == "routed":
        return [(c.route.cheap, "scalar"), *(("people", kind) for kind in c.route.kinds)]
    return [(source, kind) for kind in c.collect.kinds]


def _judges(c: CycleConfig, stages: Sequence[Stage]) -> list[Source]:
    """Everybody who judges in collect and improve."""
    asked: list[Source] = [source for source, _ in _questions(c)] if "collect" in stages else []
    return [*asked, c.judge] if "improve" in stages else asked


def _check_recorded(c: CycleConfig, stages: Sequence[Stage]) -> None:
    if c.collect.source == "recorded" and "collect" in stages and not c.recorded:
        raise ConfigError("cycle.collect.source is recorded, and cycle.recorded names no file; give one")
    if c.recorded and "collect" not in stages:
        raise ConfigError(
            "cycle.recorded names a file that nothing reads; add the stage `collect`, which takes judgements from it"
        )
