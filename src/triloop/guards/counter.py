"""Counter-metrics: what nobody pays for, and what must not be sold for pay."""

from __future__ import annotations

from dataclasses import dataclass

from triloop.guards.base import Watch
from triloop.guards.reading import alarm, healthy, last, now, number, pairs, positive, shares, start, unsure
from triloop.records import Verdict

__all__ = ["Counter"]

_PREFIX = "counter_"


@dataclass(frozen=True, kw_only=True)
class Counter:
    """Reactions and reward models are loved by what flatters them. Shares that stand for what is given up meanwhile (clean,
    plain, to the point) are measured beside the reward, and a policy that rises in the one by falling in the other is
    stopped. What reinforcement learning from users' reactions has to watch, arXiv:2505.14946.
    """

    fall: float = 0.1
    """How far a counter-metric must have fallen below its first rounds, while the reward rose."""
    rounds: int = 3
    """Rounds that are averaged at either end."""

    name = "counter"

    def __post_init__(self) -> None:
        positive(self)
        shares(self, "fall")

    def check(self, watch: Watch) -> Verdict:
        """``stop`` on a counter-metric that fell while the reward rose; one that fell with it is for other guards."""
        names = sorted(n for n in watch.metrics if n.startswith(_PREFIX) and number(watch.metrics, n) is not None)
        if not names or now(watch, "reward") is None:
            return unsure(self.name, watch, "no counter-metric is measured")
        fell, least, measured = "", self.fall, dict[str, float]()
        for name in names:
            both = pairs(watch, name, "reward")
            if len(both) < 2 * self.rounds:
                return unsure(self.name, watch, f"too early: {len(both)} rounds with counter-metrics")
            counts, rewards = [c for c, _ in both], [r for _, r in both]
            lost = start(counts, self.rounds) - last(counts, self.rounds)
            gained = last(rewards, self.rounds) - start(rewards, self.rounds)
            plain = name.removeprefix(_PREFIX)
            measured |= {plain: last(counts, self.rounds), f"{plain}_lost": lost, "reward_gained": gained}
            # this round alone, too: after going back, the rounds that were given up still stand in the history
            if gained > 0 and lost > least and start(counts, self.rounds) - counts[-1] > self.fall:
                first, recent = start(counts, self.rounds), last(counts, self.rounds)
                fell, least = (
                    f"{plain} fell from {first:.2f} to {recent:.2f} while the reward rose by {gained:.2f}",
                    lost,
                )
        if fell:
            return alarm(self.name, watch, "stop", fell, measured)
        return healthy(self.name, watch, "no counter-metric fell while the reward rose", **measured)
