"""Numbers that are none: a loss, gradient or reward that is NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, unsure
from triloop.records import Verdict

__all__ = ["Finite"]


@dataclass(frozen=True, kw_only=True)
class Finite:
    """One NaN in the weights is the end of a policy; no other guard can read it."""

    watched: tuple[str, ...] = ("loss", "grad_norm", "reward", "entropy", "kl")

    name = "finite"

    def check(self, watch: Watch) -> Verdict:
        """``stop`` at once."""
        metrics: Mapping[str, object] = watch.metrics  # from a stored run: anything that JSON can hold
        values = {n: metrics[n] for n in self.watched if metrics.get(n) is not None}
        broken = [f"{n} is {v}" for n, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        if broken:
            return alarm(self.name, watch, "stop", ", ".join(broken), {})
        if not values:
            return unsure(self.name, watch, "nothing was measured this round")
        return healthy(self.name, watch, "all numbers are finite")
