"""Length: completions that grow into the limit without earning anything by it."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, last, now, pass_like, positive, rising, series, shares, start, unsure
from triloop.records import Verdict

__all__ = ["Length"]


@dataclass(frozen=True, kw_only=True)
class Length:
    """Longer answers that earn more are reasoning; longer ones that earn nothing are the loss's or the judge's bias."""

    growth: float = 2.0
    """Long is above this multiple of the first rounds' length."""
    truncated_rise: float = 0.3
    """Cut too often is this much more (as a share of completions) than in the first rounds."""
    earned: float = 0.05
    """Rise of the pass rate since the first rounds that pays for the growth."""
    patience: int = 5
    """Otherwise: rounds over which reward must not have risen, compared with as many before."""

    name = "length"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "truncated_rise", "earned")
        if self.growth <= 1:
            raise ConfigError(f"length growth is a multiple above 1; got {self.growth}")

    def check(self, watch: Watch) -> Verdict:
        """``warn`` when completions grow or are cut more often while reward does not rise."""
        if now(watch, "length") is None:
            return unsure(self.name, watch, "length was not measured this round")
        lengths, cut, passed = series(watch, "length"), series(watch, "truncated_share"), pass_like(watch)
        if len(lengths) < 2 * self.patience or len(passed) < 2 * self.patience:
            return unsure(self.name, watch, f"too early: {len(lengths)} rounds seen", length=lengths[-1])
        first, recent = start(lengths, 3), last(lengths, 3)
        more_cut = last(cut, 3) - start(cut, 3) if cut else 0.0
        measured = {"length": recent, "start": first, "truncated_rise": more_cut}
        # every one of the last rounds: a bad step that heals is no growth
        grown = min(lengths[-self.patience :]) > self.growth * first
        truncated = bool(cut) and min(cut[-self.patience :]) - start(cut, 3) > self.truncated_rise
        if not grown and not truncated:
            return healthy(self.name, watch, f"{recent:.1f} tokens, {first:.1f} at the start", **measured)
        what = f"completions grew from {first:.1f} to {recent:.1f} tokens, {more_cut:+.0%} cut at the limit"
        earned = last(passed, self.patience) - start(passed, 3)
        if earned > self.earned or rising(passed, self.patience, 0.01):
            return healthy(self.name, watch, f"{what}; reward rose with it", pass_like_rise=earned, **measured)
        return alarm(self.name, watch, "warn", f"{what}, and reward did not rise with it", measured)
