"""The loop. One round, one way: prompts, rollouts, judgements, credit, update, watch, commit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triloop.errors import Interrupted, JudgeError
from triloop.guards.base import Watch
from triloop.guards.stack import decide, watch
from triloop.loops.commit import commit_checkpoint, commit_round, pause, roll_back
from triloop.loops.config import RunConfig
from triloop.loops.curriculum import updated_rates
from triloop.loops.evaluate import Evaluation, evaluate
from triloop.loops.learning import tightened
from triloop.loops.measure import canary, round_metrics
from triloop.loops.rollout import Rollout, rollout
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Tag
from triloop.records import Episode, Verdict

__all__ = ["Learn", "due", "improve", "measure_held_out", "over", "screened"]

Learn = Callable[[Workshop, LoopState, Sequence[Episode]], Mapping[str, float]]
"""Turns a round's episodes into weights and says what the update was like."""

_SCREEN = "samples"
"""The guard that looks at single samples, and so can say before the update which of them not to learn from."""


def due(every: int, round: int, last: int) -> bool:
    """Whether something that happens every so many rounds happens now; the last round always counts."""
    return every > 0 and (round % every == 0 or round == last)


def over(config: RunConfig, state: LoopState) -> bool:
    """Whether there is no further round: all are done, the tokens are spent, or a guard said stop."""
    return bool(state.stopped) or state.round >= config.rounds or 0 < config.token_budget <= state.tokens


def improve(shop: Workshop, state: LoopState, learn: Learn) -> LoopState:
    """Run rounds until the configuration says enough, a guard says stop, or somebody interrupts.

    Each round is committed whole or not at all, and the state that is returned is a checkpoint. A guard's stop is in it;
    Interrupted is raised once the state is safe.
    """
    c = shop.config
    while not over(c, state):
        t0 = time.perf_counter()
        round = state.round + 1
        rolled = _rolled(shop, state)  # prompts, rollouts, judgements
        episodes = screened(shop, round, rolled.episodes)
        t1 = time.perf_counter()
        update = learn(shop, state, episodes)  # credit, update
        t2 = time.perf_counter()

        metrics = round_metrics(shop, state, rolled.episodes, update)
        checks: list[tuple[str, Evaluation]] = []
        if due(c.canary_every, round, c.rounds):
            facts, seen = canary(shop, round)
            metrics |= facts
            checks.append(("canary", seen))
        if due(c.eval_every, round, 0) and round < c.rounds:
            held_out = measure_held_out(shop, round, c.eval_mid_n)
            metrics |= {"eval_value": held_out.value, "eval_low": held_out.low, "eval_high": held_out.high}
            checks.append(("mid", held_out))
        verdicts = watch(
            shop.guards, Watch(round=round, metrics=metrics, history=state.history, episodes=rolled.episodes)
        )
        decision = decide(verdicts, c.guards, earlier=[Verdict(**v) for v in state.alarms])

        state = state.after(
            metrics,
            cursor=rolled.cursor,
            tokens=state.tokens + rolled.tokens,
            pass_rates=updated_rates(state.pass_rates, rolled.episodes, c.curriculum.memory),
            alarms=_recent(state, verdicts, c.guards.window),
            lr_scale=tightened(state.lr_scale, verdicts),
        )
        timing = {
            "rollout_seconds": rolled.sample_seconds,
            "judge_seconds": rolled.judge_seconds,
            "learn_seconds": t2 - t1,
            "watch_seconds": time.perf_counter() - t2,
            "seconds": time.perf_counter() - t0,
            "tokens": float(rolled.tokens),
            "tokens_per_second": rolled.tokens / max(1e-9, rolled.sample_seconds),
        }
        commit_round(shop, round, rolled.episodes, metrics, verdicts, timing, checks)
        shop.progress.round({**metrics, **timing, "rounds": float(c.rounds)}, verdicts)

        if decision.action == "roll_back":
            state = roll_back(shop, state, _told(round, decision.reason, verdicts))
        elif decision.action == "stop":
            state = dataclasses.replace(state, stopped=_told(round, decision.reason, verdicts))
        elif round % c.checkpoint_every == 0:
            state = commit_checkpoint(shop, state)
    return state if state.anchor == state.round else commit_checkpoint(shop, state)


def _rolled(shop: Workshop, state: LoopState) -> Rollout:
    """The round's samples, judged. When that cannot be, the state before is made safe: the weights have not moved yet."""
    try:
        rolled = rollout(shop, state)
    except JudgeError:
        pause(shop, state)
        raise
    if shop.interrupted():
        pause(shop, state)
        raise Interrupted(
            f"interrupted in round {state.round + 1}; `triloop resume {shop.run.path}` goes on from round {state.round}"
        )
    return rolled


def screened(shop: Workshop, round: int, episodes: Sequence[Episode]) -> list[Episode]:
    """Paid samples that trip a wire lose their reward before anything is learned from them; the store keeps it."""
    guard = next((g for g in shop.guards if g.name == _SCREEN), None)
    verdict = None if guard is None else guard.check(Watch(round=round, metrics={}, episodes=episodes))
    caught = set(verdict.samples) if verdict is not None and verdict.value < 0 else set[str]()
    return [dataclasses.replace(e, reward=None) if e.completion.id in caught else e for e in episodes]


def _recent(state: LoopState, verdicts: Sequence[Verdict], window: int) -> tuple[Mapping[str, Any], ...]:
    fresh = [{**dataclasses.asdict(v), "samples": ()} for v in verdicts if v.value < 0]
    return (*(v for v in state.alarms if v["round"] > state.round + 1 - window), *fresh)


def measure_held_out(
    shop: Workshop, round: int, n: int, *, interrupted: Callable[[], bool] = lambda: False
) -> Evaluation:
    """Gold score on held-out prompts: the same prompts each time, so that rounds and runs compare pairwise."""
    c = shop.config
    tag = Tag(seed=c.seed, round=round, purpose="eval")
    return evaluate(shop.policy, shop.env, n, c.sampling, tag, level=c.env.level, interrupted=interrupted)


def _told(round: int, reason: str, verdicts: Sequence[Verdict]) -> str:
    alarms = [v.guard for v in verdicts if v.value < 0]
    return f"stopped in round {round} by {', '.join(alarms) or 'a guard'}: {reason}"
