"""Stages that feed a loop: what the policy writes, what a source says of it, and what a teacher writes instead."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from triloop import rng
from triloop.envs.conditioned import with_condition
from triloop.envs.domains import teacher
from triloop.errors import ConfigError, DataError, Interrupted
from triloop.feedback.kinds import Pair, write
from triloop.loops.assemble import continuation
from triloop.loops.commit import pause
from triloop.loops.crew import Crew
from triloop.loops.lineage import artifact, latest
from triloop.loops.played import Played
from triloop.loops.recorded import recorded
from triloop.loops.rollout import draw_prompts
from triloop.loops.routed import routed
from triloop.loops.stages import Step
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Tag
from triloop.records import Completion, Episode, Prompt, completion_id
from triloop.sources.verifier import check_failures

__all__ = ["COLLECTED", "Sampled", "collect", "demonstrations", "oppose", "revise", "sample_groups"]

COLLECTED = "collect"
"""What judged samples that a later stage learns from are stored as."""


def collect(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Sample, and let the source judge: each kind of feedback on its own share of the prompts. What others have recorded
    comes in addition, or instead."""
    c = shop.config.cycle
    old, cursor = recorded(shop, crew, state)
    if c.collect.source == "recorded":
        return _judged(shop, state, step, Sampled(cursor=cursor), old, 0.0, made_by="recorded")
    condition = c.collect.condition if step.generation > 1 else ""
    sampled = sample_groups(shop, state, c.collect.prompts, c.collect.samples, condition=condition)
    t0 = time.perf_counter()
    episodes: list[Episode] = []
    facts: dict[str, float] = {"recorded": float(len(old))} if c.recorded else {}
    if c.collect.source == "routed":
        episodes, shares = routed(crew, sampled.plain, sampled.completions, state.round + 1)
        facts |= shares
    else:
        for k, kind in enumerate(c.collect.kinds):
            mine = {p.id for p in sampled.prompts[k :: len(c.collect.kinds)]}
            chosen = [x for x in sampled.completions if x.prompt_id in mine]
            if chosen:
                episodes += crew.ask(c.collect.source, kind, sampled.plain, chosen, state.round + 1)
    sampled = dataclasses.replace(sampled, cursor={**sampled.cursor, **cursor})
    seconds = time.perf_counter() - t0
    played = _judged(shop, state, step, sampled, [*episodes, *old], seconds, made_by=c.collect.source)
    return dataclasses.replace(played, metrics={**played.metrics, **facts})


