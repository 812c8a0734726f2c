"""Who gets the credit: rewards in, advantages out. No gradient flows through here.

Group functions take the rewards of ``group`` completions for each of ``prompts`` prompts. Where ``valid`` is false the
judgement failed: that entry gets advantage 0 and enters no mean, no spread and no count; its reward may be NaN. Where a
mean is subtracted and all rewards under it are equal, the advantage is exactly 0, not the mean's rounding error, so that
callers may skip the group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from triloop.errors import ConfigError

__all__ = [
    "GroupAdvantage",
    "abstention_threshold",
    "gae",
    "group_centred",
    "group_normalised",
    "has_spread",
    "leave_one_out",
    "overlong_penalty",
    "plain",
    "success_rate",
    "ternary_reward",
    "whiten",
]

GroupAdvantage = Callable[[Tensor, Tensor], Tensor]
"""(rewards [prompts group], valid [prompts group]) -> advantages [prompts group]."""


def has_spread(
    rewards: Float[Tensor, "prompts group"], valid: Bool[Tensor, "prompts group"]
) -> Bool[Tensor, " prompts"]:
    """Whether a group has two valid rewards that differ: without, group methods learn nothing from it."""
    if rewards.shape[1] == 0:
        return torch.zeros(rewards.shape[0], dtype=torch.bool, device=rewards.device)
    high = torch.where(valid, rewards, -math.inf).amax(dim=1)
    low = torch.where(valid, rewards, math.inf).amin(dim=1)
    return high > low


def success_rate(
    positive: Bool[Tensor, "prompts group"], valid: Bool[Tensor, "prompts group"]
) -> Float[Tensor, " prompts"]:
    """Share of the valid completions of a prompt that are positive; 0 when none is valid."""
    return (positive & valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def plain(
    rewards: Float[Tensor, "prompts group"],
    valid: Bool[Tensor, "prompts group"],
    *,
    baseline: Literal["none", "batch"] = "none",
) -> Float[Tensor, "prompts group"]:
    """A_ij = r_ij - b, with b = 0 or the mean of all valid rewards of the batch. REINFORCE (Williams 1992)."""
    rewards = torch.where(valid, rewards, 0.0)
    if baseline == "none":
        return rewards
    mean = rewards.sum() / valid.sum().clamp(min=1)
    spread = has_spread(rewards.reshape(1, -1), valid.reshape(1, -1))
    return torch.where(valid & spread, rewards - mean, 0.0)


def group_centred(
    rewards: Float[Tensor, "prompts group"], valid: Bool[Tensor, "prompts group"]
) -> Float[Tensor, "prompts group"]:
    """A_ij = r_ij - mean_i. Dr. GRPO, arXiv:2503.20783 section 3.2."""
    rewards = torch.where(valid, rewards, 0.0)
    mean = rewards.sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(valid & has_spread(rewards, valid)[:, None], rewards - mean, 0.0)


def leave_one_out(
    rewards: Float[Tensor, "prompts group"], valid: Bool[Tensor, "prompts group"]
) -> Float[Tensor, "prompts group"]:
    """A_ij = r_ij - mean of the other rewards of the group = n / (n - 1) (r_ij - mean_i), n the valid ones.

    RLOO, arXiv:2402.14740. Zero for a group of one: it has no others to compare with.
    """
    n = valid.sum(dim=1, keepdim=True)
    return group_centred(rewards, valid) * (n / (n - 1).clamp(min=1))


def group_normalised(
    rewards: Float[Tensor, "prompts group"],
    valid: Bool[Tensor, "prompts group"],
    *,
    eps: float = 1e-6,
    sample_std: bool = False,
) -> Float[Tensor, "prompts group"]:
    """A_ij = (r_ij - mean_i) / (std_i + eps). GRPO, arXiv:2402.03300 section 4.1.2.

    The paper does not say which standard deviation. The default divides by n: advantages then have mean square 1 in
    every group, and NFT is GRPO on policy. ``sample_std`` divides by n - 1, as TRL does (with eps = 1e-4); the two
    differ by the factor sqrt(n / (n - 1)) alone.
    """
    centred = group_centred(rewards, valid)
    n = valid.sum(dim=1, keepdim=True) - (1 if sample_std else 0)
    variance = centred.square().sum(dim=1, keepdim=True) / n.clamp(min=1)
    spread = has_spread(rewards, valid)[:, None]
    return torch.where(spread, centred / (torch.where(spread, variance, 1.0).sqrt() + eps), 0.0)


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
    """Advantages and returns per token by generalised advantage estimation.

        delta_t = r_t + gamma V_t+1 - V_t,      A_t = delta_t + gamma lam A_t+1,      G_t = A_t + V_t

    arXiv:1506.02438 eq. 16. t+1 is the row's next token with ``mask``: what an environment inserted in between is no
    decision and takes no discount. After the last token the value is 0. Both results are zero where ``mask`` is false.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantage = torch.zeros_like(rewards)
    next_value = rewards.new_zeros(rewards.shape[0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        now = delta + gamma * lam * next_advantage
        advantage[:, t] = torch.where(mask[:, t], now, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], now, next_advantage)
    return advantage, advantage + values


def whiten(
    advantage: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], *, eps: float = 1e-6
) -> Float[Tensor, "batch time"]:
    """Shifts and scales the advantages under ``mask`` to mean 0 and standard deviation 1 (over n); zero elsewhere."""
    advantage = torch.where(mask, advantage, 0.0)
    n = mask.sum().clamp(min=1)
    centred = torch.where(mask, advantage - advantage.sum() / n, 0.0)
    return centred / ((centred.square().sum() / n).sqrt() + eps)


def overlong_penalty(lengths: Int[Tensor, " batch"], max_tokens: int, buffer: int) -> Float[Tensor, " batch"]:
    """Soft punishment of length, to be added to the reward; lengths in tokens.

        0                                          length <= max_tokens - buffer
        (max_tokens - buffer - length) / buffer    up to max_tokens
        -1                                         beyond

    DAPO, arXiv:2503.14476 eq. 13. ``ConfigError`` unless 0 < buffer <= max_tokens.
    """
    if not 0 < buffer <= max_tokens:
        raise ConfigError(f"overlong_buffer={buffer}: expected 1 to max_tokens={max_tokens} (0 switches it off)")
    return ((max_tokens - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def ternary_reward(value: float | int, abstain_value: float | int = 0.0) -> float:
    """Reward of a judgement in [-1, 1]: exactly 0, *abstained*, earns ``abstain_value``; the rest stays as it is.

    TruthRL, arXiv:2509.25760. ``ConfigError`` unless abstain_value lies in [-1, 1].
    """
    abstention_threshold(abstain_value)
    return float(abstain_value if value == 0 else value)


def abstention_threshold(abstain_value: float | int) -> float:
    """Chance p of being right above which answering pays more than abstaining.

    Answering earns p (+1) + (1 - p)(-1) = 2p - 1 on average, abstaining v: answering pays when p > (1 + v) / 2. At
    v = -1 always, at v = 0 above one half, at v = 1 never.
    """
    if not -1.0 <= abstain_value <= 1.0:
        raise ConfigError(f"abstain_value={abstain_value!r}: expected a reward between -1 (wrong) and 1 (right)")
    return (1.0 + abstain_value) / 2.0
