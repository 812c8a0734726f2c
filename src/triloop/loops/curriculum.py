"""Which difficulty, or which of several tasks, to train on: the task's own mixture, the frontier of ability (atlas A15), or
where progress is (atlas A49)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triloop import rng
from triloop.loops.config import CurriculumConfig
from triloop.loops.tasks import Trend, progress_weights, trended
from triloop.records import Episode

__all__ = [
    "choose_levels",
    "followed",
    "frontier_weights",
    "level_weights",
    "updated_rates",
    "updated_trends",
]


def frontier_weights(rates: Mapping[int, float], floor: float) -> dict[int, float]:
    """Probability of each level, proportional to p(1-p): the variance of a pass, largest where half succeed.

    Each level keeps at least ``floor``, so that a level once too hard or too easy is looked at again. An unknown level
    counts as p = 1/2.
    """
    signal = {level: p * (1 - p) + 1e-6 for level, p in rates.items()}
    total = sum(signal.values())
    spare = max(0.0, 1.0 - floor * len(signal))
    return {level: min(floor, 1 / len(signal)) + spare * s / total for level, s in signal.items()}


def level_weights(
    config: CurriculumConfig, levels: Sequence[int], rates: Mapping[str, float], trends: Mapping[str, Sequence[float]]
) -> dict[int, float]:
    """Probability of each level, under a curriculum that is not the task's own mixture. A level not seen counts as solved
    half the time, and as standing still."""
    if config.kind == "frontier":
        return frontier_weights({level: rates.get(str(level), 0.5) for level in levels}, config.floor)
    moved = {level: _trend(trends.get(str(level), (0.0, 0.0))).progress for level in levels}
    found = progress_weights({str(k): v for k, v in moved.items()}, floor=min(config.floor, 1 / len(levels)))
    return {level: found[str(level)] for level in levels}


def choose_levels(
    config: CurriculumConfig,
    fixed: int | None,
    levels: Sequence[int],
    known: tuple[Mapping[str, float], Mapping[str, Sequence[float]]],
    n: int,
    key: int,
) -> dict[int | None, int]:
    """How many of ``n`` prompts to draw at each level; None is the task's own mixture. ``known``: pass rates and trends."""
    if fixed is not None or config.kind == "mixture" or len(levels) < 2:
        return {fixed: n}
    weights = level_weights(config, levels, *known)
    counts = rng.generator(key).multinomial(n, [w / sum(weights.values()) for w in weights.values()])
    return {level: int(count) for level, count in zip(weights, counts, strict=True) if count}


def followed(
    rates: Mapping[str, float], trends: Mapping[str, Sequence[float]], episodes: Sequence[Episode], memory: float
) -> dict[str, Mapping[str, Any]]:
    """``pass_rates`` and ``trends`` of the state after a round with these episodes."""
    return {"pass_rates": updated_rates(rates, episodes, memory), "trends": updated_trends(trends, episodes)}


def updated_rates(rates: Mapping[str, float], episodes: Sequence[Episode], memory: float) -> dict[str, float]:
    """Running pass rate by level: ``memory * old + (1 - memory) * this round``; a level not seen keeps its rate."""
    seen: dict[str, list[float]] = {}
    for e in episodes:
        if e.reward is not None:
            seen.setdefault(str(e.prompt.level), []).append(float(e.reward > 0))
    new = dict(rates)
    for level, passed in seen.items():
        rate = sum(passed) / len(passed)
        new[level] = memory * rates[level] + (1 - memory) * rate if level in rates else rate
    return new


def updated_trends(
    trends: Mapping[str, Sequence[float]], episodes: Sequence[Episode]
) -> dict[str, tuple[float, float]]:
    """(fast, slow) running mean of the reward by level (``tasks.trended``); a level not seen keeps its own."""
    seen: dict[str, list[float]] = {}
    for e in episodes:
        if e.reward is not None:
            seen.setdefault(str(e.prompt.level), []).append(e.reward)
    new = {level: (t[0], t[1]) for level, t in trends.items()}
    for level, rewards in seen.items():
        before = _trend(trends[level]) if level in trends else None
        after = trended(before, sum(rewards) / len(rewards))
        new[level] = (after.fast, after.slow)
    return new


def _trend(means: Sequence[float]) -> Trend:
    return Trend(fast=means[0], slow=means[1])
