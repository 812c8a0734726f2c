"""A round of outcome feedback, one way: prompts, rollouts, judgements, credit, update."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

from triloop.errors import Interrupted, JudgeError
from triloop.guards.base import Watch
from triloop.loops.ahead import Ahead
from triloop.loops.commit import pause
from triloop.loops.curriculum import followed
from triloop.loops.measure import round_metrics
from triloop.loops.played import Play, Played
from triloop.loops.rollout import Rollout, rollout
from triloop.loops.state import LoopState, Workshop
from triloop.records import Episode

__all__ = ["Learn", "outcome_round", "screened"]

Learn = Callable[[Workshop, LoopState, Sequence[Episode]], Mapping[str, float]]
"""Turns a round's episodes into weights and says what the update was like."""

_SCREEN = "samples"
"""The guard that looks at single samples, and so can say before the update which of them not to learn from."""


def outcome_round(learn: Learn, ahead: Ahead | None = None) -> Play:
    """A round of outcome feedback: prompts, rollouts, judgements, credit, update. ``ahead``: one step off policy."""

    def play(shop: Workshop, state: LoopState) -> Played:
        rolled = _rolled(shop, state, rollout if ahead is None else ahead.rolled)  # prompts, rollouts, judgements
        t0 = time.perf_counter()
        with nullcontext() if ahead is None else ahead.meanwhile(shop, _following(shop, state, rolled)):
            update = learn(shop, state, screened(shop, state.round + 1, rolled.episodes))  # credit, update
            t1 = time.perf_counter()
            metrics = round_metrics(shop, state, rolled.episodes, update)
            t2 = time.perf_counter()
        return Played(
            episodes=rolled.episodes,
            metrics=metrics,
            cursor=rolled.cursor,
            tokens=rolled.tokens,
            sample_seconds=rolled.sample_seconds,
            judge_seconds=rolled.judge_seconds,
            learn_seconds=t1 - t0,
            measure_seconds=t2 - t1,
        )

    return play


def _rolled(shop: Workshop, state: LoopState, roll: Callable[[Workshop, LoopState], Rollout]) -> Rollout:
    """The round's samples, judged. When that cannot be, the state before is made safe: the weights have not moved yet."""
    try:
        rolled = roll(shop, state)
    except JudgeError:
        pause(shop, state)
        raise
    if shop.interrupted():
        pause(shop, state)
        raise Interrupted(
            f"interrupted in round {state.round + 1}; `triloop resume {shop.run.path}` goes on from round {state.round}"
        )
    return rolled


def _following(shop: Workshop, state: LoopState, rolled: Rollout) -> LoopState:
    """As much of the next state as sampling looks at: it is known before the update."""
    levels = followed(state.pass_rates, state.trends, rolled.episodes, shop.config.curriculum.memory)
    return state.after({}, cursor=rolled.cursor, tokens=state.tokens + rolled.tokens, **levels)


def screened(shop: Workshop, round: int, episodes: Sequence[Episode]) -> list[Episode]:
    """Paid samples that trip a wire lose their reward before anything is learned from them; the store keeps it."""
    guard = next((g for g in shop.guards if g.name == _SCREEN), None)
    verdict = None if guard is None else guard.check(Watch(round=round, metrics={}, episodes=episodes))
    caught = set(verdict.samples) if verdict is not None and verdict.value < 0 else set[str]()
    return [dataclasses.replace(e, reward=None) if e.completion.id in caught else e for e in episodes]
