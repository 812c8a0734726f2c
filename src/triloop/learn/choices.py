"""What a run may choose about learning, as plain data. Nothing here imports torch, so ``--help`` stays quick."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from triloop.errors import ConfigError

__all__ = [
    "AlgorithmConfig",
    "AlgorithmName",
    "KlEstimator",
    "KlIn",
    "NftWeight",
    "OptimConfig",
    "Ratio",
    "Schedule",
    "check_fields",
    "closest",
    "set_fields",
]

AlgorithmName = Literal["reinforce", "rloo", "ppo", "grpo", "dr_grpo", "dapo", "gspo", "nft", "rest_em"]
KlEstimator = Literal["k1", "k2", "k3"]
KlIn = Literal["loss", "reward"]
NftWeight = Literal["normalised", "centred"]
Ratio = Literal["token", "sequence"]
Schedule = Literal["constant", "linear", "cosine"]

# Inclusive bounds. A ratio of exactly 0 (clip_low = 1) is the loosest clip there is; PPO has no use for more.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "clip_low": (0.0, 1.0),
    "clip_high": (0.0, math.inf),
    "dual_clip": (1.0, math.inf),
    "kl_coef": (0.0, math.inf),
    "entropy_coef": (0.0, math.inf),
    "value_coef": (0.0, math.inf),
    "value_clip": (0.0, math.inf),
    "gamma": (0.0, 1.0),
    "lam": (0.0, 1.0),
    "overlong_buffer": (0, math.inf),
    "success_above": (-math.inf, math.inf),
    "updates_per_round": (1, math.inf),
    "minibatches": (1, math.inf),
    "negative_weight": (0.0, math.inf),
    "positives_per_prompt": (0, math.inf),
    "importance_cap": (0.0, math.inf),
    "nft_eps": (1e-6, 1.0),
    "lr": (0.0, math.inf),
    "warmup_steps": (0, math.inf),
    "lr_floor": (0.0, 1.0),
    "eps": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "max_grad_norm": (0.0, math.inf),
}
_LITERALS: Mapping[str, tuple[str, ...]] = {
    "name": get_args(AlgorithmName),
    "ratio": get_args(Ratio),
    "kl_estimator": get_args(KlEstimator),
    "kl_in": get_args(KlIn),
    "nft_weight": get_args(NftWeight),
    "schedule": get_args(Schedule),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmConfig:
    """Which algorithm, and what to change in it. ``None`` keeps the algorithm's own value (``learn/algorithms.py``)."""

    name: AlgorithmName = "dapo"
    """A row of the table of algorithms."""
    ratio: Ratio | None = None
    """Probability ratio of each token (PPO, GRPO), or of the whole completion, length-normalised (GSPO)."""
    clip_low: float | None = None
    """No gradient pushes a ratio further below 1 - clip_low."""
    clip_high: float | None = None
    """No gradient pushes a ratio further above 1 + clip_high."""
    dual_clip: float | None = None
    """Largest ratio that a negative advantage may be multiplied with; off when the algorithm names none."""
    kl_coef: float | None = None
    """Weight of KL(policy || reference), per token in nats. 0 needs no reference."""
    kl_estimator: KlEstimator | None = None
    """k1 = log p - log q, k2 = its half square, k3 = q/p - 1 - log(q/p). As a loss, k1 has no gradient on average."""
    kl_in: KlIn | None = None
    """Where the KL term enters: as a loss, or subtracted from the reward before advantages are taken."""
    entropy_coef: float | None = None
    """Weight of the entropy bonus, per token in nats."""
    value_coef: float | None = None
    """Weight of the value head's loss. Only for algorithms with a value head."""
    value_clip: float | None = None
    """How far a value may move from its old one within one round before its loss stops pulling; 0 is no limit."""
    gamma: float | None = None
    """Discount per token of generalised advantage estimation."""
    lam: float | None = None
    """Trace decay per token of generalised advantage estimation."""
    whiten: bool | None = None
    """Give the token advantages of the round mean 0 and standard deviation 1. Only with a value head."""
    dynamic_sampling: bool | None = None
    """Leave groups without signal out of the normaliser too, as if they had never been drawn (DAPO eq. 11)."""
    success_above: float | None = None
    """A completion is positive when its reward is above this. Only for algorithms that learn from success alone."""
    positives_per_prompt: int | None = None
    """Expert iteration keeps at most so many positives of one prompt, so that easy prompts do not crowd out hard
    ones; 0 keeps all."""
    nft_weight: NftWeight | None = None
    """NFT's weight of a prompt with success rate r: sqrt((1-r)/r) (on policy: GRPO) or 1-r (on policy: Dr. GRPO)."""
    nft_eps: float | None = None
    """NFT's floor of the implicit negative policy's ratio."""
    negative_weight: float | None = None
    """Factor on negative advantages; below 1, bad completions push less than good ones pull."""
    overlong_buffer: int | None = None
    """Over the last so many tokens before the limit, a penalty grows from 0 to 1 (DAPO eq. 13); 0 is off."""
    importance_cap: float | None = None
    """Where the learner recomputes the sampler's log-probabilities: cap of the correcting weight; 0 is no correction."""
    updates_per_round: int | None = None
    """Passes over the samples of a round."""
    minibatches: int | None = None
    """Optimiser steps per pass."""

    def __post_init__(self) -> None:
        check_fields(self, _BOUNDS, _LITERALS)

    def overrides(self) -> dict[str, Any]:
        """The fields that were set, without the name; whole numbers that stand for real ones become real."""
        return set_fields(self, _BOUNDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 3e-4
    """Peak learning rate. Policies of 0.2M to 3M parameters: 2e-4 to 4e-4; 1e-3 destroyed each one it was tried on."""
    warmup_steps: int = 20
    """Optimiser steps of the linear ramp at the start."""
    schedule: Schedule = "constant"
    """Shape after the ramp."""
    lr_floor: float = 0.0
    """Share of the peak at which ``linear`` and ``cosine`` end."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's first and second moment. At 0.95 the second follows the noise of single rounds, and policies that
    0.999 improves get worse (docs/log.md)."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; biases, norms and other vectors are never decayed."""
    max_grad_norm: float = 1.0
    """Longer gradients are scaled down to this; 0 is no limit."""

    def __post_init__(self) -> None:
        check_fields(self, _BOUNDS, _LITERALS)
        if len(tuple(self.betas)) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"betas={self.betas!r}: expected two numbers in [0, 1), such as (0.9, 0.95)")


