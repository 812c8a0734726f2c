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

from triloop import rng
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import CLAUSES
from triloop.envs.conditioned import with_condition
from triloop.errors import ConfigError, DataError
from triloop.learn.mixture import resolve_mixture
from triloop.learn.objective_config import MixtureConfig, ObjectiveConfig
from triloop.learn.objective_table import resolve_objective
from triloop.loops.assemble import Pool, conditioned, examples, passages, reward_examples
from triloop.loops.counters import mean_counters
from triloop.loops.crew import Crew
from triloop.loops.densities import word_rewards
from triloop.loops.gate import gate
from triloop.loops.gathering import COLLECTED, collect, demonstrations, oppose, revise
from triloop.loops.instruct import instruct
from triloop.loops.learning import policy_gradient
from triloop.loops.lineage import artifact, latest
from triloop.loops.outcome import outcome_round
from triloop.loops.played import Play, Played
from triloop.loops.stages import FEEDS, STAGES, Stage, Step, plan
from triloop.loops.state import LoopState, Workshop
from triloop.loops.study import study
from triloop.records import Episode, Feedback
from triloop.sources.reward_config import RewardTraining
from triloop.sources.reward_examples import RewardPair
from triloop.store.codec import Row

__all__ = ["PLAYS", "StagePlay", "staged"]

StagePlay = Callable[[Workshop, Crew, LoopState, Step], Played]
"""One round of a stage. What it says of itself is completed by ``staged``."""


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
            kept=step.last and step.stage in ("imitate", "reward", "gate", "instruct"),
            held_out=step.last and step.stage in ("imitate", "prefer", "improve"),
        )

    return play


# ---------------------------------------------------------------------- learn


def _imitate(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Supervised steps, on what a teacher writes now or on what was collected."""
    c = shop.config.cycle
    cursor: Mapping[str, int] = state.cursor
    written: list[Episode] = []
    if c.imitate.on == "teacher":
        written, cursor = demonstrations(shop, state)
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


def _reward(shop: Workshop, crew: Crew, state: LoopState, step: Step) -> Played:
    """Train the reward model on what has been collected so far; audit it on the pairs that decided when to stop."""
    c = shop.config.cycle.reward
    assert crew.reward is not None
    pool = _pool(shop, state, step, step.generation if c.history is None else c.history)
    found = reward_examples(pool)
    if not found:
        raise DataError(
            "no judgement collected so far compares texts or gives one a number: a reward model has nothing to learn from"
        )
    optim = dataclasses.replace(RewardTraining().optim, lr=c.lr)
    training = RewardTraining(
        optim=optim,
        epochs=c.epochs,
        patience=c.epochs,  # the best pass is kept: a first one that is worse must not be the last
        batch=c.batch,
        held_out=c.held_out,
        seed=rng.key(shop.config.seed, "reward") % 2**31,  # who is held out stays held out
    )
    t0 = time.perf_counter()
    trained = crew.reward.learn(found, training=training)
    marked = passages(pool) if crew.words is not None else []
    if crew.words is not None and not marked:
        raise DataError("no judgement collected so far marks a passage; let people be asked for spans or text as well")
    more = (
        {}
        if crew.words is None
        else {"words_held_loss": min(crew.words.learn(marked, training=training).held_losses, default=0.0)}
    )
    seen = [{k: float(v) for k, v in dataclasses.asdict(t).items() if isinstance(v, float | int)} for t in trained]
    facts = {f"reward_model_{k}": sum(one.get(k, 0.0) for one in seen) / len(seen) for k in seen[0]} | more
    pairs = sum(isinstance(x, RewardPair) for x in found)
    counts = {"pairs": pairs, **({"ratings": len(found) - pairs} if len(found) > pairs else {})}
    parents = [id for id in (latest(shop, state, "feedback"), latest(shop, state, "reward")) if id]
    row = artifact(state.round + 1, step, "reward", {**counts, **facts}, parents=parents)
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
    dense = None if crew.words is None else partial(word_rewards, crew, shop.policy)
    played = outcome_round(partial(policy_gradient, rounds_done=step.index, dense=dense))(shop, state)
    counters = mean_counters(shop.config.cycle.counters, shop.env, played.episodes)
    played = dataclasses.replace(played, metrics={**played.metrics, **counters})
    if not step.last:
        return played
    facts = {k: played.metrics[k] for k in ("reward", "kl", "length") if k in played.metrics}
    more = [id for id in (latest(shop, state, "reward"),) if id and shop.config.cycle.judge in ("reward", "hybrid")]
    return dataclasses.replace(played, rows=[_new_policy(shop, state, step, facts, more)])


def _pool(shop: Workshop, state: LoopState, step: Step, history: int) -> Pool:
    """What was collected in this generation and in so many before it, as the store has it."""
    c = shop.config
    steps = plan(c.cycle, c.generations, c.rounds)[: state.round]
    first = step.generation - history
    rounds = [i + 1 for i, s in enumerate(steps) if s.generation >= first and s.stage in FEEDS]
    taught = [i + 1 for i, s in enumerate(steps) if s.generation >= first and s.stage == "imitate"]
    found = [e for r in rounds for e in shop.run.episodes(r, purpose=COLLECTED)]
    found += [e for r in taught for e in shop.run.episodes(r, purpose="demonstration")]
    return Pool(found, shop.policy, CLAUSES if isinstance(shop.env, Attributes) else ())


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
    fed = [latest(shop, state, "feedback")] if step.stage != "improve" else []
    parents = [id for id in (latest(shop, state, "policy"), *fed, *more) if id]
    return artifact(state.round + 1, step, "policy", {"version": shop.policy.version, **facts}, parents=parents)


PLAYS: Mapping[Stage, StagePlay] = MappingProxyType(
    {
        "imitate": _imitate,
        "collect": collect,
        "revise": revise,
        "oppose": oppose,
        "reward": _reward,
        "prefer": _prefer,
        "improve": _improve,
        "gate": gate,
        "instruct": instruct,
    }
)
"""How each stage plays a round."""
