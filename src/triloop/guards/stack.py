"""The guards of a run: thresholds, the one table that builds them, and what their verdicts together ask of the loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from triloop.errors import ConfigError
from triloop.guards.base import Guard, Watch
from triloop.guards.canary import Canary
from triloop.guards.collapse import Collapse
from triloop.guards.counter import Counter
from triloop.guards.diversity import Diversity
from triloop.guards.entropy import Entropy
from triloop.guards.failures import Failures
from triloop.guards.finite import Finite
from triloop.guards.fluency import Fluency
from triloop.guards.kl import KLCeiling
from triloop.guards.length import Length
from triloop.guards.samples import Samples
from triloop.guards.spread import Spread
from triloop.records import Verdict

if TYPE_CHECKING:
    from triloop.records import Action

__all__ = ["FAMILIES", "ORDER", "Decision", "GuardConfig", "build", "decide", "recent", "watch"]

FAMILIES = {
    "canary": "gap",
    "collapse": "collapse",
    "counter": "counter",
    "diversity": "diversity",
    "entropy": "entropy",
    "failures": "judge",
    "finite": "numbers",
    "fluency": "drift",
    "kl": "drift",
    "length": "length",
    "samples": "samples",
    "spread": "spread",
}
"""Guard -> what it watches. Two guards of one family see one thing twice; two families that alarm are two witnesses."""

ORDER: tuple[Action, ...] = ("none", "note", "warn", "screen", "tighten", "roll_back", "stop")
"""From the mildest action to the strongest."""

_SOFT = ("warn", "tighten")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Which guards watch a run, and where their limits lie."""

    off: tuple[str, ...] = ()
    """Guards not to use: canary, collapse, counter, diversity, entropy, failures, finite, fluency, kl, length, samples,
    spread."""
    kl_soft: float = KLCeiling.soft
    """KL to the original in nats per token above which the learning rate is halved each round, down to an eighth."""
    kl_hard: float = KLCeiling.hard
    """KL to the original in nats per token above which the run stops."""
    perplexity_soft: float = Fluency.soft
    """Multiple of the first rounds' perplexity under the original above which a warning is given."""
    perplexity_hard: float = Fluency.hard
    """Multiple of the first rounds' perplexity under the original above which the run stops."""
    gap_rise: float = Canary.rise
    """How far the judge's pass rate on the canary may move away from gold's before the run stops."""
    gap_z: float = Canary.z
    """Standard errors that such a move must have."""
    entropy_share: float = Entropy.share
    """Share of the first rounds' entropy below which the policy counts as frozen."""
    length_growth: float = Length.growth
    """Multiple of the first rounds' length above which completions must earn their growth."""
    reward_lost: float = Collapse.lost
    """Share of the best pass rate whose loss is a collapse."""
    counter_fall: float = Counter.fall
    """How far a counter-metric may fall while the reward rises before the run stops."""
    flat_share: float = Spread.share
    """Share of groups without spread from which nothing is left to learn."""
    template_rise: float = Diversity.template_rise
    """Rise of the commonest template's share that counts as uniform."""
    failures_soft: float = Failures.soft
    """Share of failed judgements above which a warning is given."""
    failures_hard: float = Failures.hard
    """Share of failed judgements above which the run stops."""
    window: int = 10
    """Rounds within which soft alarms of two families stop the run."""
    pair_stops: bool = True
    """Whether two such alarms stop the run at all."""
    hard_action: Literal["stop", "roll_back"] = "stop"
    """What a hard alarm asks for: the end, or going back to the checkpoint with the best gold."""
    max_rollbacks: int = 1
    """How often a run may go back before a hard alarm ends it after all."""
    preflight: bool = True
    """Whether the verifier must prove itself on right and wrong answers before the run starts."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.off) - FAMILIES.keys())
        if unknown:
            raise ConfigError(f"no guard is called {', '.join(unknown)}; the guards are {', '.join(sorted(FAMILIES))}")
        if self.window < 1 or self.max_rollbacks < 0:
            raise ConfigError(f"expected window >= 1 and max_rollbacks >= 0; got {self.window}, {self.max_rollbacks}")
        if self.hard_action not in ("stop", "roll_back"):
            raise ConfigError(f"hard_action is stop or roll_back; got {self.hard_action!r}")
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"the guard limit {f.name} must be a finite number; got {value}")
        build(self)  # each guard checks the limits that it is given


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the loop is asked to do after a round."""

    action: Action
    reason: str = ""
    """The alarms behind it, strongest first."""
    guards: tuple[str, ...] = ()
    """Who asked for it."""
    screened: tuple[str, ...] = ()
    """Completions to leave out of the update, whatever the action is."""
    samples: tuple[str, ...] = ()
    """Completions that show it."""


