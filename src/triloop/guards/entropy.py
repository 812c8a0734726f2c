"""Entropy of the policy: frozen on one answer before the task is solved, or falling apart into noise."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, last, now, pass_like, positive, rising, series, shares, start, unsure
from triloop.records import Verdict

__all__ = ["Entropy"]


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """A policy that solves its task has no entropy left, and that is health. Frozen short of it, it learns no more.

    Reward is bought with entropy, R = -a exp(H) + b (Cui et al., arXiv:2505.22617), so low entropy alone says nothing:
    the alarm needs a reward that stands still below ``solved``. Standing still does no harm, so the alarm is a note.
    """

    share: float = 0.25
    """Low is below this share of the first rounds' entropy, or below ``floor``."""
    floor: float = 0.02
    """Nats per token."""
    growth: float = 2.0
    """High is above this multiple of the first rounds' entropy and ``rise`` nats above it, while reward does not rise."""
    rise: float = 0.5
    solved: float = 0.8
    """Pass rate from which low entropy is what success looks like."""
    patience: int = 10
    """Rounds over which reward must have stood still, compared with as many before."""

    name = "entropy"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "share", "solved")
        if self.growth <= 1:
            raise ConfigError(f"entropy growth is a multiple above 1; got {self.growth}")

    def check(self, watch: Watch) -> Verdict:
        """``note`` when frozen, ``warn`` when noise grows and reward does not."""
        if now(watch, "entropy") is None:
            return unsure(self.name, watch, "entropy was not measured this round")
        values, passed = series(watch, "entropy"), pass_like(watch)
        if len(values) < 6 or not passed:
            return unsure(self.name, watch, "too early: fewer than 6 rounds seen", entropy=values[-1])
        first, recent = start(values, 3), last(values, 3)
        measured = {"entropy": recent, "start": first, "pass_like": last(passed, 3)}
        still = not rising(passed, self.patience, 0.01)
        # every one of five rounds: a bad step that heals is no explosion
        if still and min(values[-5:]) > max(self.growth * first, first + self.rise):
            reason = f"entropy grew from {first:.2f} to {recent:.2f} nats a token and reward does not rise"
            return alarm(self.name, watch, "warn", reason, measured)
        if recent >= max(self.share * first, self.floor):
            return healthy(self.name, watch, f"entropy {recent:.3f} nats a token, {first:.3f} at the start", **measured)
        if measured["pass_like"] >= self.solved:
            return healthy(self.name, watch, f"entropy {recent:.3f}: low because the task is nearly solved", **measured)
        if not still:
            return healthy(self.name, watch, f"entropy {recent:.3f} is low, and reward still rises", **measured)
        reason = (
            f"entropy fell from {first:.3f} to {recent:.3f} nats a token and reward stands still at a pass rate of "
            f"{measured['pass_like']:.2f}: the policy froze on one answer (try a lower rate, an entropy term, clip-higher)"
        )
        return alarm(self.name, watch, "note", reason, measured)
