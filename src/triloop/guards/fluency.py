"""Fluency: how strange the samples look to the model that the run began with."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.errors import ConfigError
from triloop.guards.base import Watch
from triloop.guards.reading import alarm, at_least, healthy, last, now, positive, series, start, unsure
from triloop.records import Verdict

__all__ = ["Fluency"]


@dataclass(frozen=True, kw_only=True)
class Fluency:
    """Where text turns into a list of the judge's favourite words, reward, length and entropy all look healthy; this does
    not. Perplexity of the round's samples under the original model, against the first rounds'."""

    soft: float = 1.3
    """Strange from this multiple of the first rounds' perplexity on."""
    hard: float = 1.6
    """Ruined from this multiple on, in each of ``rounds`` rounds in a row: 0.47 nats a token more than at the start."""
    rounds: int = 2
    floor: float = 2.0
    """First rounds below this perplexity count as this: fixed answer formats double theirs without harm to anyone."""
    base_rounds: int = 3
    """How many first rounds make the reference."""

    name = "fluency"

    def __post_init__(self) -> None:
        positive(self)
        at_least(self, 1, "soft", "floor")
        if self.soft > self.hard:
            raise ConfigError(f"the soft fluency limit must not exceed the hard one; got {self.soft} and {self.hard}")

    def check(self, watch: Watch) -> Verdict:
        """``stop`` above the hard multiple, ``warn`` above the soft one."""
        if now(watch, "ppl_original") is None:
            return unsure(self.name, watch, "perplexity under the original was not measured this round")
        values = series(watch, "ppl_original")
        if len(values) < self.base_rounds + self.rounds:
            return unsure(self.name, watch, f"too early: {len(values)} rounds seen", ppl_original=values[-1])
        base = max(self.floor, start(values, self.base_rounds))
        recent = last(values, self.rounds)
        measured = {"ppl_original": recent, "start": base, "ratio": recent / base}
        what = f"perplexity under the original is {recent:.2f}, {recent / base:.2f} times its start"
        if min(values[-self.rounds :]) > self.hard * base:
            return alarm(self.name, watch, "stop", f"{what}: the text is no longer what the model wrote", measured)
        if recent > self.soft * base:
            return alarm(self.name, watch, "warn", what, measured)
        return healthy(self.name, watch, what, **measured)
