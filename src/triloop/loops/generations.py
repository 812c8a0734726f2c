"""The loop over mixed feedback: generate, judge, aggregate, learn, gate, next generation.

``stages.plan`` says which round does what, ``PLAYS`` how. The loop itself is ``improve``: every round, of whatever stage,
is watched and committed in one way, so that a run goes on after a kill wherever it was. What flows from stage to stage is
in the store (judged samples) or in a part of the workshop (policy, reward model, champion), never in between.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from triloop import rng, stats
from triloop.envs.conditioned import with_condition
from triloop.envs.world import TextWorld
from triloop.errors import ConfigError, DataError, Interrupted
from triloop.feedback.kinds import Pair, write
from triloop.learn.mixture import resolve_mixture
from triloop.learn.objective_config import MixtureConfig, ObjectiveConfig
from triloop.learn.objective_table import resolve_objective
from triloop.loops.assemble import Pool, conditioned, continuation, examples, reward_examples
from triloop.loops.commit import pause
from triloop.loops.crew import Crew
from triloop.loops.evaluate import evaluate
from triloop.loops.learning import policy_gradient
from triloop.loops.lineage import artifact, latest
from triloop.loops.outcome import outcome_round
from triloop.loops.played import Play, Played
from triloop.loops.rollout import draw_prompts
from triloop.loops.stages import FEEDS, STAGES, Stage, Step, plan
from triloop.loops.state import LoopState, Workshop
from triloop.loops.study import study
from triloop.policies.protocol import Tag
from triloop.records import Completion, Episode, Feedback, Prompt, completion_id
from triloop.sources.reward_config import RewardTraining
from triloop.sources.verifier import check_failures
from triloop.store.codec import Row

__all__ = ["PLAYS", "StagePlay", "staged"]

StagePlay = Callable[[Workshop, Crew, LoopState, Step], Played]
"""One round of a stage. What it says of itself is completed by ``staged``."""

_COLLECTED = "collect"
"""What judged samples that a later stage learns from are stored as."""


def staged(crew: Crew) -> Play:
    """Rounds as the plan of this run's stages has them."""
    c = crew.config
    steps = plan(c.cycle, c.generations, c.rounds)

    def play(shop: Workshop, state: LoopState) -> Played:
        step = steps[state.round]
        played = PLAYS[step.stage](shop, crew, state, step)
        where = {"generation": float(step.generation), "stage": float(STAGES.index(step.stage))}
        return dataclasses.replace(
            played,
            metrics={"round": float(state.round + 1), **played.metrics, **where},
            watched=step.stage == "improve",
            kept=step.last and step.stage in ("imitate", "reward", "gate"),
            held_out=step.last and step.stage in ("imitate", "prefer", "improve"),
        )

    return play


# ---------------------------------------------------------------------- generate and judge


