"""A mixture of experts in place of one MLP: a shared expert for every token, and the best k of many, kept busy alike.

    s = sigmoid(x router),   T = the k largest of s + bias,   g_i = s_i / sum over T of s
    y = shared(x) + sum over T of g_i expert_i(x),            bias_i <- bias_i + rate sign(mean load - load_i)

The bias decides who is asked and never how much an answer counts, so that balance needs no loss of its own: DeepSeek-V3,
arXiv:2412.19437 eq. 12 to 16, and Wang et al., arXiv:2408.15664. The router stays in full precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from triloop.errors import ConfigError
from triloop.ternary.config import TernaryConfig
from triloop.ternary.linear import TernaryLinear

__all__ = ["Experts", "GatedMLP", "chosen", "imbalance", "linear", "nudged"]


def linear(inputs: int, outputs: int, config: TernaryConfig | None = None) -> nn.Linear | TernaryLinear:
    """A linear without a bias, ternary where there is a config."""
    plain = nn.Linear(inputs, outputs, bias=False)
    return plain if config is None else TernaryLinear.of(plain, config)


def chosen(
    affinity: Float[Tensor, "n experts"], bias: Float[Tensor, " experts"], k: int
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """The experts of each token and their weights, which sum to 1. ``affinity`` is s above, positive."""
    who = (affinity.detach() + bias).topk(k, dim=-1).indices
    gates = affinity.gather(-1, who)
    return who, gates / gates.sum(dim=-1, keepdim=True)


def nudged(bias: Float[Tensor, " experts"], load: Float[Tensor, " experts"], rate: float) -> Float[Tensor, " experts"]:
    """The biases after a batch of that load, tokens an expert: up by ``rate`` below the mean load, down above it."""
    return bias + rate * (load.mean() - load).sign()


def imbalance(load: Float[Tensor, " experts"]) -> float:
    """max load / mean load - 1: 0 where all are alike (MaxVio, arXiv:2408.15664 section 4.1). 0 without any token."""
    mean = float(load.mean())
    return float(load.max()) / mean - 1 if mean > 0 else 0.0


class GatedMLP(nn.Module):
    """down(silu(gate x) * (up x)), the MLP of the Llama family."""

    def __init__(self, width: int, hidden: int, config: TernaryConfig | None = None) -> None:
        super().__init__()
        self.gate, self.up = linear(width, hidden, config), linear(width, hidden, config)
        self.down = linear(hidden, width, config)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Behind a norm of the caller's."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """See the head of this file. ``balance`` is to be called after every update of the weights."""

    bias: Tensor
    load: Tensor

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        active: int,
        *,
        shared: int = 0,
        rate: float = 1e-3,
        config: TernaryConfig | None = None,
    ) -> None:
        """``hidden`` numbers in each expert, ``active`` of ``experts`` for a token, ``shared`` in the one for all (0:
        none). ``rate`` of the biases; 0 leaves the load as it comes. ``config`` makes all experts ternary."""
        super().__init__()
        if not 1 <= active <= experts or min(width, hidden) < 1 or shared < 0 or rate < 0:
            raise ConfigError(
                f"{active} of {experts} experts of {hidden}, {shared} shared, rate {rate}: expected 1 <= active <= "
                "experts, widths of at least 1, and nothing negative"
            )
        self.active, self.rate = active, rate
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList([GatedMLP(width, hidden, config) for _ in range(experts)])
        self.shared = GatedMLP(width, shared, config) if shared else None
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts), persistent=False)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Tokens are sorted by expert: each expert is one product over the tokens that asked for it."""
        rows = x.reshape(-1, x.shape[-1])
        who, gates = chosen(self.router(rows.float()).sigmoid(), self.bias, self.active)
        order = who.flatten().argsort(stable=True)
        load = torch.bincount(who.flatten(), minlength=len(self.experts))
        if self.training:
            self.load += load
        token = order // self.active
        parts = rows.index_select(0, token).split(load.tolist())
        found = [expert(part) for expert, part in zip(self.experts, parts, strict=True) if len(part)]
        weighted = torch.cat(found) * gates.flatten().index_select(0, order)[:, None].to(rows.dtype)
        y = torch.zeros_like(rows) if self.shared is None else self.shared(rows)
        return y.index_add(0, token, weighted).view_as(x)

    @torch.no_grad()
    def balance(self) -> Float[Tensor, " experts"]:
        """Move the biases by what was asked in training since the last call; the load of that time, tokens an expert."""
        load = self.load.clone()
        self.bias.copy_(nudged(self.bias, load, self.rate))
        self.load.zero_()
        return load
