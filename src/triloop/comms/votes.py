"""Counting votes of -1, 0 and 1: plurality with ties, soft votes, and how far to trust whom. FedVote, arXiv:2110.02998.

Votes are [workers n]; weights of workers sum to 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int8
from torch import Tensor

__all__ = ["agreement", "ballot", "latent", "plurality", "soft_vote", "trusted"]

_TIE = 1e-9
"""Shares of the vote nearer than this are equal: sums of equal weights differ in their last bits."""


def ballot(
    w: Float[Tensor, "rows n"], uniform: Float64[Tensor, "rows n"], *, binary: bool = False
) -> Int8[Tensor, "rows n"]:
    """Votes for normalised weights w in [-1, 1], rounded at random with E[vote] = w.

    Ternary: sign(w) with chance |w|, else 0. Binary: 1 with chance (1 + w) / 2, else -1 (FedVote, section III).
    """
    if binary:
        return torch.where(uniform < (1.0 + w.double()) / 2.0, 1, -1).to(torch.int8)
    return torch.where(uniform < w.abs().double(), w.sign(), 0.0).to(torch.int8)


def plurality(
    votes: Int8[Tensor, "workers n"],
    weights: Float[Tensor, " workers"],
    coin: Float64[Tensor, " n"] | None = None,
) -> Int8[Tensor, " n"]:
    """What most of the weight says of each number. A tie for the first place is 0: nobody has won.

    Where 0 is no answer (binary weights), ``coin``, one number in [0, 1) for each place and the same on every worker,
    decides: 1 below a half, else -1.
    """
    shares = torch.stack([((votes == v) * weights.double()[:, None]).sum(dim=0) for v in (-1, 0, 1)])
    first, who = shares.max(dim=0)
    tied = (shares > first - _TIE).sum(dim=0) > 1
    lot = torch.zeros_like(who) if coin is None else torch.where(coin < 0.5, 1, -1)
    return torch.where(tied, lot, who - 1).to(torch.int8)


def soft_vote(votes: Int8[Tensor, "workers n"], weights: Float[Tensor, " workers"]) -> Float[Tensor, " n"]:
    """sum_m weight_m vote_m, in [-1, 1]: of binary votes 2 p - 1 with p the share for 1 (FedVote, section IV)."""
    return (votes * weights.double()[:, None]).sum(dim=0).float()


def latent(share: Float[Tensor, " n"], slope: float, limit: float) -> Float[Tensor, " n"]:
    """Latent weights whose normalised form tanh(slope h) is the vote: h = atanh(clip(share, -limit, limit)) / slope.

    ``limit`` < 1 keeps unanimous votes finite, and able to change their mind.
    """
    return torch.atanh(share.double().clamp(-limit, limit)).float() / slope


def agreement(votes: Int8[Tensor, "workers n"], winner: Int8[Tensor, " n"]) -> Float[Tensor, " workers"]:
    """Of the numbers that a worker has voted on and of which one side has won, the share in which it said what won.

    FedVote's credibility counts all numbers; with three answers, 0 among them, those who lie would agree with everyone
    wherever they and all others abstain, so abstentions count for nobody. Without any vote it is 0.
    """
    cast = (votes != 0) & (winner != 0)
    return (cast & (votes == winner)).sum(dim=1) / cast.sum(dim=1).clamp(min=1)


def trusted(
    before: Float[Tensor, " workers"], agreed: Float[Tensor, " workers"], memory: float
) -> tuple[Float[Tensor, " workers"], Float[Tensor, " workers"]]:
    """Reputations after a vote, and the weights that follow from them for this vote's count.

        nu_m <- memory nu_m + (1 - memory) agreed_m,     weight_m = nu_m / sum nu

    FedVote, section V. Where all reputations are 0, all weigh alike.
    """
    after = memory * before + (1.0 - memory) * agreed
    total = after.sum()
    return after, torch.where(total > 0, after / total.clamp(min=1e-30), 1.0 / len(after))
