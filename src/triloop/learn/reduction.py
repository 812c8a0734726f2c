"""From losses per token to one number. Each takes the denominators of the whole batch, however little of it is given.

So the sum over micro-batches is the loss of the batch, and the normalisations of GRPO, DAPO and Dr. GRPO are choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Denominators", "Reduction", "fixed_length", "sequence_mean", "token_mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denominators:
    """Counts over all that one optimiser step averages over, on all ranks and in all micro-batches.

    Fractions occur: a quarter of a batch, as a minibatch, is divided by a quarter of the batch's counts.
    """

    tokens: float
    """Tokens that the policy chose."""
    sequences: float
    """Completions."""
    max_tokens: int
    """Longest completion that sampling allows."""


Reduction = Callable[[Tensor, Tensor, Denominators], Tensor]
"""(losses [batch time], mask [batch time], denominators) -> scalar."""


def token_mean(
    losses: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], denominators: Denominators
) -> Float[Tensor, ""]:
    """Every token weighs the same: sum_bt l_bt / tokens. DAPO, arXiv:2503.14476 eq. 8."""
    return torch.where(mask, losses, 0.0).sum() / max(denominators.tokens, 1e-9)


def sequence_mean(
    losses: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], denominators: Denominators
) -> Float[Tensor, ""]:
    """Every completion weighs the same: sum_b (sum_t l_bt / n_b) / sequences, n_b the tokens of row b.

    GRPO, arXiv:2402.03300 eq. 3. Tokens of long completions weigh less, of good and bad ones alike.
    """
    length_B = mask.sum(dim=1).clamp(min=1)
    return (torch.where(mask, losses, 0.0).sum(dim=1) / length_B).sum() / max(denominators.sequences, 1e-9)


def fixed_length(
    losses: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], denominators: Denominators
) -> Float[Tensor, ""]:
    """A constant, blind to lengths: sum_bt l_bt / (sequences * max_tokens). Dr. GRPO, arXiv:2503.20783 section 3.2."""
    return torch.where(mask, losses, 0.0).sum() / max(denominators.sequences * denominators.max_tokens, 1e-9)
