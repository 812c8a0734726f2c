"""Losses on pairs, as likelihoods of a judgement given a difference; pure, unreduced, symmetric under swapping the two.

The difference is the first completion's score minus the second's, ``[pairs]``: a difference of log-probability ratios (DPO
and its relatives), of mean log-probabilities (SimPO), of log odds (ORPO), or of a reward model's scalars (Bradley-Terry).
``p`` is the chance that the first is the better one, ``tie`` says that they were judged equal. Whatever the source of the
difference, swapping the two completions, p and 1 - p leaves each loss as it is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from triloop.learn.likelihood import log_complement

__all__ = [
    "centring",
    "cringe_gate",
    "davidson",
    "debiased",
    "log_odds",
    "logistic",
    "ordinal",
    "rao_kupper",
    "smoothed",
    "squared",
]


def logistic(
    difference: Float[Tensor, " pairs"], p: Float[Tensor, " pairs"], margin: Float[Tensor, " pairs"] | float = 0.0
) -> Float[Tensor, " pairs"]:
    """l = -p log sigmoid(d - m) - (1 - p) log sigmoid(-d - m), nats.

    With d = beta (log ratio of the first - of the second): DPO, arXiv:2305.18290 eq. 7; m > 0: with an offset,
    arXiv:2402.10571. With d = beta (mean log p of the first - of the second) and m = gamma: SimPO, arXiv:2405.14734 eq. 6.
    SPIN (arXiv:2401.01335 eq. 4.7) is DPO whose second completion is the policy's own. With d a difference of scores:
    Bradley-Terry, and with m the margin of Llama 2 (arXiv:2307.09288 eq. 2). Soft p is the cross-entropy. A tie is p = 1/2
    and pulls d to 0.
    """
    return -p * F.logsigmoid(difference - margin) - (1.0 - p) * F.logsigmoid(-difference - margin)


def smoothed(p: Float[Tensor, " pairs"], *, label_smoothing: float) -> Float[Tensor, " pairs"]:
    """p (1 - e) + (1 - p) e: labels wrong with chance e. ``logistic`` of it is conservative DPO (Mitchell 2023)."""
    return p * (1.0 - label_smoothing) + (1.0 - p) * label_smoothing


def debiased(p: Float[Tensor, " pairs"], *, label_smoothing: float) -> Float[Tensor, " pairs"]:
    """((1 - e) p - e (1 - p)) / (1 - 2e): what ``smoothed`` would turn into p. Outside of [0, 1] for a certain p.

    ``logistic`` of it is robust DPO, arXiv:2403.00409 section 3: unbiased for the loss on clean labels when a share
    e < 1/2 of the labels is flipped.
    """
    return (p - label_smoothing) / (1.0 - 2.0 * label_smoothing)


def squared(difference: Float[Tensor, " pairs"], p: Float[Tensor, " pairs"], *, beta: float) -> Float[Tensor, " pairs"]:
    """l = (h - (2p - 1) / (2 beta))^2: the difference of log ratios is to become a number, not to grow for ever.

    IPO, arXiv:2310.12036 eq. 17, where beta is tau and p is 0 or 1. A tie's target is 0. Units: those of h, squared.
    """
    return (difference - (2.0 * p - 1.0) / (2.0 * beta)).square()


def davidson(
    difference: Float[Tensor, " pairs"], p: Float[Tensor, " pairs"], tie: Bool[Tensor, " pairs"], *, nu: float = 1.0
) -> Float[Tensor, " pairs"]:
    """Negative log-likelihood of a judgement with ties, by Davidson (1970).

        P(first) = 1 / (1 + e^-d + 2 nu e^-d/2),      P(tie) = 2 nu e^-d/2 P(first)

    DPO-D, arXiv:2409.17431 section 3, with d as in DPO; on scores, a reward model with ties. A tie between equals has
    probability nu / (1 + nu). nu -> 0 is ``logistic``. Soft p mixes the two decided outcomes' log-likelihoods.
    """
    zero = torch.zeros_like(difference)
    total = torch.logsumexp(torch.stack([difference / 2, -difference / 2, zero + math.log(2.0 * nu)]), dim=0)
    decided = total - (p - 0.5) * difference
    return torch.where(tie, total - math.log(2.0 * nu), decided)


def rao_kupper(
    difference: Float[Tensor, " pairs"], p: Float[Tensor, " pairs"], tie: Bool[Tensor, " pairs"], *, nu: float = 3.0
) -> Float[Tensor, " pairs"]:
    """Negative log-likelihood of a judgement with ties, by Rao and Kupper (1967): a lead below log nu goes unnoticed.

        P(first) = sigmoid(d - log nu),      P(tie) = (nu^2 - 1) sigmoid(d - log nu) sigmoid(-d - log nu)

    DPO-RK, arXiv:2409.17431 section 3. A tie between equals has probability (nu - 1) / (nu + 1). nu -> 1 is ``logistic``.
    """
    a = math.log(nu)
    first, second = F.logsigmoid(difference - a), F.logsigmoid(-difference - a)
    return torch.where(tie, -first - second - math.log(nu * nu - 1.0), -p * first - (1.0 - p) * second)


def ordinal(
    score: Float[Tensor, " batch"], value: Float[Tensor, " batch"], *, nu: float = 3.0
) -> Float[Tensor, " batch"]:
    """Negative log-likelihood of +1, 0 or -1 given a scalar: ``rao_kupper`` against a standard of score 0.

    The proportional-odds model (McCullagh 1980) with thresholds +-log nu. Of ``value`` the sign alone is read.
    """
    return rao_kupper(score, (value > 0).to(score.dtype), value == 0, nu=nu)


def log_odds(mean_logp: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """log(q / (1 - q)) of q = exp(mean log p). ORPO, arXiv:2403.07691 eq. 4; its loss adds likelihood of the better one."""
    return mean_logp - log_complement(mean_logp)


def cringe_gate(lead: Float[Tensor, " pairs"], *, margin: float, temperature: float) -> Float[Tensor, " pairs"]:
    """g = sigmoid((b - lead) / tau): near 1 while the better completion leads by less than b nats, near 0 far beyond.

    Pairwise CRINGE, arXiv:2312.16682 section 2: multiplies the losses of a pair; ``lead`` is log p(better) - log p(worse).
    The gradient passes through the gate as well, which only pushes the same way.
    """
    return torch.sigmoid((margin - lead) / temperature)


def centring(first: Float[Tensor, " pairs"], second: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """(s_1 + s_2)^2: keeps the scores of a reward model, which pairs fix up to a constant, around 0. arXiv:2312.09244."""
    return (first + second).square()
