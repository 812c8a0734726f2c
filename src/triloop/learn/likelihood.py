"""Losses on single completions: likelihood, its opposites, and ratings. Pure, unreduced; log-probabilities in nats.

Per token where a token can be blamed by itself ([batch time], zero where the mask is false), per completion where the whole
of it is judged ([batch]). What stands where the mask is false, NaN included, reaches neither value nor gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from triloop.learn.objectives import kl_k3

__all__ = [
    "at_last_token",
    "contrast",
    "kl_baseline",
    "kto",
    "likely",
    "log_complement",
    "pmpo",
    "reward_weight",
    "sequence_mean_logp",
    "sequence_sum",
    "unlikelihood",
]

_LARGEST_LOGP = -1e-6
"""log p of a token that counts as certain: its complement is 1e-6, and no logarithm becomes infinite."""


def sequence_sum(x: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """sum_t x_bt over ``mask``: of log-probabilities, log p(y_b | x_b)."""
    return torch.where(mask, x, 0.0).sum(dim=1)


def sequence_mean_logp(x: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """sum_t x_bt / n_b over the n_b tokens under ``mask``; 0 for a row without any."""
    return sequence_sum(x, mask) / mask.sum(dim=1).clamp(min=1)


def at_last_token(values: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, " batch"]:
    """The value at the last token under ``mask``: a reward model's score of the completion; 0 for a row without any.

    ``TokenOutputs.values`` are of the state that predicts a token, so this one has read all but the last: let completions
    that are to be scored end with an end-of-sequence token.
    """
    last = torch.where(mask, torch.arange(1, mask.shape[1] + 1), 0)
    is_last = mask & (last == last.cummax(dim=1).values[:, -1:])
    return torch.where(is_last, values, 0.0).sum(dim=1)


def log_complement(logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - exp(logp)) for logp <= 0, without cancellation; at least log(1e-6), where the gradient still passes."""
    held = logp + (logp.clamp(max=_LARGEST_LOGP) - logp).detach()
    near = held > -0.6931  # log 1/2: each form is exact on its own side, and sees nothing of the other
    by_difference = -torch.expm1(torch.where(near, held, -1.0))
    by_share = -torch.where(near, -1.0, held).exp()
    return torch.where(near, by_difference.log(), torch.log1p(by_share))


def likely(
    logp: Float[Tensor, "batch time"], weight: Float[Tensor, " batch"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time"]:
    """l_bt = -w_b log p(y_bt): likelihood, weighted by completion."""
    return -weight[:, None] * torch.where(mask, logp, 0.0)


def reward_weight(value: Float[Tensor, " batch"], *, temperature: float) -> Float[Tensor, " batch"]:
    """w_b = exp((v_b - 1) / T), in (0, 1]: the best value counts 1, and T -> 0 keeps nothing else.

    Reward-weighted regression (Peters and Schaal 2007; as an objective of pretraining arXiv:2302.08582 section 2), with
    the constant -1 so that no weight grows large.
    """
    return ((value - 1.0) / temperature).exp()


def unlikelihood(
    logp: Float[Tensor, "batch time"],
    value: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch time"],
    *,
    negative_weight: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Likelihood of what is good, unlikelihood of what is bad.

        l_bt = -v log p_bt                        v > 0
        l_bt = -negative_weight |v| log(1 - p_bt) v < 0
        l_bt = 0                                  v = 0, an abstention

    arXiv:1908.04319 section 5, with completions from outside as the negative candidates (arXiv:1911.03860).
    """
    logp = torch.where(mask, logp, -1.0)
    good, bad = value.clamp(min=0.0)[:, None], value.clamp(max=0.0)[:, None]
    return torch.where(mask, -good * logp + negative_weight * bad * log_complement(logp), 0.0)


def contrast(
    logp: Float[Tensor, "batch time"],
    alternatives: Float[Tensor, "batch time rank"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """CRINGE's loss on a token that should not have come: it against a token that the model finds likely.

        l_bt = E_j[ -log( exp s_j / (exp s_j + exp s_-) ) ],   j ~ softmax over the top k other tokens

    arXiv:2211.05826 section 3. Logits s enter as log p, for only differences count. The paper draws one j; here stands the
    expectation over the draw (the same for k = 1), so that the loss has no randomness of its own. The draw's probabilities
    carry no gradient, as in the paper; the gradient raises the other tokens. ``alternatives`` are their log-probabilities.
    """
    logp = torch.where(mask, logp, 0.0)
    alternatives = torch.where(mask[..., None], alternatives, 0.0)
    chance = alternatives.detach().softmax(dim=-1)
    return torch.where(mask, (chance * F.softplus(logp[..., None] - alternatives)).sum(dim=-1), 0.0)


def kto(
    log_ratio: Float[Tensor, " batch"],
    value: Float[Tensor, " batch"],
    *,
    baseline: float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Kahneman-Tversky optimisation: the value of a completion relative to the policy's drift z0 = ``baseline``.

        l_b = |v_b| lambda (1 - sigmoid(+-beta (h_b - z0))),      h = log p(y|x) - log p_ref(y|x)

    with + and ``desirable_weight`` for v > 0, - and ``undesirable_weight`` for v < 0. An abstention, v = 0, has no loss; it
    enters through z0 alone. arXiv:2402.01306 section 4.1.
    """
    sign = value.sign()
    weight = torch.where(value > 0, desirable_weight, undesirable_weight)
    return value.abs() * weight * torch.sigmoid(-beta * sign * (log_ratio - baseline))


@torch.no_grad()
def kl_baseline(
    logp: Float[Tensor, "batch time"], logp_ref: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, ""]:
    """KTO's z0 = max(0, mean_b sum_t (logp - logp_ref)), nats, over completions put to prompts that are not their own.

    arXiv:2402.01306 section 4.1. No gradient.
    """
    drift = sequence_sum(logp, mask) - sequence_sum(logp_ref, mask)
    return drift.sum().div(max(1, len(drift))).clamp(min=0.0)


def pmpo(
    logp: Float[Tensor, "batch time"],
    logp_ref: Float[Tensor, "batch time"],
    value: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch time"],
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Float[Tensor, "batch time"]:
    """Preference optimisation as inference: up with the accepted, down with the rejected, held at the reference.

        l_bt = -alpha max(v, 0) log p_bt + (1 - alpha) max(-v, 0) log p_bt + beta (r_bt - 1 - log r_bt),   r = p / p_ref

    arXiv:2410.04166 eq. 10. The last term is an unbiased and never negative estimate of KL(p_ref || p), gradient included,
    under completions that were drawn from the reference; every row has it, so an abstention (v = 0) holds and does no more.
    ``alpha=0`` learns from negatives alone. With each row counted once, beta > 1 - alpha bounds the loss of every rejected
    token: it rests at p = p_ref (1 - (1 - alpha) / beta) instead of falling for ever.
    """
    pull = (-alpha * value.clamp(min=0.0) + (1.0 - alpha) * (-value).clamp(min=0.0))[:, None]
    return pull * torch.where(mask, logp, 0.0) + beta * kl_k3(logp_ref, logp, mask)
