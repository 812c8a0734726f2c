"""Collapse: reward falls far below its own best and stays there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, last, mean, now, pairs, pass_like, positive, series, shares, unsure
from triloop.records import Verdict

__all__ = ["Collapse"]


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """A rate that is too high destroys a policy within dozens of rounds; length and entropy rise while reward falls.

    Seen on a 1M model whose reward 3e-4 doubles: 6e-4 and 1e-3 take it to 0 within 75 steps.
    """

    lost: float = 0.5
    """Share of the best pass rate (mean of ``rounds`` rounds) that each of the last ``rounds`` rounds has lost."""
    least: float = 0.1
    """Smallest fall of the pass rate that counts: below it, a weak policy merely wavers."""
    growth: float = 1.2
    """Entropy or length above this multiple of their value at the best round is the signature of destruction."""
    rounds: int = 5
    noise: float = 4.0
    """The fall must exceed this many standard errors, estimated from the reward's own changes between rounds."""

    name = "collapse"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "lost", "least")

    def check(self, watch: Watch) -> Verdict:
        """``stop`` with the signature, ``warn`` without; held-out gold that did not fall says that the task got harder."""
        passed = pass_like(watch)
        if now(watch, "reward") is None or len(passed) < 2 * self.rounds:
            return unsure(self.name, watch, f"too early: {len(passed)} rounds with a reward")
        windows = [mean(passed[i : i + self.rounds]) for i in range(len(passed) - self.rounds + 1)]
        # the best of the last rounds, not their mean: a dip that heals is no collapse
        best, recent = max(windows), max(passed[-self.rounds :])
        fall = best - recent
        measured = {"pass_like": recent, "best": best}
        error = _noise(passed) * math.sqrt(2 / self.rounds)
        if fall < max(self.least, self.lost * best, self.noise * error):
            return healthy(self.name, watch, f"pass rate {recent:.2f}, best {best:.2f}", **measured)
        gold = series(watch, "canary_gold")
        if len(gold) > 1 and gold[-1] > (1 - self.lost / 2) * max(gold):
            reason = (
                f"reward fell ({best:.2f} to {recent:.2f}) but held-out gold did not: harder prompts, or its turn comes"
            )
            return unsure(self.name, watch, reason, **measured)
        since = len(passed) - self.rounds - windows.index(best)
        grown = [n for n in ("entropy", "length") if self._grown(watch, n, since)]
        what = f"the pass rate fell from {best:.2f} to {recent:.2f}"
        if grown:
            return alarm(self.name, watch, "stop", f"{what} while {' and '.join(grown)} rose: a collapse", measured)
        return alarm(self.name, watch, "warn", what, measured)

    def _grown(self, watch: Watch, name: str, since: int) -> bool:
        """Whether a metric is higher than in the window of the best reward, which began ``since`` + rounds rounds ago."""
        values = [value for value, _ in pairs(watch, name, "reward")]
        if len(values) < since + self.rounds:
            return False
        then = mean(values[len(values) - since - self.rounds : len(values) - since])
        return last(values, self.rounds) > self.growth * then


def _noise(values: list[float]) -> float:
    """Standard deviation of one round's value around a smooth trend: from successive differences (von Neumann 1941)."""
    steps = [(b - a) ** 2 for a, b in pairwise(values)]
    return math.sqrt(mean(steps) / 2)
