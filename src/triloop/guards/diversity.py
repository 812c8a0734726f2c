"""Diversity: many prompts, one text."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.guards.base import Watch
from triloop.guards.reading import (
    alarm,
    healthy,
    last,
    mean,
    now,
    pass_like,
    positive,
    rising,
    series,
    shares,
    start,
    unsure,
)
from triloop.records import Verdict

__all__ = ["Diversity"]


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """Exact-answer tasks are uniform by nature: compared with their own start, and only with a sign of harm.

    Harm is held-out gold below its best, or samples that the original model finds stranger than at the start. Uniform
    text with a reward that merely stands still is a note.
    """

    template_rise: float = 0.4
    """Uniform: the commonest template's share rose by this much."""
    distinct_share: float = 0.3
    """Uniform as well: distinct bigrams fell below this share of the first rounds'."""
    gold_fall: float = 0.15
    """Harm: held-out gold this far below its best, both as means of three measurements."""
    stranger: float = 1.3
    """Harm: perplexity under the original model above this multiple of the first rounds'."""
    solved: float = 0.8
    patience: int = 10
    """Rounds over which reward must have stood still for a note."""

    name = "diversity"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "template_rise", "distinct_share", "gold_fall", "solved")

    def check(self, watch: Watch) -> Verdict:
        """``warn`` with a sign of harm, ``note`` without progress."""
        if now(watch, "template_share") is None and now(watch, "distinct_2") is None:
            return unsure(self.name, watch, "diversity was not measured this round")
        template, distinct = series(watch, "template_share"), series(watch, "distinct_2")
        if max(len(template), len(distinct)) < 6:
            return unsure(self.name, watch, "too early: fewer than 6 rounds seen")
        rise = last(template, 3) - start(template, 3) if template else 0.0
        left = last(distinct, 3) / start(distinct, 3) if distinct and start(distinct, 3) > 0 else 1.0
        measured = {"template_rise": rise, "distinct_share": left}
        if rise <= self.template_rise and left >= self.distinct_share:
            return healthy(self.name, watch, "samples are about as diverse as at the start", **measured)
        what = f"samples grew alike: commonest template {rise:+.0%}, distinct bigrams {left:.0%} of the start"
        harm = self._harm(watch)
        if harm:
            return alarm(self.name, watch, "warn", f"{what}; {harm}", measured)
        passed = pass_like(watch)
        if passed and last(passed, 3) < self.solved and not rising(passed, self.patience, 0.01):
            return alarm(self.name, watch, "note", f"{what}; reward stands still", measured)
        return healthy(self.name, watch, f"{what}; no sign of harm", **measured)

    def _harm(self, watch: Watch) -> str:
        gold, strange = series(watch, "canary_gold"), series(watch, "ppl_original")
        best = max((mean(gold[i : i + 3]) for i in range(len(gold) - 2)), default=0.0)
        if len(gold) > 2 and last(gold, 3) < best - self.gold_fall:
            return f"held-out gold fell from {best:.2f} to {last(gold, 3):.2f}"
        if len(strange) > 5 and last(strange, 3) > self.stranger * start(strange, 3):
            return f"perplexity under the original rose from {start(strange, 3):.1f} to {last(strange, 3):.1f}"
        return ""
