"""Rows of activations as whole numbers of eight bits: one scale for a row, or one for each block of its columns.

    a row     s = max(max |x|, 1e-5) / 127,      q = round(x / s)                 BitNet b1.58, arXiv:2402.17764
    a block   r = 127 / max |x|,  s = 1 / r,     q = round(x r),  0 for zeros     llama.cpp's Q8_K (quantize_row_q8_K)

Halves go to even, each operation is rounded once. llama.cpp gives r the sign of the extreme value, which turns the signs
of q and s and no product of them. Blocks start at the first column; the last one may be smaller, which llama.cpp refuses.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from triloop.kernels import native

__all__ = ["BLOCK", "quantise_blocks", "quantise_rows", "torch_blocks", "torch_rows"]

BLOCK = 256
"""Columns of a block in llama.cpp (QK_K)."""
FLOOR = 1e-5
"""The smallest largest magnitude of a row: a row of zeros has a scale all the same."""


def quantise_rows(x: Float[Tensor, "n in"]) -> tuple[Int8[Tensor, "n in"], Float[Tensor, " n"]]:
    """Every row as whole numbers from -127 to 127 and their scale; the same numbers as ``ternary.product`` uses.

        scale = max(max |x|, 1e-5) / 127,   q = round(x / scale), halves to even;   no gradient

    Both are true divisions, which round alike on every device; a multiplication by 1 / scale would not give the same q.
    A row with a NaN or an infinity has scale NaN and q = 0.
    """
    x = x.detach().float()
    if x.device.type == "cpu" and native.available():
        q, scale = _native(x, 0)
        return q, scale.view(-1)
    return torch_rows(x)


def quantise_blocks(x: Float[Tensor, "n in"]) -> tuple[Int8[Tensor, "n in"], Float[Tensor, "n blocks"]]:
    """The same with a scale for every ``BLOCK`` neighbours, as ``ternary.product(..., block=BLOCK)`` uses them.

    A block with a NaN or an infinity has scale NaN and q = 0; one whose magnitudes stay below 4e-37 has both 0.
    """
    x = x.detach().float()
    return _native(x, BLOCK) if x.device.type == "cpu" and native.available() else torch_blocks(x, BLOCK)


def _native(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    x, p = x.contiguous(), native.pointer
    q = torch.empty_like(x, dtype=torch.int8)
    scale = torch.empty(len(x), -(-x.shape[1] // block) if block else 1)
    sizes = (*x.shape, block, torch.get_num_threads())
    native.function("ternary_quantise", "pppiiii")(p(x), p(q), p(scale), *sizes)
    return q, scale


def torch_rows(x: Float[Tensor, "n in"]) -> tuple[Int8[Tensor, "n in"], Float[Tensor, " n"]]:
    """``quantise_rows`` by torch alone, on any device."""
    top = x.abs().amax(1)
    # a tensor of 127: torch divides by a Python number through its reciprocal on some devices
    scale = top.clamp_min(FLOOR) / torch.full_like(top, 127.0)
    scale = torch.where(top.isfinite(), scale, torch.nan)
    return (x / scale[:, None]).nan_to_num_(0.0).round_().to(torch.int8), scale


def torch_blocks(x: Float[Tensor, "n in"], block: int) -> tuple[Int8[Tensor, "n in"], Float[Tensor, "n blocks"]]:
    """``quantise_blocks`` by torch alone, on any device, for blocks of any size."""
    n, columns = x.shape
    blocks = -(-columns // block)
    cut = torch.nn.functional.pad(x, (0, blocks * block - columns)).view(n, blocks, block)
    top = cut.abs().amax(2)
    factor = torch.full_like(top, 127.0) / top
    some = top.isfinite() & factor.isfinite()
    scale = torch.where(some, torch.ones_like(top) / factor, torch.where(top.isfinite(), 0.0, torch.nan))
    q = torch.where(some[:, :, None], cut * factor[:, :, None], 0.0).round_().to(torch.int8)
    return q.view(n, -1)[:, :columns].contiguous(), scale
