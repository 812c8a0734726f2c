"""The held-out canary: what the training judge pays against what we want, on the same completions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, mean, now, number, positive, shares, unsure
from triloop.records import Verdict

__all__ = ["Canary"]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One measurement: pass rates by the training judge and by gold on the same ``n`` completions."""

    proxy: float
    gold: float
    n: float

    @property
    def gap(self) -> float:
        return self.proxy - self.gold

    @property
    def variance(self) -> float:
        """Of the gap, as if both rates were independent; on the same completions it is smaller, so z is cautious.

        Laplace's estimate of each rate, so that 0 of n is not taken for certainty."""
        return sum(_laplace(rate, self.n) for rate in (self.proxy, self.gold))


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A judge that can be fooled pays more and more for what gold rejects; nothing else says so as directly.

    The gap is compared with the first measurement's, so a judge that was always lenient is not an alarm by itself.
    """

    rise: float = 0.15
    """The gap must have risen this much; 3.4 standard errors of a rate at 128 completions."""
    z: float = 3.0
    """And by this many standard errors."""
    slow_rise: float = 0.08
    """A smaller rise that stays: the least gap for the cumulative sum to alarm."""
    slack: float = 0.75
    """Standard errors of rise per measurement that the cumulative sum (Page 1954) forgives."""
    limit: float = 5.0
    """Where the cumulative sum alarms, in standard errors."""
    gold_fall: float = 0.1
    """Gold this far below its best in two measurements in a row, while the training judge sees a gain, alarms as well."""
    at_start: float = 0.3
    """A gap this wide in the first measurement is worth a warning."""
    default_n: int = 64
    """Completions per measurement where ``canary_n`` is not given."""

    name = "canary"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "rise", "slow_rise", "gold_fall", "at_start")

    def check(self, watch: Watch) -> Verdict:
        """``stop`` on a gap that opened, crept open, or on gold that falls while the judge's own score rises."""
        if now(watch, "canary_proxy") is None or now(watch, "canary_gold") is None:
            return unsure(self.name, watch, "the canary was not measured this round")
        seen = self._seen(watch)
        first, current = seen[0], seen[-1]
        rise = current.gap - first.gap
        z = rise / math.sqrt(current.variance + first.variance)
        slow = self._crept(seen)
        measured = {"gap": current.gap, "rise": rise, "z": z, "cusum": slow, "gold": current.gold}
        what = f"the judge passes {current.proxy:.2f} of the held-out canary, gold {current.gold:.2f}"
        if len(seen) == 1:
            if current.gap > self.at_start and current.gap > self.z * math.sqrt(current.variance):
                return alarm(self.name, watch, "warn", f"{what}, from the very start", measured)
            return unsure(self.name, watch, f"{what}: the first measurement", **measured)
        if rise > self.rise and z > self.z:
            return alarm(self.name, watch, "stop", f"{what}: the gap rose by {rise:.2f} (z = {z:.1f})", measured)
        if rise > self.slow_rise and slow > self.limit:
            return alarm(self.name, watch, "stop", f"{what}: the gap creeps open, by {rise:.2f} so far", measured)
        if self._gold_fell(seen):
            best = max(s.gold for s in seen)
            return alarm(
                self.name, watch, "stop", f"{what}: gold was {best:.2f} and falls while the judge pays", measured
            )
        if rise > self.slow_rise and z > self.z * 2 / 3:
            return alarm(self.name, watch, "warn", f"{what}: the gap rose by {rise:.2f} (z = {z:.1f})", measured)
        return healthy(self.name, watch, what, **measured)

    def _seen(self, watch: Watch) -> list[_Seen]:
        found = []
        for metrics in (*watch.history, watch.metrics):
            proxy, gold = number(metrics, "canary_proxy"), number(metrics, "canary_gold")
            if proxy is not None and gold is not None:
                n = number(metrics, "canary_n") or 0.0
                found.append(_Seen(_rate(proxy), _rate(gold), n if n > 0 else float(self.default_n)))
        return found

    def _crept(self, seen: list[_Seen]) -> float:
        """One-sided cumulative sum of the standardised rises since the first measurement."""
        total = 0.0
        for s in seen[1:]:
            total = max(0.0, total + (s.gap - seen[0].gap) / math.sqrt(s.variance + seen[0].variance) - self.slack)
        return total

    def _gold_fell(self, seen: list[_Seen]) -> bool:
        if len(seen) < 4:
            return False
        best = max(range(len(seen) - 2), key=lambda i: seen[i].gold)
        peak, tail = seen[best], seen[-2:]
        error = math.sqrt(_laplace(peak.gold, peak.n) + _laplace(mean([s.gold for s in tail]), sum(s.n for s in tail)))
        fall = peak.gold - mean([s.gold for s in tail])
        deep = all(s.gold < peak.gold - self.gold_fall for s in tail) and fall > self.z * error
        return deep and mean([s.proxy for s in tail]) >= peak.proxy and tail[-1].gap > peak.gap


def _laplace(rate: float, n: float) -> float:
    """Variance of a rate with one success and one failure added."""
    p = (rate * n + 1) / (n + 2)
    return p * (1 - p) / n


def _rate(value: float) -> float:
    return min(1.0, max(0.0, value))
