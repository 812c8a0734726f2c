"""Scalar outputs on hidden states: values for PPO, scores for reward models."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triloop.nn.decoder import Packing

__all__ = ["ScalarHead", "at_last_token"]


class ScalarHead(nn.Module):
    """One number per hidden state: w·h + b, both zero at the start, so that an untrained head says 0 of everything."""

    def __init__(self, hidden_size: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(())) if bias else None

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Computed in fp32 whatever the dtype of ``hidden``: a value in bf16 has three digits."""
        out = hidden.float() @ self.weight.float()
        return out if self.bias is None else out + self.bias.float()


def at_last_token(values: Float[Tensor, " tokens"], where: Packing) -> Float[Tensor, " sequences"]:
    """The value at the last token of each packed sequence: a reward model's score of the whole text."""
    ends = torch.cumsum(torch.tensor(where.lengths, device=values.device), 0) - 1
    return values.index_select(0, ends)
