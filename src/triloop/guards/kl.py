"""How far the policy has moved: a soft and a hard ceiling on KL(policy || original) per token."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, last, now, positive, series, unsure
from triloop.records import Verdict

__all__ = ["KLCeiling"]


@dataclass(frozen=True, kw_only=True)
class KLCeiling:
    """Gold reward peaks at some distance from the original and falls beyond it (Gao et al., arXiv:2210.10760).

    Where the peak lies depends on the task, so the soft ceiling only asks for smaller steps.
    """

    soft: float = 1.0
    """Nats per token, mean of ``rounds`` rounds. Exact-answer tasks that go from a third right to nearly all reach 0.3."""
    hard: float = 3.0
    """Nats per token: on average a token that the original gives one chance in twenty. Every one of ``rounds`` rounds."""
    rounds: int = 3

    name = "kl"

    def __post_init__(self) -> None:
        positive(self)
        if self.soft > self.hard:
            raise ConfigError(f"the soft KL ceiling must not exceed the hard one; got {self.soft} and {self.hard}")

    def check(self, watch: Watch) -> Verdict:
        """``stop`` above the hard ceiling, ``tighten`` above the soft one."""
        if now(watch, "kl") is None:
            return unsure(self.name, watch, "KL was not measured this round")
        values = series(watch, "kl")
        if len(values) < self.rounds:
            return unsure(self.name, watch, f"{len(values)} of {self.rounds} rounds seen", kl=values[-1])
        recent = last(values, self.rounds)
        if min(values[-self.rounds :]) > self.hard:
            reason = f"KL to the original stays above {self.hard:g} nats a token ({recent:.2f})"
            return alarm(self.name, watch, "stop", reason, {"kl": recent})
        if recent > self.soft:
            reason = f"KL to the original is {recent:.2f} nats a token, above {self.soft:g}"
            return alarm(self.name, watch, "tighten", reason, {"kl": recent})
        return healthy(self.name, watch, f"KL to the original is {recent:.3f} nats a token", kl=recent)
