"""The loop: play a round, watch it, commit it. What a round plays is not decided here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triloop.envs.conditioned import Conditioned
from triloop.guards.base import Watch
from triloop.guards.stack import decide, watch
from triloop.loops.commit import commit_checkpoint, commit_round, roll_back
from triloop.loops.config import RunConfig
from triloop.loops.curriculum import followed
from triloop.loops.evaluate import Evaluation, evaluate
from triloop.loops.learning import tightened
from triloop.loops.measure import canary
from triloop.loops.played import Play
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Tag
from triloop.records import Verdict

__all__ = ["due", "improve", "measure_held_out", "over"]


def due(every: int, round: int, last: int) -> bool:
    """Whether something that happens every so many rounds happens now; the last round always counts."""
    return every > 0 and (round % every == 0 or round == last)


def over(config: RunConfig, state: LoopState) -> bool:
    """Whether there is no further round: all are done, the tokens are spent, or a guard said stop."""
    return bool(state.stopped) or state.round >= config.total_rounds or 0 < config.token_budget <= state.tokens


def improve(shop: Workshop, state: LoopState, play: Play) -> LoopState:
    """Play rounds until the configuration says enough, a guard says stop, or somebody interrupts.

    Each round is committed whole or not at all, and the state that is returned is a checkpoint. A guard's stop is in it;
    Interrupted is raised once the state is safe.
    """
    c = shop.config
    while not over(c, state):
        t0 = time.perf_counter()
        round = state.round + 1
        played = play(shop, state)
        t1 = time.perf_counter()
        metrics = dict(played.metrics)
        checks: list[tuple[str, Evaluation]] = []
        if played.watched and due(c.canary_every, round, c.total_rounds):
            facts, seen = canary(shop, round)
            metrics |= facts
            checks.append(("canary", seen))
        asked = due(c.eval_every, round, 0) if played.held_out is None else c.eval_every > 0 and played.held_out
        if asked and round < c.total_rounds:
            held_out = measure_held_out(shop, round, c.eval_mid_n)
            metrics |= {"eval_value": held_out.value, "eval_low": held_out.low, "eval_high": held_out.high}
            checks.append(("mid", held_out))
        alike = [m for m in state.history if m.get("stage") == metrics.get("stage")]
        seen_by = shop.guards if played.watched else ()
        verdicts = watch(seen_by, Watch(round=round, metrics=metrics, history=alike, episodes=played.episodes))
        decision = decide(verdicts, c.guards, earlier=[Verdict(**v) for v in state.alarms])

        state = state.after(
            metrics,
            cursor=played.cursor,
            tokens=state.tokens + played.tokens,
            **followed(state.pass_rates, state.trends, played.episodes, c.curriculum.memory),
            alarms=_recent(state, verdicts, c.guards.window),
            lr_scale=tightened(state.lr_scale, verdicts),
        )
        timing = {
            "rollout_seconds": played.sample_seconds,
            "judge_seconds": played.judge_seconds,
            "learn_seconds": played.learn_seconds,
            "watch_seconds": played.measure_seconds + time.perf_counter() - t1,
            "seconds": time.perf_counter() - t0,
            "tokens": float(played.tokens),
            "tokens_per_second": played.tokens / max(1e-9, played.sample_seconds),
        }
        commit_round(shop, round, played, metrics, verdicts, timing, checks)
        shop.progress.round({**metrics, **timing, "rounds": float(c.total_rounds)}, verdicts)

        if decision.action == "roll_back":
            state = roll_back(shop, state, _told(round, decision.reason, verdicts))
        elif decision.action == "stop":
            state = dataclasses.replace(state, stopped=_told(round, decision.reason, verdicts))
        elif round % c.checkpoint_every == 0 or played.kept:
            state = commit_checkpoint(shop, state)
    return state if state.anchor == state.round else commit_checkpoint(shop, state)


def _recent(state: LoopState, verdicts: Sequence[Verdict], window: int) -> tuple[Mapping[str, Any], ...]:
    fresh = [{**dataclasses.asdict(v), "samples": ()} for v in verdicts if v.value < 0]
    return (*(v for v in state.alarms if v["round"] > state.round + 1 - window), *fresh)


def measure_held_out(
    shop: Workshop, round: int, n: int, *, interrupted: Callable[[], bool] = lambda: False
) -> Evaluation:
    """Gold score on held-out prompts: the same prompts each time, so that rounds and runs compare pairwise."""
    c = shop.config
    tag = Tag(seed=c.seed, round=round, purpose="eval")
    env = (
        Conditioned(shop.env, c.cycle.condition_template, c.cycle.condition)
        if c.cycle.condition and round
        else shop.env
    )
    return evaluate(shop.policy, env, n, c.sampling, tag, level=c.env.level, interrupted=interrupted)


def _told(round: int, reason: str, verdicts: Sequence[Verdict]) -> str:
    alarms = [v.guard for v in verdicts if v.value < 0]
    return f"stopped in round {round} by {', '.join(alarms) or 'a guard'}: {reason}"
