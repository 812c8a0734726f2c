"""Parts of a layer with gradients written by hand: fewer passes over memory, fewer tensors kept.

Each gives the value of the plain expression in its docstring: by a compiled kernel where there is one for the tensor at
hand (``kernels.train.usable``), else by torch's operations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triloop.kernels import panels, train
from triloop.nn.rope import rotate

__all__ = ["Linear", "add_norm", "linear", "rms_norm", "rotated", "swiglu"]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        both = torch.empty_like(gate_up)
        to_gate, to_up = both.chunk(2, dim=-1)
        sigma = gate.sigmoid()
        silu = gate * sigma
        torch.mul(grad, silu, out=to_up)
        torch.addcmul(sigma, silu, 1 - sigma, out=to_gate)  # the derivative of silu
        to_gate.mul_(up).mul_(grad)
        return both


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        product = grad * unit
        mean = (product @ weight).div_(unit.shape[-1])
        to_x = (grad * weight).addcmul_(unit, mean[..., None], value=-1).mul_(scale)
        return to_x, product.flatten(0, -2).sum(0), None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin), None, None  # the transpose of a rotation is the rotation back


def _plain(x: Tensor) -> bool:
    return not (torch.is_grad_enabled() and x.requires_grad)


def linear(
    x: Float[Tensor, "*batch in"], weight: Float[Tensor, "out in"], bias: Tensor | None = None
) -> Float[Tensor, "*batch out"]:
    """x weight^T + bias; of rows in fp32 on the processor each number is summed in one order, whatever else is computed."""
    if x.ndim == 2 and panels.usable(x, weight):
        return panels.Product.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def swiglu(gate_up: Float[Tensor, "n twice_width"]) -> Float[Tensor, "n width"]:
    """silu(gate) * up of [gate | up] (Shazeer, arXiv:2002.05202)."""
    if train.usable(gate_up):
        return train.SwiGLU.apply(gate_up)
    if not _plain(gate_up):
        return _SwiGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def rms_norm(
    x: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*batch width"]:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv:1910.07467)."""
    if _plain(x) and not (torch.is_grad_enabled() and weight.requires_grad):
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _Norm.apply(x, weight, eps)


def rotated(
    x: Float[Tensor, "n heads dim"], cos: Float[Tensor, "n 1 dim"], sin: Float[Tensor, "n 1 dim"]
) -> Float[Tensor, "n heads dim"]:
    """``rope.rotate``, whose angles get no gradient."""
    return rotate(x, cos, sin) if _plain(x) else _Rotated.apply(x, cos, sin)


def add_norm(
    x: Float[Tensor, "n width"],
    delta: Float[Tensor, "n width"] | None,
    weight: Float[Tensor, " width"],
    eps: float,
    *,
    exact: bool = False,
) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n width"]]:
    """``(sum, rms_norm(sum))`` of x + delta. The norm is for a product, and may come in its type unless ``exact``."""
    if train.usable(x) and x.dtype == weight.dtype == torch.float32:
        kind = train.product_type(x)
        delta = None if delta is None else delta.to(kind)
        return train.AddNorm.apply(x, delta, weight, eps, torch.float32 if exact else kind)
    x = x if delta is None else x + delta
    if x.dtype == torch.float32:
        return x, rms_norm(x, weight, eps)
    return x, weight.to(x.dtype) * F.rms_norm(x.float(), (x.shape[-1],), None, eps).to(x.dtype)
