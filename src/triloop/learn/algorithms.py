"""An algorithm is data: who gets credit, which loss, how it is averaged, and its coefficients. One table holds them all.

A new method that combines what is here is one row; one that needs new mathematics is a new pure function in
``objectives`` or ``credit``, and one row.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn import credit, objectives, reduction
from triloop.learn.batch import Batch
from triloop.learn.choices import AlgorithmConfig, KlEstimator, KlIn, NftWeight, Ratio, closest
from triloop.learn.reduction import Reduction

__all__ = ["ALGORITHMS", "Algorithm", "Surrogate", "clipped", "negative_aware", "resolve", "weighted_likelihood"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One policy-gradient or supervised method, complete. Coefficients are explained in ``choices.AlgorithmConfig``."""

    advantage: credit.GroupAdvantage | None
    """Credit of a whole completion from the rewards of its group. None: per token, from a value head (GAE)."""
    surrogate: Surrogate
    """Loss per token of a batch."""
    reduction: Reduction
    """How losses per token become one number."""
    on_success: bool = False
    """Rewards are read as success (1) or not (0) before credit is given."""
    positives_only: bool = False
    """Only completions with a positive advantage are trained on and counted, as if there had been no others."""

    ratio: Ratio = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    kl_coef: float = 0.0
    kl_estimator: KlEstimator = "k3"
    kl_in: KlIn = "loss"
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    value_clip: float = 0.2
    gamma: float = 1.0
    lam: float = 1.0
    whiten: bool = False
    dynamic_sampling: bool = False
    success_above: float = 0.0
    positives_per_prompt: int = 0
    nft_weight: NftWeight = "centred"
    nft_eps: float = 1.0
    negative_weight: float = 1.0
    overlong_buffer: int = 0
    importance_cap: float = 0.0
    updates_per_round: int = 1
    minibatches: int = 1

    @property
    def needs_values(self) -> bool:
        """Whether the policy must have a value head."""
        return self.advantage is None

    @property
    def needs_reference(self) -> bool:
        """Whether a batch must hold the reference's log-probabilities."""
        return self.kl_coef > 0

    @property
    def takes_old_samples(self) -> bool:
        """Whether samples of a slightly older policy are weighed right as they are. A clipped ratio per token is taken
        against the policy that drew the sample, NFT is defined by that policy, and expert iteration asks for no more than
        accepted samples. Without a ratio, or with GSPO's, whose range is narrower than one step, they are not."""
        if self.surrogate is clipped:
            return self.ratio == "token"
        return self.surrogate is negative_aware or self.positives_only

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss reads entropies, so that a forward pass must compute them with gradient."""
        return self.entropy_coef > 0

    @property
    def kl(self) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The estimator of the KL term: (logp, logp_ref, mask) -> [batch time]."""
        return {"k1": objectives.kl_k1, "k2": objectives.kl_k2, "k3": objectives.kl_k3}[self.kl_estimator]

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether a token's gradient is zero wherever its advantage is, so that such completions need no pass at all."""
        return not (self.needs_values or self.needs_entropy or (self.needs_reference and self.kl_in == "loss"))


Surrogate = Callable[[Tensor, Batch, Algorithm], Tensor]
"""(logp [batch time], batch, algorithm) -> losses [batch time]: picks what a pure objective needs from the batch."""


def clipped(logp: Float[Tensor, "batch time"], batch: Batch, algorithm: Algorithm) -> Float[Tensor, "batch time"]:
    """PPO's clipped surrogate, with ratios per token or per sequence."""
    per_sequence = algorithm.ratio == "sequence"
    objective = objectives.sequence_clipped_surrogate if per_sequence else objectives.clipped_surrogate
    return objective(
        logp,
        batch.logp_old,
        batch.advantage,
        batch.mask,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip,
    )


def weighted_likelihood(
    logp: Float[Tensor, "batch time"], batch: Batch, algorithm: Algorithm
) -> Float[Tensor, "batch time"]:
    """Log-likelihood weighted by the advantage: REINFORCE, and supervised learning on what was judged good."""
    return objectives.reinforce(logp, batch.advantage, batch.mask)


def negative_aware(
    logp: Float[Tensor, "batch time"], batch: Batch, algorithm: Algorithm
) -> Float[Tensor, "batch time"]:
    """NFT. The batch's advantage only says which rows teach anything; the loss reads successes and their share."""
    return objectives.nft(
        logp,
        batch.logp_old,
        batch.positive,
        batch.success,
        batch.mask,
        weight=algorithm.nft_weight,
        eps=algorithm.nft_eps,
        negative_weight=algorithm.negative_weight,
    )


