"""A recurrent block whose state is a diagonal linear recurrence with coefficients that the input chooses.

    a_t = tanh(decay x_t),   h_t = a_t h_{t-1} + (1 - |a_t|) (value x_t),   y_t = out(h_t * silu(gate x_t))

all numbers of the state by themselves: a selective state-space layer (Mamba, arXiv:2312.00752) with real diagonal
transitions, which may be negative. With transitions of 0 to 1 no such layer can count modulo two over any length; with -1
to 1 it can (Grazzi et al., arXiv:2411.12537). State and transitions are fp32, the four products ternary by choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triloop.ternary.config import TernaryConfig
from triloop.ternary.experts import linear

__all__ = ["DiagonalScan", "scan"]


def scan(
    a: Float[Tensor, "batch time width"], b: Float[Tensor, "batch time width"], start: Float[Tensor, "batch width"]
) -> Float[Tensor, "batch time width"]:
    """h_t = a_t h_{t-1} + b_t from h_0 = ``start``, all h at once in log2(time) passes (Blelloch's prefix sums).

    Pairs (a, b) compose as (a2 a1, a2 b1 + b2); after pass k each place stands for its last 2^k steps.
    """
    time, reach = a.shape[1], 1
    while reach < time:
        b = torch.cat([b[:, :reach], a[:, reach:] * b[:, :-reach] + b[:, reach:]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return a * start[:, None] + b


class DiagonalScan(nn.Module):
    """See the head of this file: [batch, time, width] -> the same, each place knowing those before it and itself."""

    def __init__(self, width: int, state: int, config: TernaryConfig | None = None) -> None:
        """``state`` numbers are remembered. ``config`` makes the products ternary."""
        super().__init__()
        self.decay, self.value = linear(width, state, config), linear(width, state, config)
        self.gate, self.out = linear(width, state, config), linear(state, width, config)
        self.shift = nn.Parameter(torch.linspace(-1.0, 3.0, state))  # short memories to long ones
        self.start = nn.Parameter(torch.ones(state))

    def forward(
        self, x: Float[Tensor, "batch time width"], state: Float[Tensor, "batch state"] | None = None
    ) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch state"]]:
        """Behind a norm of the caller's. ``state`` is what an earlier call answered beside, to go on from there."""
        a = torch.tanh(self.decay(x).float() + self.shift)
        b = (1 - a.abs()) * self.value(x).float()
        before = self.start.expand(len(x), -1) if state is None else state
        h = scan(a, b, before)
        return self.out(h.to(x.dtype) * F.silu(self.gate(x))), h[:, -1]