def _collect(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Sample, and let the source judge: each kind of feedback on its own share of the prompts."""
    c = shop.config.cycle.collect
    sampled = _sampled(shop, state, c.prompts, c.samples, c.condition if step.generation > 1 else "")
    t0 = time.perf_counter()
    episodes: list[Episode] = []
    for k, kind in enumerate(c.kinds):
        mine = {p.id for p in sampled.prompts[k :: len(c.kinds)]}
        chosen = [x for x in sampled.completions if x.prompt_id in mine]
        if chosen:
            episodes += crew.ask(c.source, kind, sampled.plain, chosen, state.round + 1)
    return _judged(shop, state, step, sampled, episodes, time.perf_counter() - t0, made_by=c.source)


def _revise(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """The policy answers; a critic says what is wrong, a reviser writes it anew."""
    c = shop.config.cycle.revise
    sampled = _sampled(shop, state, c.prompts, 1, "")
    t0 = time.perf_counter()
    episodes = crew.revised(c.source, sampled.plain, sampled.completions, state.round + 1, times=c.times)
    return _judged(shop, state, step, sampled, episodes, time.perf_counter() - t0, made_by=c.source)


def _oppose(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """What the teacher writes, preferred to what the policy answers to the same requests."""
    c = shop.config.cycle.oppose
    first = dataclasses.replace(state, cursor={})  # the same requests in every generation
    sampled = _sampled(shop, first, c.prompts, 1, "")
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
class _Sampled:
    prompts: Sequence[Prompt]
    """As the policy saw them."""
    plain: Mapping[str, Prompt]
    """As the judge sees them, by the id of the former."""
    completions: Sequence[Completion]
    cursor: Mapping[str, int]
    seconds: float


def _sampled(shop: Workshop, state: LoopState, n: int, samples: int, condition: str) -> _Sampled:
    c, cursor = shop.config, dict(state.cursor)
    drawn = draw_prompts(shop, state, cursor, n, set())
    if not drawn:
        raise DataError(f"{shop.env.name} has no train prompts; give it more problems")
    asked = [with_condition(p, c.cycle.condition_template, condition) if condition else p for p in drawn]
    tag = Tag(seed=c.seed, round=state.round + 1, purpose=_COLLECTED)
    t0 = time.perf_counter()
    completions = shop.policy.sample(asked, samples, c.sampling, tag, interrupted=shop.interrupted)
    if shop.interrupted():
        pause(shop, state)
        raise Interrupted(
            f"interrupted in round {state.round + 1}; `triloop resume {shop.run.path}` goes on from round {state.round}"
        )
    return _Sampled(
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
    sampled: _Sampled,
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
    named = {"policy": latest(shop, "policy"), **({"reward": latest(shop, "reward")} if made_by == "reward" else {})}
    row = artifact(
        state.round + 1,
        step,
        "feedback",
        {"judgements": len(told), "kinds": kinds, "source": made_by, "cost": facts["cost"]},
        parents=[id for id in named.values() if id],
    )
    return Played(
        metrics=facts,
        cursor=sampled.cursor,
        episodes=episodes,
        purpose=_COLLECTED,
        rows=[row],
        tokens=tokens,
        sample_seconds=sampled.seconds,
        judge_seconds=seconds,
    )


# ---------------------------------------------------------------------- learn


def _imitate(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Supervised steps, on what a teacher writes now or on what was collected."""
    c = shop.config.cycle
    cursor: Mapping[str, int] = state.cursor
    written: list[Episode] = []
    if c.imitate.on == "teacher":
        written, cursor = _demonstrations(shop, state)
        pool = Pool(written, shop.policy)
    else:
        pool = _pool(shop, state, step, c.imitate.history)
    if c.imitate.on == "feedback":
        found = conditioned(pool, lambda p, said: with_condition(p, c.condition_template, said), _in_words)
        plain = examples(pool, "demonstrations", widely=True)
        share = round(len(found) * (1 - c.imitate.keep) / max(c.imitate.keep, 1e-9)) if c.imitate.keep < 1 else 0
        found += plain[:share]
    else:
        found = examples(pool, "demonstrations", widely=c.imitate.on == "best")
    mixture = resolve_mixture(ObjectiveConfig(name="sft"))
    t0 = time.perf_counter()
    facts = study(shop, found, mixture, c.imitate, state, step)
    rows = [_new_policy(shop, state, step, facts)] if step.last else []
    return Played(
        metrics=facts,
        cursor=cursor,
        episodes=written,
        purpose="demonstration",
        rows=rows,
        learn_seconds=time.perf_counter() - t0,
    )


def _demonstrations(shop: Workshop, state: LoopState) -> tuple[list[Episode], dict[str, int]]:
    """What the task's own teacher writes for fresh prompts, as episodes that nobody has judged."""
    c, cursor = shop.config.cycle.imitate, dict(state.cursor)
    prompts = draw_prompts(shop, state, cursor, c.examples, set())
    return _taught(shop, state, prompts, c.noise, state.round + 1), cursor


def _taught(shop: Workshop, state: LoopState, prompts: Sequence[Prompt], noise: float, of: int) -> list[Episode]:
    """A teacher's answers; ``of`` tells one set of them from another."""
    env, round = shop.env, state.round + 1
    if not isinstance(env, TextWorld):
        raise ConfigError(
            f"{env.name} has no teacher; leave out the stages that need one: oppose, and imitate on teacher"
        )
    draws = rng.generator(shop.config.seed, "teacher", of)
    written = []
    for p in prompts:
        text = env.demonstration(p, draws, noise)
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


def _reward(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Train the reward model on everything collected so far; audit it on the pairs that decided when to stop."""
    c = shop.config.cycle.reward
    assert crew.reward is not None
    found = reward_examples(_pool(shop, state, step, step.generation))
    if not found:
        raise DataError("no judgement collected so far compares two texts: nothing for a reward model to learn from")
    optim = dataclasses.replace(RewardTraining().optim, lr=c.lr)
    training = RewardTraining(
        optim=optim,
        epochs=c.epochs,
        batch=c.batch,
        held_out=c.held_out,
        seed=rng.key(shop.config.seed, "reward") % 2**31,  # who is held out stays held out
    )
    t0 = time.perf_counter()
    trained = crew.reward.learn(found, training=training)
    seen = [{k: float(v) for k, v in dataclasses.asdict(t).items() if isinstance(v, float | int)} for t in trained]
    facts = {f"reward_model_{k}": sum(one.get(k, 0.0) for one in seen) / len(seen) for k in seen[0]}
    parents = [id for id in (latest(shop, "feedback"), latest(shop, "reward")) if id]
    row = artifact(state.round + 1, step, "reward", {"pairs": len(found), **facts}, parents=parents)
    return Played(
        metrics=facts,
        cursor=state.cursor,
        rows=[row] if step.last else [],
        learn_seconds=time.perf_counter() - t0,
    )


def _prefer(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Learn from judgements directly; several objectives, each from its own kind, in the same batches."""
    c = shop.config.cycle.prefer
    given = c.coefficients or (1.0,) * len(c.beside)
    beside = [ObjectiveConfig(name=name, coefficient=k) for name, k in zip(c.beside, given, strict=True)]
    configs = [c.objective, *beside]
    by_kind: dict[str, Any] = {resolve_objective(o).consumes: o for o in configs}
    if len(by_kind) < len(configs):
        raise ConfigError(f"two of the objectives {', '.join(o.name for o in configs)} learn from one kind of example")
    mixture = resolve_mixture(MixtureConfig(**by_kind))
    pool = _pool(shop, state, step, c.history)
    found = [e for kind in mixture.objectives for e in examples(pool, kind, widely=not beside)]
    reference = shop.reference if c.reference == "start" else crew.champion.policy
    t0 = time.perf_counter()
    facts = study(shop, found, mixture, c, state, step, reference=reference)
    rows = [_new_policy(shop, state, step, facts)] if step.last else []
    if step.last and "gate" not in shop.config.cycle.stages:
        crew.champion.crown(shop.policy, step.generation, {})
    return Played(metrics=facts, cursor=state.cursor, rows=rows, learn_seconds=time.perf_counter() - t0)


def _improve(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """A round of outcome feedback, paid by the judge that the cycle names; the learning-rate schedule is the stage's."""
    if step.index == 0:
        shop.policy.restart_from(shop.policy)  # a fresh optimiser
    played = outcome_round(partial(policy_gradient, rounds_done=step.index))(shop, state)
    if not step.last:
        return played
    facts = {k: played.metrics[k] for k in ("reward", "kl", "length") if k in played.metrics}
    more = [id for id in (latest(shop, "reward"),) if id and shop.config.cycle.judge == "reward"]
    return dataclasses.replace(played, rows=[_new_policy(shop, state, step, facts, more)])


def _pool(shop: Workshop, state: LoopState, step: Step, history: int) -> Pool:
    """What was collected in this generation and in so many before it, as the store has it."""
    c = shop.config
    steps = plan(c.cycle, c.generations, c.rounds)[: state.round]
    first = step.generation - history
    rounds = [i + 1 for i, s in enumerate(steps) if s.generation >= first and s.stage in FEEDS]
    taught = [i + 1 for i, s in enumerate(steps) if s.generation >= first and s.stage == "imitate"]
    found = [e for r in rounds for e in shop.run.episodes(r, purpose=_COLLECTED)]
    found += [e for r in taught for e in shop.run.episodes(r, purpose="demonstration")]
    return Pool(found, shop.policy)


def _in_words(f: Feedback) -> str:
    """A judgement as words to condition on: ``good``, ``neutral`` or ``bad`` for a number, a critique as it was written."""
    if f.kind == "text":
        return str(f.content["critique"])
    if f.value is None:
        return ""
    return "good" if f.value > 1 / 3 else "bad" if f.value < -1 / 3 else "neutral"


def _new_policy(
    shop: Workshop, state: LoopState, step: Step, facts: Mapping[str, float], more: Sequence[str] = ()
) -> Row:
    """The row of a new version of the policy: made from the last one, and from what it learned from."""
    fed = [latest(shop, "feedback")] if step.stage != "improve" else []
    parents = [id for id in (latest(shop, "policy"), *fed, *more) if id]
    return artifact(state.round + 1, step, "policy", {"version": shop.policy.version, **facts}, parents=parents)


# ---------------------------------------------------------------------- gate


def _gate(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Gold on canary prompts, paired with the last accepted generation's: a generation that is worse is put back."""
    c, gate = shop.config, shop.config.cycle.gate
    tag = Tag(seed=c.seed, round=0, purpose="gate")
    seen = evaluate(shop.policy, shop.env, gate.n, c.sampling, tag, split="canary", level=c.env.level)
    now = {e.prompt.id: float(e.reward or 0.0) for e in seen.episodes}
    old = crew.champion.scores
    facts = {"gate_value": seen.value, "gate_accepted": 1.0}
    told = {"accepted": True, "value": seen.value, "ci95": [seen.low, seen.high], "n": seen.n}
    if old:
        both = [(old[k], v) for k, v in now.items() if k in old]
        change = stats.paired_difference([new for _, new in both], [was for was, _ in both], seed=c.seed)
        facts |= {"gate_change": change.value, "gate_low": change.low, "gate_high": change.high}
        told |= {"change": change.value, "change_ci95": [change.low, change.high]}
        if change.high < -gate.margin:
            facts["gate_accepted"], told["accepted"] = 0.0, False
    parents = [id for id in (latest(shop, "policy"),) if id]
    row = artifact(state.round + 1, step, "gate", told, parents=parents)
    rows = [row]
    if told["accepted"]:
        crew.champion.crown(shop.policy, step.generation, now)
    else:
        shop.policy.restart_from(crew.champion.policy)
        back = {"put back to generation": crew.champion.generation}
        rows.append(artifact(state.round + 1, step, "policy", back, parents=[row.id]))
    return Played(metrics=facts, cursor=state.cursor, rows=rows)


PLAYS: Mapping[Stage, StagePlay] = MappingProxyType(
    {
        "imitate": _imitate,
        "collect": _collect,
        "revise": _revise,
        "oppose": _oppose,
        "reward": _reward,
        "prefer": _prefer,
        "improve": _improve,
        "gate": _gate,
    }
)
"""How each stage plays a round."""
