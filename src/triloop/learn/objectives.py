"""Losses per token: pure, unreduced, zero where the mask is false. Log-probabilities in nats.

All tensors stand over the completion's positions, right-padded: row b is a completion, column t its token t. ``mask`` is
true where the policy chose the token. Whatever stands elsewhere, NaN included, reaches neither value nor gradient:
each input passes ``torch.where`` first, for a NaN that is multiplied by zero afterwards is still a NaN.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "clip_active",
    "clipped_surrogate",
    "entropy_bonus",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "negative_log_likelihood",
    "nft",
    "per_token",
    "reinforce",
    "sequence_clipped_surrogate",
    "sequence_log_ratio",
    "token_log_ratio",
    "truncated_importance_weight",
    "value_loss",
]

# exp(20) = 4.9e8: no honest ratio comes near, and a broken one must not become inf, for inf * 0 is NaN.
MAX_LOG_RATIO = 20.0


def per_token(advantage: Float[Tensor, " batch"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """One advantage per completion, given to each of its tokens; zero where ``mask`` is false."""
    return torch.where(mask, advantage[:, None], 0.0)


def token_log_ratio(
    logp: Float[Tensor, "batch time"], logp_old: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """log p(token) - log p_old(token) in nats, held within 20 nats; zero where ``mask`` is false."""
    ratio = torch.where(mask, logp, 0.0) - torch.where(mask, logp_old, 0.0)
    return ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def sequence_log_ratio(
    logp: Float[Tensor, "batch time"], logp_old: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """GSPO-token's log ratio: the value is the completion's mean, the gradient is the token's own.

        log s_bt = sg[ mean_t (logp - logp_old) ] + logp_bt - sg[ logp_bt ]

    GSPO, arXiv:2507.18071 eq. 7 and 14. Zero where ``mask`` is false.
    """
    ratio = torch.where(mask, logp, 0.0) - torch.where(mask, logp_old, 0.0)
    mean_B = ratio.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    mean_B = mean_B.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.where(mask, mean_B[:, None] + ratio - ratio.detach(), 0.0)


def negative_log_likelihood(
    logp: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """l_bt = -log p(y_bt | y_b<t, x_b): supervised learning."""
    return -torch.where(mask, logp, 0.0)


def reinforce(
    logp: Float[Tensor, "batch time"], advantage: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """l_bt = -A_bt log p(y_bt). REINFORCE (Williams 1992); with A in {0, 1} the M-step of ReST-EM, arXiv:2312.06585."""
    return -torch.where(mask, advantage, 0.0) * torch.where(mask, logp, 0.0)


def clipped_surrogate(
    logp: Float[Tensor, "batch time"],
    logp_old: Float[Tensor, "batch time"],
    advantage: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Float[Tensor, "batch time"]:
    """Clipped surrogate with each token's own ratio.

        l_bt = -min(r_bt A_bt, clip(r_bt, 1 - clip_low, 1 + clip_high) A_bt),      r = exp(logp - logp_old)

    PPO, arXiv:1707.06347 eq. 7; ``clip_high > clip_low`` is DAPO's clip-higher, arXiv:2503.14476. ``dual_clip`` = c > 1
    also bounds it from above where A < 0: l_bt <= -c A_bt, arXiv:1912.09729 (dual-clip PPO).
    """
    log_ratio = token_log_ratio(logp, logp_old, mask)
    return _clipped(log_ratio, torch.where(mask, advantage, 0.0), clip_low, clip_high, dual_clip)


def sequence_clipped_surrogate(
    logp: Float[Tensor, "batch time"],
    logp_old: Float[Tensor, "batch time"],
    advantage: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    dual_clip: float | None = None,
) -> Float[Tensor, "batch time"]:
    """Clipped surrogate with the completion's ratio, in its token form.

        l_bt = -min(s_bt A_bt, clip(s_bt, 1 - clip_low, 1 + clip_high) A_bt),      s = exp(sequence_log_ratio)

    GSPO-token, arXiv:2507.18071 eq. 13. With one advantage per completion and ``sequence_mean``, value and gradient are
    those of GSPO (eq. 5). Ratios of means lie near 1, hence clip ranges a thousand times tighter than per token.
    """
    log_ratio = sequence_log_ratio(logp, logp_old, mask)
    return _clipped(log_ratio, torch.where(mask, advantage, 0.0), clip_low, clip_high, dual_clip)


def _clipped(
    log_ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> Tensor:
    """The pessimistic bound itself; zero where ``advantage`` is."""
    ratio = log_ratio.exp()
    bound = torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage)
    if dual_clip is not None:
        bound = torch.where(advantage < 0, torch.maximum(bound, dual_clip * advantage), bound)
    return -bound


def clip_active(
    log_ratio: Float[Tensor, "batch time"],
    advantage: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    clip_low: float,
    clip_high: float,
) -> Bool[Tensor, "batch time"]:
    """Where the clip takes the gradient away: the ratio is past the side that the advantage pushes it to."""
    ratio = torch.where(mask, log_ratio, 0.0).exp()
    above = (ratio > 1.0 + clip_high) & (advantage > 0)
    below = (ratio < 1.0 - clip_low) & (advantage < 0)
    return mask & (above | below)


def nft(
    logp: Float[Tensor, "batch time"],
    logp_old: Float[Tensor, "batch time"],
    positive: Bool[Tensor, " batch"],
    success: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch time"],
    *,
    weight: Literal["normalised", "centred"] = "centred",
    eps: float = 1.0,
    negative_weight: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Negative-aware fine-tuning: likelihood of right answers, and of wrong ones under the implied negative policy.

        right:  l_bt = -w(q) log R_bt                                   R = exp(logp - logp_old)
        wrong:  l_bt = -w(q) log max_v((1 - q R_bt) / (1 - q), eps)     q = ``success``, the prompt's share of right answers
        w(q) = sqrt((1 - q) / q)  (``normalised``)   or   1 - q  (``centred``)

    max_v is a maximum in value whose gradient passes through. Zero for prompts with q = 0 or 1, which teach nothing here.
    On policy (R = 1) the gradient is that of GRPO with A = (r - q) / sqrt(q (1 - q)), or of Dr. GRPO with A = r - q,
    for r in {0, 1}. ``negative_weight`` scales the wrong answers' loss. arXiv:2505.18116, sections 3 and 4; eps = 1 and
    ``centred`` are the authors' published settings.
    """
    log_ratio = token_log_ratio(logp, logp_old, mask)
    teaches = (success > 0) & (success < 1)
    q = torch.where(teaches, success, 0.5)[:, None]
    w = ((1 - q) / q).sqrt() if weight == "normalised" else 1 - q
    implied = (1 - q * log_ratio.exp()) / (1 - q)
    bounded = implied + (implied.clamp(min=eps) - implied).detach()
    loss = torch.where(positive[:, None], -log_ratio, -negative_weight * bounded.log())
    return torch.where(mask & teaches[:, None], w * loss, 0.0)


