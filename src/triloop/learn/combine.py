"""Several judgements of a completion made one reward: a verifier with a reward model, many criteria along one direction.

No gradient flows through here. Group functions take [prompts group], as those of ``credit`` do; where ``valid`` is false
the judgement failed, the entry gets 0 and enters no minimum, maximum or spread.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triloop.errors import ConfigError

__all__ = ["along", "spread_weight", "stratified"]


def stratified(
    right: Bool[Tensor, "prompts group"],
    scores: Float[Tensor, "prompts group"],
    valid: Bool[Tensor, "prompts group"],
    *,
    alpha: float = 0.1,
    beta: float = 0.1,
    eps: float = 1e-6,
) -> Float[Tensor, "prompts group"]:
    """A verifier's word first, a reward model's shades within it.

        wrong:  -alpha + 2 alpha u          u = (s - min) / (max - min + eps) over the prompt's completions
        right:  1 - beta + 2 beta u             that the verifier judged alike

    HERO's stratified normalisation, arXiv:2510.07242 section 3. With alpha + beta < 1 no score lifts a wrong completion
    above a right one (checked, ``ConfigError``). A stratum whose scores are all equal stands at its lower end.
    """
    if not (alpha >= 0 and beta >= 0 and alpha + beta < 1):
        raise ConfigError(f"alpha={alpha}, beta={beta}: expected both at least 0 and together below 1")
    unit = torch.where(right, _within(scores, right & valid, eps), _within(scores, ~right & valid, eps))
    reward = torch.where(right, 1.0 - beta + 2.0 * beta * unit, -alpha + 2.0 * alpha * unit)
    return torch.where(valid, reward, 0.0)


def _within(scores: Tensor, stratum: Tensor, eps: float) -> Tensor:
    """Scores of a stratum to [0, 1] by its least and largest; anything outside of the stratum."""
    low = torch.where(stratum, scores, math.inf).amin(dim=1, keepdim=True)
    high = torch.where(stratum, scores, -math.inf).amax(dim=1, keepdim=True)
    return torch.where(stratum, (scores - low) / (high - low + eps), 0.0)


def spread_weight(
    scores: Float[Tensor, "prompts group"],
    valid: Bool[Tensor, "prompts group"],
    *,
    mean_spread: float,
    low: float = 0.4,
    high: float = 3.0,
    steepness: float = 6.0,
) -> Float[Tensor, " prompts"]:
    """w = low + (high - low) / (1 + exp(-steepness (sigma - mean_spread))): prompts on which scores spread teach more.

    sigma is the standard deviation (over n) of the prompt's valid scores. HERO's variance-aware weight, arXiv:2510.07242
    section 3; ``mean_spread`` is a running mean of sigma, kept by the caller.
    """
    kept = torch.where(valid, scores, 0.0)
    n = valid.sum(dim=1, keepdim=True).clamp(min=1)
    centred = torch.where(valid, kept - kept.sum(dim=1, keepdim=True) / n, 0.0)
    sigma = (centred.square().sum(dim=1) / n[:, 0]).sqrt()
    return low + (high - low) * torch.sigmoid(steepness * (sigma - mean_spread))


def along(
    rewards: Float[Tensor, "*batch criteria"], direction: Float[Tensor, " criteria"], *, tolerance: float = 1e-3
) -> Float[Tensor, "*batch"]:
    """r = <rewards, v>: one reward of many criteria along a wished direction, which the prompt may state.

    Directional preference alignment, arXiv:2402.18571 section 3. ``ConfigError`` unless v has length 1: another length
    would change the reward's scale with the wish.
    """
    length = float(direction.norm())
    if abs(length - 1.0) > tolerance:
        raise ConfigError(f"a direction of length {length:.4g}: expected 1; divide it by its length")
    return rewards @ direction
