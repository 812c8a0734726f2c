"""What a quantised product reads: rows of whole numbers with their scales, and how a gradient passes them.

x_hat[t, i] = scale[t, block of i] codes[t, i] + zero
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from triloop.kernels.rows import BLOCK, quantise_blocks, quantise_rows
from triloop.ternary.quantisers import FLOOR, spread

__all__ = [
    "PACKED",
    "Rows",
    "elastic",
    "elastic_range",
    "elastic_start",
    "int8",
    "int8_blocks",
    "quantised",
    "unquantised",
]

PACKED = {"int8": 0, "int8-256": BLOCK}
"""Activations that the packed kernels quantise themselves, and the neighbours that share a scale; 0: all of a row."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Activations as a product multiplies them."""

    codes: Int8[Tensor, "n in"] | Float[Tensor, "n in"]
    """Whole numbers from -128 to 127; without quantisation the activations themselves."""
    scale: Float[Tensor, "rows blocks"] | None = None
    """rows: n, or 1 for all. blocks: 1, or one for every ``block`` inputs, the last of them maybe smaller."""
    zero: Float[Tensor, "1 1"] | None = None
    block: int = 0

    def dense(self) -> Float[Tensor, "n in"]:
        """What the codes stand for, in fp32."""
        columns = self.codes.shape[1]
        x = self.codes.float() if self.scale is None else self.codes * spread(self.scale, self.block, columns)
        return x if self.zero is None else x.add_(self.zero)


def unquantised(x: Float[Tensor, "n in"]) -> tuple[Float[Tensor, "n in"], Rows]:
    """The activations as they are."""
    return x, Rows(codes=x.detach())


def int8(x: Float[Tensor, "n in"]) -> tuple[Float[Tensor, "n in"], Rows]:
    """Per token: scale = max(max |x|, 1e-5) / 127, codes = round(x / scale), halves to even (arXiv:2402.17764, section 2).

    The gradient passes straight through, so ``x`` itself stands in the graph for what the codes mean.
    """
    codes, scale = quantise_rows(x.detach())
    return x, Rows(codes=codes, scale=scale.view(-1, 1))


def int8_blocks(x: Float[Tensor, "n in"]) -> tuple[Float[Tensor, "n in"], Rows]:
    """Per token and block of 256 neighbours: codes = round(x r), r = 127 / max |x|, scale = 1 / r, as llama.cpp's Q8_K.

    The gradient passes straight through.
    """
    codes, scale = quantise_blocks(x.detach())
    return x, Rows(codes=codes, scale=scale, block=BLOCK)


def quantised(
    name: str, x: Float[Tensor, "n in"], scale: Tensor | None, zero: Tensor | None, bits: int
) -> tuple[Float[Tensor, "n in"], Rows]:
    """By the name in ``config.ACTIVATIONS``; scale, zero and bits are those of elastic activations."""
    if name == "none":
        return unquantised(x)
    if scale is None or zero is None:
        return int8_blocks(x) if name == "int8-256" else int8(x)
    return elastic(x, scale, zero, bits)


def elastic_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code: -1 and 1 for 1 and 2 bits (1 bit without 0), else -2^(b-1) and 2^(b-1) - 1."""
    return (-1, 1) if bits <= 2 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def elastic_start(mean_size: float, bits: int) -> float:
    """Where the scale starts: 2 mean |x| / sqrt(largest code) (LSQ, arXiv:1902.08153 section 2.1)."""
    return 2 * mean_size / elastic_range(bits)[1] ** 0.5


def elastic(
    x: Float[Tensor, "n in"], scale: Float[Tensor, " 1"], zero: Float[Tensor, " 1"], bits: int
) -> tuple[Float[Tensor, "n in"], Rows]:
    """A trained scale and zero point for the whole layer (Liu et al., arXiv:2306.01841 section 3.2).

        u = (x - zero) / scale,  codes = round(clip(u, low, high)),  x_hat = scale codes + zero;     1 bit: codes = sign(u)

    Gradients: x where u is inside [low, high]; zero where it is outside; scale: codes - (u where inside), for 1 bit codes;
    both of the latter divided by sqrt(numbers * high), as for weights.
    """
    low, high = elastic_range(bits)
    step, centre = scale.detach().float().clamp_min(FLOOR), zero.detach().float()
    u = (x.detach().float() - centre) / step
    codes = torch.where(u >= 0, 1.0, -1.0) if bits == 1 else u.clamp(low, high).round_()
    rows = Rows(codes=codes.to(torch.int8), scale=step.view(1, 1), zero=centre.view(1, 1))
    return _Elastic.apply(x, scale, zero, rows, bits), rows


class _Elastic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, rows: Rows, bits: int) -> Tensor:
        ctx.save_for_backward(x, rows.codes, rows.scale, rows.zero)
        ctx.bits, ctx.type = bits, scale.dtype
        return rows.dense().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, codes, scale, zero = ctx.saved_tensors
        low, high = elastic_range(ctx.bits)
        u = (x.float() - zero) / scale
        inside = (u >= low) & (u <= high)
        slope = codes.float() if ctx.bits == 1 else codes - u * inside
        rate = (u.numel() * high) ** -0.5
        to_scale = (grad * slope).sum().mul(rate).view(1).to(ctx.type)
        to_zero = (grad * ~inside).sum().mul(rate).view(1).to(ctx.type)
        return grad * inside, to_scale, to_zero, None, None
