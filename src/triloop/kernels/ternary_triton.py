"""The packed ternary product on a GPU, in Triton: the layout and the numbers of ``triloop.kernels.ternary``.

One program multiplies 16 rows of activations by the 16 outputs of one plane: two bits of every byte of a row of tiles. They
become int8 whose products with the activations are summed in int32, exactly. Scales come after, in
the order of the kernels for processors, and a product is rounded before it is added: results are equal to the last bit.
A *piece* is the columns that share a scale of weights and one of activations.

Triton is imported where it is first used. ``usable`` tells whether it works on a device, by a small product compared with
torch's; where it does not, ``ternary.product`` computes by torch.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from triloop.kernels.rows import torch_blocks, torch_rows

if TYPE_CHECKING:
    from triloop.kernels.ternary import PackedTernary

__all__ = ["multiply", "usable"]

ROWS = 16
"""Activation rows of a program: the fewest that tensor cores multiply."""
PLANES = 4
"""Of a tile of 64 rows; each holds 16 of them."""


@cache
def _kernel() -> Any:
    """The compiled function. Raises ImportError without Triton."""
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator, unused-ignore]
    def kernel(  # type: ignore[no-untyped-def]
        q, tiles, scales, shifts, row_scale, out, n, rows, columns, group, piece, wide, padded,
        shifted: tl.constexpr, blocks: tl.constexpr
    ):  # fmt: skip
        block, plane = tl.program_id(1), tl.program_id(2)
        t = tl.program_id(0) * 16 + tl.arange(0, 16)
        c, lane = tl.arange(0, 64), tl.arange(0, 16)
        place = (c // 4 * 64 + c % 4)[:, None] + lane[None, :] * 4  # of a byte in its tile: [column, lane]
        per = (piece + 63) // 64
        y = tl.zeros((16, 16), dtype=tl.float32)
        for p in range((columns + piece - 1) // piece):
            d = tl.zeros((16, 16), dtype=tl.int32)
            sums = tl.zeros((16,), dtype=tl.int32)
            for a in range(per):
                inside = a * 64 + c
                column = p * piece + inside
                seen = (t < n)[:, None] & ((inside < piece) & (column < columns))[None, :]
                x = tl.load(q + t[:, None] * columns + column[None, :], mask=seen, other=0)
                left = (wide - p * per - a) * 1024  # bytes; none behind a last block that is shorter than the others
                byte = tl.load(tiles + (block * wide + p * per + a) * 1024 + place, mask=place < left, other=0)
                d += tl.dot(x, ((byte >> (2 * plane)) & 3).to(tl.int8) - 1, out_dtype=tl.int32)
                sums += tl.sum(x.to(tl.int32), axis=1)
            at = p * piece // group * padded + block * 64 + plane * 16 + lane
            w = tl.load(scales + at)[None, :]
            if blocks:
                s = tl.load(row_scale + t * blocks + p, mask=t < n, other=0.0)[:, None]
                w = w * s
            part = d.to(tl.float32) * w
            if shifted:
                b = tl.load(shifts + at)[None, :]
                if blocks:
                    b = b * s
                part += sums.to(tl.float32)[:, None] * b
            y += part
        if not blocks:
            y *= tl.load(row_scale + t, mask=t < n, other=0.0)[:, None]
        o = block * 64 + plane * 16 + lane
        tl.store(out + t[:, None] * rows + o[None, :], y, mask=(t < n)[:, None] & (o < rows)[None, :])

    return kernel


def multiply(
    q: Int8[Tensor, "n in"],
    row_scale: Float[Tensor, " n"] | Float[Tensor, "n blocks"],
    tiles: UInt8[Tensor, "blocks across 1024"],
    scales: Float[Tensor, "groups padded_rows"],
    shifts: Float[Tensor, "groups padded_rows"] | None,
    *,
    rows: int,
    group: int,
    block: int = 0,
) -> Float[Tensor, "n out"]:
    """row_scale[t] sum_g (D[t, o, g] scales[g, o] + T[t, g] shifts[g, o]); ``group`` columns share a scale.

    With ``block``, so many columns of activations share one of ``row_scale``, and the sum is that of ``ternary.product``.
    Everything lies on one device and is contiguous. Raises ImportError without Triton.
    """
    n, columns = q.shape
    out = torch.empty(n, rows, device=q.device)
    if n:
        grid = (-(-n // ROWS), tiles.shape[0], PLANES)
        piece = min(group, block) if block else group
        # without fusing: a product is rounded before it is added, as everywhere else
        options = {} if _interpreted() else {"enable_fp_fusion": False}
        _kernel()[grid](
            *(q, tiles, scales, scales if shifts is None else shifts, row_scale, out),
            *(n, rows, columns, group, piece, tiles.shape[1], scales.shape[1]),
            shifted=shifts is not None,
            blocks=-(-columns // piece) if block else 0,
            **options,
        )
    return out


def _interpreted() -> bool:
    """Triton's interpreter runs kernels on the processor, slowly, and knows no options of a compiler."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def usable(device: str) -> bool:
    """Whether the kernel gives torch's numbers on ``device``, tried once: two groups, shifts, odd sizes."""
    if device == "cpu" and not _interpreted():
        return False
    from triloop.kernels import ternary  # which calls this module: at its head the two would wait for each other

    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (65, 70), generator=draw, dtype=torch.int8)
    scales = torch.rand(65, 2, generator=draw), torch.rand(65, 2, generator=draw)
    x = torch.randn(3, 70, generator=draw)
    rows, blocks = ternary.pack(codes, *scales, group=40), ternary.pack(codes, *scales, group=64)
    try:
        return _right(x, rows, 0, device) and _right(x, blocks, 64, device)
    except Exception:  # noqa: BLE001 - no Triton, no compiler for it, a device it does not know: torch multiplies then
        return False


def _right(x: Tensor, packed: PackedTernary, block: int, device: str) -> bool:
    from triloop.kernels import ternary

    q, row_scale = torch_blocks(x, block) if block else torch_rows(x)
    assert packed.shifts is not None
    given = [t.to(device) for t in (q, row_scale, packed.tiles, packed.scales, packed.shifts)]
    got = multiply(*given, rows=packed.rows, group=packed.group, block=block).cpu()
    return torch.equal(got, ternary.reference(x, packed, block=block))