def build(config: GuardConfig) -> list[Guard]:
    """The guards of a configuration, in the order in which they are shown."""
    c = config
    table: list[Guard] = [
        Canary(rise=c.gap_rise, z=c.gap_z),
        Fluency(soft=c.perplexity_soft, hard=c.perplexity_hard),
        KLCeiling(soft=c.kl_soft, hard=c.kl_hard),
        Collapse(lost=c.reward_lost),
        Counter(fall=c.counter_fall),
        Entropy(share=c.entropy_share),
        Length(growth=c.length_growth),
        Spread(share=c.flat_share),
        Diversity(template_rise=c.template_rise),
        Samples(),
        Failures(soft=c.failures_soft, hard=c.failures_hard),
        Finite(),
    ]
    return [guard for guard in table if guard.name not in c.off]


def watch(guards: Sequence[Guard], seen: Watch) -> list[Verdict]:
    """Every guard's verdict on this round."""
    return [guard.check(seen) for guard in guards]


def recent(guards: Sequence[Guard], seen: Watch, rounds: int) -> list[Verdict]:
    """What the guards said in the ``rounds`` rounds before this one, read again from the history: guards keep no state.

    Newest first. Episodes of earlier rounds are not at hand, so alarms on single samples are not among them.
    """
    count = min(rounds, len(seen.history))
    past = [(k, seen.history[-k], seen.history[: len(seen.history) - k]) for k in range(1, count + 1)]
    return [
        v for k, now, before in past for v in watch(guards, Watch(round=seen.round - k, metrics=now, history=before))
    ]


def decide(verdicts: Sequence[Verdict], config: GuardConfig, *, earlier: Sequence[Verdict] = ()) -> Decision:
    """The strongest action that this round's verdicts ask for; ``earlier`` are those of the rounds before (``recent``).

    A hard alarm acts alone. Soft alarms (warn, tighten) of two families within ``config.window`` rounds, at least one of
    them now, stop the run: two witnesses who do not know of each other.
    """
    alarms = sorted((v for v in verdicts if v.value < 0), key=lambda v: -ORDER.index(v.action))
    if not alarms:
        return Decision(action="none")
    screened = tuple(dict.fromkeys(s for v in alarms if v.guard == "samples" for s in v.samples))
    action, by = alarms[0].action, [v for v in alarms if v.action == alarms[0].action]
    pair = _pair(alarms, earlier, config) if config.pair_stops and action not in ("stop", "roll_back") else []
    if pair:
        action, by = "stop", pair
    if action == "stop":
        action = config.hard_action
    return Decision(
        action=action,
        reason="; ".join(f"{v.guard}: {v.reason}" for v in by),
        guards=tuple(v.guard for v in by),
        screened=screened,
        samples=tuple(dict.fromkeys(s for v in by for s in v.samples)),
    )


def _pair(alarms: Sequence[Verdict], earlier: Sequence[Verdict], config: GuardConfig) -> list[Verdict]:
    """The newest soft alarm of each family in the window, when there are two families and one of them alarms now."""
    newest = max(v.round for v in alarms)
    soft = [v for v in alarms if v.action in _SOFT]
    before = [v for v in earlier if v.value < 0 and v.action in _SOFT and v.round > newest - config.window]
    families: dict[str, Verdict] = {}
    for v in (*soft, *sorted(before, key=lambda v: -v.round)):
        families.setdefault(FAMILIES.get(v.guard, v.guard), v)
    return list(families.values()) if soft and len(families) > 1 else []
