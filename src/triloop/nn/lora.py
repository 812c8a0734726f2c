"""LoRA: low-rank adapters on the decoder's linears (Hu et al., arXiv:2106.09685).

    y = W x + b + (alpha / rank) B A x,   A [rank, in] random, B [out, rank] zero: training starts at the base model

The decoder's linears are fused (``qkv``, ``gate_up``), so one A serves the parts that read the same input. Written for
PEFT, which knows only separate modules, each part gets its rows of B and a copy of A.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triloop.errors import ModelError
from triloop.nn.decoder import Decoder
from triloop.nn.fused import Linear, linear

__all__ = ["TARGETS", "LoraLinear", "add_lora", "effective_state", "lora_modules", "lora_state", "merge_lora"]

TARGETS = ("qkv", "out", "gate_up", "down")


class LoraLinear(nn.Module):
    """A frozen linear with a trained low-rank addition.

    Keeps the names ``weight`` and ``bias``: the decoder's other parameters do not move when adapters come or go.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        bias: Tensor | None = base.bias
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.rank, self.alpha = rank, alpha
        start = torch.empty(rank, base.in_features).uniform_(-1, 1, generator=generator) * (1 / base.in_features) ** 0.5
        self.lora_a = nn.Parameter(start.to(base.weight))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> Float[Tensor, "out in"]:
        """What the adapter adds to ``weight``."""
        return (self.lora_b.float() @ self.lora_a.float()) * self.scale

    def merged(self) -> Float[Tensor, "out in"]:
        """``weight`` plus ``delta``, in the weight's dtype."""
        return (self.weight.float() + self.delta()).to(self.weight.dtype)

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.scale


def add_lora(
    decoder: Decoder, rank: int, alpha: float, targets: Sequence[str] = TARGETS, *, seed: int = 0
) -> dict[str, LoraLinear]:
    """Freeze ``decoder`` in place and put an adapter on each linear named in ``targets``; the adapters by name.

    A starts uniform in ±1/sqrt(in) (PEFT's start), drawn from ``seed``; B starts at zero. A value head stays trained.
    """
    unknown = [t for t in targets if t not in TARGETS]
    if unknown or not targets or rank < 1:
        raise ModelError(
            f"LoRA needs rank >= 1 and targets out of {TARGETS}; got rank {rank}, targets {tuple(targets)}"
        )
    if lora_modules(decoder):
        raise ModelError("the decoder already has LoRA adapters; merge_lora them first")
    places = [(layer, target, layer.get_submodule(target)) for layer in decoder.layers for target in targets]
    strange = next((type(base).__name__ for _, _, base in places if not isinstance(base, nn.Linear)), None)
    if strange is not None:
        raise ModelError(
            f"LoRA adapts linears in full precision, and this policy's are {strange}: it is ternary; train its weights "
            "(lora_rank 0)"
        )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(name.startswith("value_head."))
    for layer, target, base in places:
        assert isinstance(base, nn.Linear)
        layer.set_submodule(target, LoraLinear(base, rank, alpha, generator))
    return lora_modules(decoder)


def lora_modules(decoder: Decoder) -> dict[str, LoraLinear]:
    """The adapters of ``decoder`` by module name (``layers.0.qkv``), in order; empty when it has none."""
    return {name: module for name, module in decoder.named_modules() if isinstance(module, LoraLinear)}


def lora_state(decoder: Decoder) -> dict[str, Tensor]:
    """The adapters' own parameters: what a checkpoint of a LoRA run must hold besides the base."""
    return {
        f"{name}.{part}": tensor.detach()
        for name, module in lora_modules(decoder).items()
        for part, tensor in (("lora_a", module.lora_a), ("lora_b", module.lora_b))
    }


def merge_lora(decoder: Decoder) -> Decoder:
    """Add each adapter into its linear, in place, remove it, and let every weight train again. Returns ``decoder``."""
    for name, module in lora_modules(decoder).items():
        rows, columns = module.weight.shape
        plain = Linear(columns, rows, bias=module.bias is not None, device="meta")
        plain.weight = nn.Parameter(module.merged().detach())
        if module.bias is not None:
            plain.bias = nn.Parameter(module.bias.detach())
        decoder.set_submodule(name, plain)
    return decoder.requires_grad_(True)


def effective_state(decoder: Decoder) -> dict[str, Tensor]:
    """Parameters of the plain decoder that computes the same: adapters merged, ``decoder`` unchanged."""
    adapters = lora_modules(decoder)
    own = {f"{name}.{part}" for name in adapters for part in ("lora_a", "lora_b")}
    state = {k: v.detach() for k, v in decoder.named_parameters() if k not in own}
    return state | {f"{name}.weight": module.merged().detach() for name, module in adapters.items()}