def revise(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """The policy answers; a critic says what is wrong, a reviser writes it anew."""
    c = shop.config.cycle.revise
    sampled = sample_groups(shop, state, c.prompts, 1)
    t0 = time.perf_counter()
    episodes = crew.revised(c.source, sampled.plain, sampled.completions, state.round + 1, times=c.times)
    return _judged(shop, state, step, sampled, episodes, time.perf_counter() - t0, made_by=c.source)


def oppose(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """What the teacher writes, preferred to what the policy answers to the same requests."""
    c = shop.config.cycle.oppose
    first = dataclasses.replace(state, cursor={})  # the same requests in every generation
    sampled = sample_groups(shop, first, c.prompts, 1)
    taught = _taught(shop, state, sampled.prompts, c.noise, 0)
    pairs = [
        dataclasses.replace(t, feedback=(write(Pair(1), source="teacher", about=(t.completion.id, own.id)),))
        for t, own in zip(taught, sampled.completions, strict=True)
    ]
    own = [
        Episode(prompt=sampled.plain[x.prompt_id], completion=x, feedback=(), reward=None) for x in sampled.completions
    ]
    both = [e for pair in zip(pairs, own, strict=True) for e in pair]
    sampled = dataclasses.replace(sampled, cursor=state.cursor)
    return _judged(shop, state, step, sampled, both, 0.0, made_by="teacher")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    """Fresh samples, before anybody has judged them."""

    cursor: Mapping[str, int]
    prompts: Sequence[Prompt] = ()
    """As the policy saw them."""
    plain: Mapping[str, Prompt] = dataclasses.field(default_factory=dict)
    """As the judge sees them, by the id of the former."""
    completions: Sequence[Completion] = ()
    seconds: float = 0.0


def sample_groups(
    shop: Workshop, state: LoopState, n: int, samples: int, *, condition: str = "", purpose: str = COLLECTED
) -> Sampled:
    """``samples`` completions of each of the next ``n`` prompts, which ask for ``condition`` where there is one."""
    c, cursor = shop.config, dict(state.cursor)
    drawn = draw_prompts(shop, state, cursor, n, set())
    if not drawn:
        raise DataError(f"{shop.env.name} has no train prompts; give it more problems")
    asked = [with_condition(p, c.cycle.condition_template, condition) if condition else p for p in drawn]
    tag = Tag(seed=c.seed, round=state.round + 1, purpose=purpose)
    t0 = time.perf_counter()
    completions = shop.policy.sample(asked, samples, c.sampling, tag, interrupted=shop.interrupted)
    if shop.interrupted():
        pause(shop, state)
        raise Interrupted(
            f"interrupted in round {state.round + 1}; `triloop resume {shop.run.path}` goes on from round {state.round}"
        )
    return Sampled(
        prompts=asked,
        plain={a.id: dataclasses.replace(p, id=a.id) for a, p in zip(asked, drawn, strict=True)},
        completions=completions,
        cursor=cursor,
        seconds=time.perf_counter() - t0,
    )


def _judged(
    shop: Workshop,
    state: LoopState,
    step: Step,
    sampled: Sampled,
    episodes: Sequence[Episode],
    seconds: float,
    *,
    made_by: str,
) -> Played:
    told = [f for e in episodes for f in e.feedback]
    check_failures(told)
    tokens = sum(sum(c.mask) for c in sampled.completions)
    facts = {
        "judgements": float(len(told)),
        "judge_failures": sum(f.failed for f in told) / max(1, len(told)),
        "undecided": sum(f.value == 0 for f in told) / max(1, len(told)),
        "cost": sum(f.cost for f in told),
        "length": tokens / max(1, len(sampled.completions)),
    }
    kinds = ", ".join(dict.fromkeys(f.kind for f in told))
    made_from = [latest(shop, state, "policy"), latest(shop, state, "reward") if made_by == "reward" else ""]
    row = artifact(
        state.round + 1,
        step,
        "feedback",
        {"judgements": len(told), "kinds": kinds, "source": made_by, "cost": facts["cost"]},
        parents=[id for id in made_from if id],
    )
    return Played(
        metrics=facts,
        cursor=sampled.cursor,
        episodes=episodes,
        purpose=COLLECTED,
        rows=[row],
        tokens=tokens,
        sample_seconds=sampled.seconds,
        judge_seconds=seconds,
    )


def demonstrations(shop: Workshop, state: LoopState) -> tuple[list[Episode], dict[str, int]]:
    """What the task's own teacher writes for fresh prompts, as episodes that nobody has judged."""
    c, cursor = shop.config.cycle.imitate, dict(state.cursor)
    prompts = draw_prompts(shop, state, cursor, c.examples, set())
    return _taught(shop, state, prompts, c.noise, state.round + 1), cursor


def _taught(shop: Workshop, state: LoopState, prompts: Sequence[Prompt], noise: float, of: int) -> list[Episode]:
    """A teacher's answers; ``of`` tells one set of them from another."""
    env, round = shop.env, state.round + 1
    shows = teacher(env)
    if shows is None:
        raise ConfigError(
            f"{env.name} has no teacher; leave out the stages that need one: oppose, and imitate on teacher"
        )
    draws = rng.generator(shop.config.seed, "teacher", of)
    written = []
    for p in prompts:
        text = shows.demonstration(p, draws, noise)
        tokens = continuation(shop.policy, p, text)
        by_teacher = Completion(
            id=f"demonstration/{completion_id(round, p.id, 0)}",
            prompt_id=p.id,
            round=round,
            index=0,
            prompt_tokens=shop.policy.encode(p),
            tokens=tokens,
            logps=(0.0,) * len(tokens),
            mask=(True,) * len(tokens),
            text=text,
            finish="stop",
            policy_version=shop.policy.version,
        )
        written.append(Episode(prompt=p, completion=by_teacher, feedback=(), reward=None))
    return written