# DAPO stands first because GRPO and its relatives are DAPO with fewer features.
_DAPO = Algorithm(
    advantage=credit.group_normalised,
    surrogate=clipped,
    reduction=reduction.token_mean,
    clip_low=0.2,
    clip_high=0.28,
    dynamic_sampling=True,
)
_GRPO = replace(_DAPO, reduction=reduction.sequence_mean, clip_high=0.2, dynamic_sampling=False)
_REINFORCE = Algorithm(
    advantage=partial(credit.plain, baseline="batch"), surrogate=weighted_likelihood, reduction=reduction.token_mean
)

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        # Williams 1992, with the batch's mean reward as baseline.
        "reinforce": _REINFORCE,
        # arXiv:2402.14740.
        "rloo": replace(_REINFORCE, advantage=credit.leave_one_out),
        # arXiv:1707.06347. gamma = lam = 1 is the usual choice for one reward at the end of a short text.
        "ppo": Algorithm(
            advantage=None,
            surrogate=clipped,
            reduction=reduction.token_mean,
            whiten=True,
            updates_per_round=2,
            minibatches=2,
        ),
        # arXiv:2402.03300 eq. 3. The paper adds kl_coef=0.04 (k3 in the loss); for exact verifiers none is the custom now.
        "grpo": _GRPO,
        # arXiv:2503.20783: neither the length nor the spread of a group changes a token's weight.
        "dr_grpo": replace(_GRPO, advantage=credit.group_centred, reduction=reduction.fixed_length),
        # arXiv:2503.14476. The overlong penalty depends on the task's limit: overlong_buffer switches it on.
        "dapo": _DAPO,
        # arXiv:2507.18071, clip range of its section 5.
        "gspo": replace(_GRPO, ratio="sequence", clip_low=3e-4, clip_high=4e-4),
        # arXiv:2505.18116.
        "nft": replace(_DAPO, advantage=credit.group_centred, surrogate=negative_aware, on_success=True),
        # arXiv:2312.06585: likelihood of the successes alone; the E-step is sampling.
        "rest_em": Algorithm(
            advantage=credit.plain,
            surrogate=weighted_likelihood,
            reduction=reduction.token_mean,
            on_success=True,
            positives_only=True,
        ),
    }
)


def resolve(config: AlgorithmConfig | str, **overrides: Any) -> Algorithm:
    """The algorithm of that name with its overrides.

    ``ConfigError`` for an unknown name or field (it names the closest one), a value out of bounds, or a combination that
    cannot learn. Warns of an override that this algorithm never reads.
    """
    if isinstance(config, str):
        config = AlgorithmConfig(name=config)  # type: ignore[arg-type]  # checked by the config itself
    known = tuple(f.name for f in fields(AlgorithmConfig) if f.name != "name")
    for field in overrides:
        if field not in known:
            raise ConfigError(
                f"algorithm field {field!r}: unknown{closest(field, known)} Known fields: {', '.join(known)}"
            )
    config = replace(config, **overrides)
    algorithm = replace(ALGORITHMS[config.name], **config.overrides())
    if algorithm.kl_coef > 0 and algorithm.kl_in == "loss" and algorithm.kl_estimator == "k1":
        raise ConfigError(
            "kl_estimator='k1' with kl_in='loss': its expected gradient is zero, so it would hold the policy nowhere. "
            "Use k2 or k3, or kl_in='reward'"
        )
    unread = [field for field in config.overrides() if not _reads(algorithm, field)]
    if unread:
        warnings.warn(f"{config.name} does not read: {', '.join(unread)}", stacklevel=2)
    return algorithm


def _reads(algorithm: Algorithm, field: str) -> bool:
    """Whether changing this field can change what this algorithm does."""
    clips = algorithm.surrogate is clipped
    needs: dict[str, bool] = {
        **dict.fromkeys(("ratio", "clip_low", "clip_high", "dual_clip"), clips),
        **dict.fromkeys(("kl_estimator", "kl_in"), algorithm.needs_reference),
        **dict.fromkeys(("value_coef", "value_clip", "gamma", "lam", "whiten"), algorithm.needs_values),
        **dict.fromkeys(("nft_weight", "nft_eps"), algorithm.surrogate is negative_aware),
        "success_above": algorithm.on_success,
        "positives_per_prompt": algorithm.positives_only,
        "negative_weight": not algorithm.positives_only,
        "dynamic_sampling": not algorithm.positives_only,
    }
    return needs.get(field, True)
