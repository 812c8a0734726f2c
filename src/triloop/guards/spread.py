"""Groups without spread: every sample of a prompt earned the same, so the prompt teaches nothing."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, last, now, pass_like, positive, series, shares, unsure
from triloop.records import Verdict

__all__ = ["Spread"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """With reward near its top such groups mean *solved*; with reward low they mean that nothing can be learnt."""

    share: float = 0.9
    """Share of groups without spread, mean of ``rounds`` rounds, from which next to no gradient is left."""
    solved: float = 0.8
    """Pass rate from which that is what success looks like."""
    rounds: int = 5

    name = "spread"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "share", "solved")

    def check(self, watch: Watch) -> Verdict:
        """``note``: it wastes time and harms nothing."""
        if now(watch, "zero_std_share") is None:
            return unsure(self.name, watch, "groups without spread were not counted this round")
        values, passed = series(watch, "zero_std_share"), pass_like(watch)
        recent = last(values, self.rounds)
        if len(values) < self.rounds or not passed:
            return unsure(self.name, watch, f"too early: {len(values)} rounds seen", zero_std_share=recent)
        level = last(passed, self.rounds)
        measured = {"zero_std_share": recent, "pass_like": level}
        if recent < self.share:
            return healthy(self.name, watch, f"{1 - recent:.0%} of groups carry a gradient", **measured)
        if level >= self.solved:
            return healthy(self.name, watch, f"{recent:.0%} of groups agree because most are solved", **measured)
        reason = (
            f"{recent:.0%} of groups earn one and the same reward at a pass rate of {level:.2f}: next to nothing to "
            "learn from (try larger groups, a higher temperature, easier prompts)"
        )
        return alarm(self.name, watch, "note", reason, measured)
