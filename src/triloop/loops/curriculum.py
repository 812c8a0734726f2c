"""Which difficulty to train on: the task's own mixture, or the frontier of ability (atlas A15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triloop import rng
from triloop.loops.config import CurriculumConfig
from triloop.records import Episode

__all__ = ["choose_levels", "frontier_weights", "updated_rates"]


def frontier_weights(rates: Mapping[int, float], floor: float) -> dict[int, float]:
    """Probability of each level, proportional to p(1-p): the variance of a pass, largest where half succeed.

    Each level keeps at least ``floor``, so that a level once too hard or too easy is looked at again. An unknown level
    counts as p = 1/2.
    """
    signal = {level: p * (1 - p) + 1e-6 for level, p in rates.items()}
    total = sum(signal.values())
    spare = max(0.0, 1.0 - floor * len(signal))
    return {level: min(floor, 1 / len(signal)) + spare * s / total for level, s in signal.items()}


def choose_levels(
    config: CurriculumConfig,
    fixed: int | None,
    levels: Sequence[int],
    rates: Mapping[str, float],
    n: int,
    key: int,
) -> dict[int | None, int]:
    """How many of ``n`` prompts to draw at each level; None is the task's own mixture."""
    if fixed is not None or config.kind == "mixture" or len(levels) < 2:
        return {fixed: n}
    weights = frontier_weights({level: rates.get(str(level), 0.5) for level in levels}, config.floor)
    counts = rng.generator(key).multinomial(n, [w / sum(weights.values()) for w in weights.values()])
    return {level: int(count) for level, count in zip(weights, counts, strict=True) if count}


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
