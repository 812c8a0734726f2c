"""What a run may choose about learning from judgements, as plain data. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from triloop.errors import ConfigError
from triloop.learn.choices import check_fields, set_fields

__all__ = ["MixtureConfig", "Normalise", "ObjectiveConfig", "ObjectiveName"]

ObjectiveName = Literal[
    "sft",
    "weighted_sft",
    "unlikelihood",
    "cringe",
    "kto",
    "pmpo",
    "pmpo_negative",
    "span_pg",
    "dpo",
    "cdpo",
    "robust_dpo",
    "ipo",
    "simpo",
    "orpo",
    "spin",
    "dpo_davidson",
    "dpo_rao_kupper",
    "pairwise_cringe",
    "reward_bt",
    "reward_davidson",
    "reward_rao_kupper",
    "reward_regression",
    "reward_ordinal",
]
Normalise = Literal["kinds", "examples"]

# Inclusive bounds. A label noise of one half says nothing; a tie threshold of 1 leaves no room for ties.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "coefficient": (0.0, math.inf),
    "beta": (0.0, math.inf),
    "label_smoothing": (0.0, 0.499),
    "margin": (0.0, math.inf),
    "nll_coef": (0.0, math.inf),
    "tie_nu": (1e-6, math.inf),
    "alpha": (0.0, 1.0),
    "desirable_weight": (0.0, math.inf),
    "undesirable_weight": (0.0, math.inf),
    "negative_weight": (0.0, math.inf),
    "alternatives": (1, math.inf),
    "gate_temperature": (1e-6, math.inf),
    "temperature": (1e-6, math.inf),
    "clip": (0.0, 1.0),
    "centring": (0.0, math.inf),
}
_LITERALS: Mapping[str, tuple[str, ...]] = {"name": get_args(ObjectiveName)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """Which objective, and what to change in it. ``None`` keeps its own value (``learn/objective_table.py``)."""

    name: ObjectiveName = "dpo"
    """A row of the table of objectives."""
    coefficient: float | None = None
    """Weight of this objective's loss in a mixture."""
    beta: float | None = None
    """How closely the policy is held to the reference: scale of log ratios (DPO, KTO), 1 / (2 target) (IPO), weight of the
    KL term (PMPO, spans). Where there is no reference, scale of the score (SimPO) or weight of the odds ratio (ORPO)."""
    label_smoothing: float | None = None
    """Share of preferences believed to be the wrong way round."""
    length_normalised: bool | None = None
    """Mean log-probability per token instead of the completion's sum."""
    margin: float | None = None
    """Lead that the better completion must have, on top of each example's own. Of pairwise CRINGE: where the gate closes,
    nats."""
    nll_coef: float | None = None
    """Weight of the better completion's negative log-likelihood per token, beside the loss on the pair."""
    tie_nu: float | None = None
    """How readily judges call a tie: between equals with probability nu / (1 + nu) (Davidson) or (nu - 1) / (nu + 1)
    (Rao-Kupper, ordinal; above 1)."""
    alpha: float | None = None
    """PMPO: weight of accepted completions; rejected ones have 1 - alpha."""
    balance: bool | None = None
    """Accepted and rejected completions count alike in sum, whatever their numbers."""
    desirable_weight: float | None = None
    """KTO: weight of positive values."""
    undesirable_weight: float | None = None
    """KTO: weight of negative values."""
    negative_weight: float | None = None
    """Weight of what pushes down, against 1 for what pulls up."""
    alternatives: int | None = None
    """CRINGE: how many of the most likely other tokens stand against a bad one."""
    gate_temperature: float | None = None
    """Pairwise CRINGE: nats over which the gate closes."""
    temperature: float | None = None
    """Reward-weighted likelihood: drop of the value by which a weight falls to 1/e."""
    clip: float | None = None
    """Spans: how far one batch may move a token's probability ratio from 1; 0 is no limit and needs no old policy."""
    centring: float | None = None
    """Reward models: weight of the squared sum of a pair's scores."""

    def __post_init__(self) -> None:
        check_fields(self, _BOUNDS, _LITERALS)

    def overrides(self) -> dict[str, Any]:
        """The fields that were set, without the name; whole numbers that stand for real ones become real."""
        return set_fields(self, _BOUNDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    """One objective for each kind of example that a batch may hold; None: that kind is not learned from."""

    demonstrations: ObjectiveConfig | None = None
    """Of completions to be imitated: revisions, edits, winners."""
    rated: ObjectiveConfig | None = None
    """Of completions with a value: +1, 0, -1, or between."""
    spans: ObjectiveConfig | None = None
    """Of completions with a sign per token."""
    pairs: ObjectiveConfig | None = None
    """Of preferences, ties among them."""
    normalise: Normalise = "kinds"
    """``kinds``: the loss is the sum of each kind's own mean times its coefficient, so that a kind with many examples does
    not drown one with few. ``examples``: every example weighs the same, times its kind's coefficient."""

    def __post_init__(self) -> None:
        check_fields(self, {}, {"normalise": get_args(Normalise)})
        if not any((self.demonstrations, self.rated, self.spans, self.pairs)):
            raise ConfigError("a mixture without an objective: expected one for demonstrations, rated, spans or pairs")