def kl_k1(
    logp: Float[Tensor, "batch time"], logp_ref: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """k1 = log p - log q: unbiased for KL(p || q) under samples of p, high variance, may be negative. Nats.

    Schulman, "Approximating KL divergence" (2020). A reward, never a loss: its expected gradient is zero.
    """
    return torch.where(mask, logp, 0.0) - torch.where(mask, logp_ref, 0.0)


def kl_k2(
    logp: Float[Tensor, "batch time"], logp_ref: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """k2 = (log p - log q)^2 / 2: biased in value; as a loss on policy, its expected gradient is exactly that of the KL.

    Schulman (2020). Nats.
    """
    return 0.5 * kl_k1(logp, logp_ref, mask).square()


def kl_k3(
    logp: Float[Tensor, "batch time"], logp_ref: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """k3 = q/p - 1 - log(q/p): unbiased for KL(p || q) under samples of p, and never negative. Nats.

    Schulman (2020); GRPO, arXiv:2402.03300 eq. 4. As a loss on policy, its expected gradient is that of KL(q || p).
    """
    log_ratio = token_log_ratio(logp_ref, logp, mask)
    return log_ratio.expm1() - log_ratio


def entropy_bonus(
    entropy: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """l_bt = -H_bt: minimising it raises the entropy of the next-token distribution. Nats."""
    return -torch.where(mask, entropy, 0.0)


def value_loss(
    values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    values_old: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    clip: float = 0.0,
) -> Float[Tensor, "batch time"]:
    """l_bt = max((V - G)^2, (clip(V, V_old - clip, V_old + clip) - G)^2) / 2; plain half square when ``clip`` is 0.

    PPO, arXiv:1707.06347 eq. 9, with the clipping of its published code. Units: reward squared.
    """
    v, g = torch.where(mask, values, 0.0), torch.where(mask, returns, 0.0)
    error = (v - g).square()
    if clip > 0:
        old = torch.where(mask, values_old, 0.0)
        error = torch.maximum(error, (old + (v - old).clamp(-clip, clip) - g).square())
    return 0.5 * error


def truncated_importance_weight(
    logp_learner: Float[Tensor, "batch time"],
    logp_sampler: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    cap: float,
) -> Float[Tensor, "batch time"]:
    """w_bt = min(p_learner / p_sampler, cap), without gradient; zero where ``mask`` is false.

    Corrects for a sampler that computes the same weights' probabilities differently (another kernel, precision or
    quantisation); multiplies the surrogate. Truncated importance sampling (Ionides 2008).
    """
    return torch.where(mask, token_log_ratio(logp_learner, logp_sampler, mask).exp().clamp(max=cap), 0.0).detach()
