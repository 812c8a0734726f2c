"""How guards read a Watch: series without gaps and NaN, smoothed ends, and verdicts. Nothing here raises for any Watch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.records import Episode, Verdict

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from triloop.guards.base import Metrics
    from triloop.records import Action

__all__ = [
    "alarm",
    "at_least",
    "healthy",
    "last",
    "mean",
    "now",
    "number",
    "pairs",
    "paid",
    "pass_like",
    "positive",
    "rising",
    "series",
    "shares",
    "start",
    "unsure",
]


_LARGEST = 1e12
"""Values are clamped to this, so that no sum or square of them overflows."""


def number(metrics: Metrics, name: str) -> float | None:
    """A metric as a finite float, or None when it is absent or is none."""
    value: object = metrics.get(name)  # from a stored run: anything that JSON can hold
    if type(value) is float and -_LARGEST <= value <= _LARGEST:
        return value  # nearly always, and guards read all rounds so far in every round
    if not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return float(min(_LARGEST, max(-_LARGEST, value)))


def now(watch: Watch, name: str) -> float | None:
    """This round's value."""
    return number(watch.metrics, name)


def series(watch: Watch, name: str) -> list[float]:
    """All values so far, oldest first, this round's last; rounds without one are left out."""
    found = [number(metrics, name) for metrics in (*watch.history, watch.metrics)]
    return [value for value in found if value is not None]


def pairs(watch: Watch, first: str, second: str) -> list[tuple[float, float]]:
    """Values of two metrics in the rounds that have both."""
    found = [(number(m, first), number(m, second)) for m in (*watch.history, watch.metrics)]
    return [(a, b) for a, b in found if a is not None and b is not None]


def mean(values: Sequence[float]) -> float:
    """Mean; NaN for none."""
    return math.fsum(values) / len(values) if values else math.nan


def start(values: Sequence[float], rounds: int) -> float:
    """Mean of the first rounds: what later ones are compared with. NaN for no values."""
    return mean(values[:rounds])


def last(values: Sequence[float], rounds: int) -> float:
    """Mean of the last rounds."""
    return mean(values[-rounds:])


def pass_like(watch: Watch) -> list[float]:
    """Mean rewards as if they were pass rates: 0 is the worst that a reward can be, 1 the best.

    Rewards lie in [-1, 1]; a judge that never went below 0 is taken to pay 0 and 1.
    """
    rewards = series(watch, "reward")
    floor = -1.0 if any(r < 0 for r in rewards) else 0.0
    return [(r - floor) / (1.0 - floor) for r in rewards]


def rising(values: Sequence[float], rounds: int, by: float) -> bool:
    """Whether the last ``rounds`` values lie higher by ``by`` than those before them. True while too few are known."""
    if len(values) < 2 * rounds:
        return True
    return last(values, rounds) - mean(values[-2 * rounds : -rounds]) > by


def paid(episodes: Sequence[Episode], count: int = 5) -> tuple[str, ...]:
    """Identifiers of the best-paid completions: what a policy that fools its judge is proud of."""
    judged = [(e.reward, e.completion.id) for e in episodes if e.reward is not None and not math.isnan(e.reward)]
    judged.sort(key=lambda pair: -pair[0])
    return tuple(id for _, id in judged[:count])


def healthy(guard: str, watch: Watch, reason: str, **measured: float) -> Verdict:
    """+1."""
    return Verdict(guard=guard, round=watch.round, value=1, reason=reason, measured=measured)


def unsure(guard: str, watch: Watch, reason: str, **measured: float) -> Verdict:
    """0: not measured, or too early to tell."""
    return Verdict(guard=guard, round=watch.round, value=0, reason=reason, measured=measured)


def alarm(
    guard: str,
    watch: Watch,
    action: Action,
    reason: str,
    measured: Mapping[str, float],
    samples: tuple[str, ...] | None = None,
) -> Verdict:
    """-1, with the best-paid samples of the round as evidence unless others are named."""
    shown = paid(watch.episodes) if samples is None else samples
    return Verdict(
        guard=guard, round=watch.round, value=-1, reason=reason, action=action, measured=measured, samples=shown
    )


def positive(record: DataclassInstance, *names: str) -> None:
    """Raise ConfigError unless these fields are above 0 (all numeric fields when none is named)."""
    at_least(record, 0, *names, strict=True)


def at_least(record: DataclassInstance, low: float, *names: str, strict: bool = False) -> None:
    """Raise ConfigError unless these fields are finite and at least ``low``."""
    for name in names or [f.name for f in fields(record)]:
        value = getattr(record, name)
        if not math.isfinite(value) or value < low or (strict and value == low):
            raise ConfigError(
                f"{type(record).__name__}.{name} must be {'above' if strict else 'at least'} {low:g}; got {value}"
            )


def shares(record: DataclassInstance, *names: str) -> None:
    """Raise ConfigError unless these fields are shares in [0, 1]."""
    for name in names:
        if not 0.0 <= getattr(record, name) <= 1.0:
            raise ConfigError(f"{type(record).__name__}.{name} is a share in [0, 1]; got {getattr(record, name)}")
