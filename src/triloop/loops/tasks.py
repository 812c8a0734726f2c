"""Which of several tasks to sample next: those that are being learned (or lost) fastest, by exponential weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from triloop.errors import ConfigError

__all__ = ["Trend", "progress_weights", "trended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Two running means of a task's reward; their distance is its learning progress (Matiisen et al., arXiv:1707.00183)."""

    fast: float
    slow: float

    @property
    def progress(self) -> float:
        """Reward gained of late; below 0 where the task is being forgotten."""
        return self.fast - self.slow


def trended(trend: Trend | None, reward: float, *, fast: float = 0.5, slow: float = 0.15) -> Trend:
    """After one more round's mean reward: each mean moves by its share of the way. The first reward starts both."""
    if trend is None:
        return Trend(fast=reward, slow=reward)
    return Trend(fast=trend.fast + fast * (reward - trend.fast), slow=trend.slow + slow * (reward - trend.slow))


def progress_weights(progress: Mapping[str, float], *, floor: float = 0.1, sharpness: float = 2.0) -> dict[str, float]:
    """Probability of each task; |progress| counts, so that what is being forgotten is practised too.

        w_k = floor + (1 - n floor) e^(s |p_k| / max |p|) / sum_j e^(s |p_j| / max |p|)

    Equal where nothing moves. ConfigError unless there is a task and n floor is at most 1.
    """
    n = len(progress)
    if not n or not 0 <= floor * n <= 1:
        raise ConfigError(f"{n} tasks with a floor of {floor} each; expected a task, and floors of at most 1 in sum")
    top = max(map(abs, progress.values())) or 1.0
    strength = {name: math.exp(sharpness * abs(p) / top) for name, p in progress.items()}
    total = sum(strength.values())
    return {name: floor + (1 - n * floor) * s / total for name, s in strength.items()}