def set_fields(config: Any, bounds: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """What was set in a config whose fields are None unless set, without its name; reals where the bounds are reals."""
    given = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"}
    return {
        name: float(value) if isinstance(bounds.get(name, (0,))[0], float) else value
        for name, value in given.items()
        if value is not None
    }


def check_fields(
    config: Any, bounds: Mapping[str, tuple[float, float]], literals: Mapping[str, tuple[str, ...]]
) -> None:
    """Raises ``ConfigError`` for the first field outside its inclusive bounds or its choices; None is never wrong."""
    for f in fields(config):
        value = getattr(config, f.name)
        if value is None:
            continue
        if f.name in literals and value not in literals[f.name]:
            choices = literals[f.name]
            raise ConfigError(f"{f.name}={value!r}: expected one of {', '.join(choices)}{closest(value, choices)}")
        if f.name in bounds:
            low, high = bounds[f.name]
            wants_int = isinstance(low, int)
            number = isinstance(value, int if wants_int else (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high or math.isinf(value):
                kind = "a whole number" if wants_int else "a number"
                upper = f"at most {high}" if math.isfinite(high) else "finite"
                raise ConfigError(f"{f.name}={value!r}: expected {kind}, at least {low} and {upper}")


def closest(word: object, choices: tuple[str, ...]) -> str:
    """``; did you mean X?`` for the choice nearest to ``word``, or nothing when none is near."""
    near = difflib.get_close_matches(str(word), choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""
