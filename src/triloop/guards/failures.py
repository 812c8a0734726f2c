"""The judge itself: how many of its judgements failed."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, last, now, positive, series, shares, unsure
from triloop.records import Verdict

__all__ = ["Failures"]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """A failed judgement carries no gradient, so a judge that fails on one kind of answer is a judge with a bias."""

    soft: float = 0.05
    """Share of failed judgements, mean of three rounds."""
    hard: float = 0.5
    """Share in this round."""

    name = "failures"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "soft", "hard")
        if self.soft > self.hard:
            raise ConfigError(f"the soft limit of failures must not exceed the hard one; got {self.soft}, {self.hard}")

    def check(self, watch: Watch) -> Verdict:
        """``stop`` above the hard share, ``warn`` above the soft one."""
        current = now(watch, "judge_failures")
        if current is None:
            return unsure(self.name, watch, "judgements were not counted this round")
        recent = last(series(watch, "judge_failures"), 3)
        measured = {"judge_failures": current, "recent": recent}
        failed = tuple(e.completion.id for e in watch.episodes if any(f.failed for f in e.feedback))[:5]
        why = next((f.failure for e in watch.episodes for f in e.feedback if f.failure), "")
        what = f"{current:.1%} of judgements failed" + (f", such as: {why[:200]}" if why else "")
        if current > self.hard:
            return alarm(self.name, watch, "stop", what, measured, failed)
        if recent > self.soft:
            return alarm(self.name, watch, "warn", what, measured, failed)
        return healthy(self.name, watch, what, **measured)
