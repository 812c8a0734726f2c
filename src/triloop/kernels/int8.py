"""Products of int8 weights and int8 activations on the processor, with sums in whole numbers: what an output head reads.

Each row of the weights, as each row of activations, is a row of whole numbers with one scale (``rows.quantise_rows``):

    code[o] = round(w[o] / w_scale[o]),    w_scale[o] = max(max |w[o]|, 1e-5) / 127,     q[t], s[t] of x[t] likewise
    y[t, o] = (D[t, o] w_scale[o]) s[t],   D[t, o] = sum of q[t] code[o]

D is exact in int32, is rounded to fp32 once, and both products after it are rounded one by one: ``product`` equals
``reference``, torch's operations, bit for bit, on every processor, for any number of rows and of threads. A row of either
side that holds a NaN or an infinity gives NaN in all its results, and touches no others.

A byte a weight is a quarter of what fp32 reads, which decides how fast a few rows pass; many rows share each weight that
is read. The compiled kernels stand in ``csrc/int8.inc``; without them, and on a GPU, torch computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int32
from torch import Tensor

from triloop.errors import UsageError
from triloop.kernels import native
from triloop.kernels.calls import Call
from triloop.kernels.products import moved
from triloop.kernels.rows import quantise_rows

__all__ = ["MOST_COLUMNS", "PackedInt8", "moved", "pack", "pack_weights", "prepared", "product", "reference", "unpack"]

SIDE = 64
"""Rows of a block of the layout, and what columns are filled up to a multiple of."""
MOST_COLUMNS = 65_536
"""Sums of bytes up to 255 by activations up to 127 stay in int32."""
EXACT = 1024
"""Columns whose sum fp32 holds exactly in any order: 127 * 127 * 1024 is below 2^24."""
LARGEST = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedInt8:
    """A matrix of codes from -127 to 127 with a scale for each row, ready to multiply; made by ``pack``."""

    rows: int
    """Outputs."""
    columns: int
    """Inputs."""
    tiles: Int8[Tensor, "blocks quads 64 4"]
    """The codes, by blocks of 64 rows, then four columns of all of them (see ``csrc/int8.inc``); filled up with zeros."""
    scales: Float[Tensor, " padded_rows"]

    @property
    def bytes(self) -> int:
        """Of codes and scales, as they are in memory."""
        return self.tiles.nbytes + self.scales.nbytes


# ---------------------------------------------------------------------- packing


def pack(codes: Int8[Tensor, "out in"], scale: Float[Tensor, " scales"]) -> PackedInt8:
    """The weights code * scale, packed. Raises UsageError for a code -128 and for shapes that do not fit."""
    rows, columns = codes.shape
    if rows < 1 or not 1 <= columns <= MOST_COLUMNS or scale.shape != (rows,):
        raise UsageError(
            f"codes {rows} x {columns} with scales of shape {tuple(scale.shape)} cannot be packed; expected rows, 1 to "
            f"{MOST_COLUMNS} columns, and a scale for each row"
        )
    if int(codes.min()) < -LARGEST:
        raise UsageError("a code is -128; expected -127 to 127, which all have a negative")
    return _packed(codes.detach(), scale.detach().float())


def pack_weights(weight: Float[Tensor, "out in"]) -> PackedInt8:
    """The weights as whole numbers, each row by its largest magnitude: see the head of this file. No gradient.

    Raises UsageError for more than ``MOST_COLUMNS`` columns.
    """
    if not 1 <= weight.shape[1] <= MOST_COLUMNS:
        raise UsageError(f"a matrix of {weight.shape[1]} columns cannot be packed; expected 1 to {MOST_COLUMNS}")
    return _packed(*quantise_rows(weight))


def _packed(codes: Tensor, scale: Tensor) -> PackedInt8:
    rows, columns = codes.shape
    blocks, wide = -(-rows // SIDE), -(-columns // SIDE) * SIDE
    if (rows, columns) != (blocks * SIDE, wide):
        codes = torch.nn.functional.pad(codes, (0, wide - columns, 0, blocks * SIDE - rows))
        scale = torch.nn.functional.pad(scale, (0, blocks * SIDE - rows))
    # Four codes move as one number.
    fours = codes.contiguous().view(torch.int32).view(blocks, SIDE, wide // 4)
    tiles = fours.transpose(1, 2).contiguous().view(torch.int8).view(blocks, wide // 4, SIDE, 4)
    return PackedInt8(rows=rows, columns=columns, tiles=tiles, scales=scale.contiguous())


def unpack(packed: PackedInt8) -> tuple[Int8[Tensor, "out in"], Float[Tensor, " out"]]:
    """Codes and scales."""
    blocks, quads = packed.tiles.shape[:2]
    fours = packed.tiles.view(torch.int32).view(blocks, quads, SIDE).transpose(1, 2)  # four codes move as one number
    rows = fours.contiguous().view(torch.int8).view(blocks * SIDE, quads * 4)
    return rows[: packed.rows, : packed.columns].contiguous(), packed.scales[: packed.rows].clone()


# ---------------------------------------------------------------------- products


def product(x: Float[Tensor, "n in"], packed: PackedInt8) -> Float[Tensor, "n out"]:
    """Rows of activations, quantised to int8, times the packed weights, in fp32: see the head of this file. No gradient."""
    _fits(x, packed)
    if x.device.type != "cpu" or not native.available():
        return reference(x, packed)
    out = torch.empty(len(x), packed.rows)
    prepared(x.detach().float().contiguous(), packed, out)()
    return out


def prepared(x: Float[Tensor, "n in"], packed: PackedInt8, out: Float[Tensor, "n out"]) -> Callable[[], object]:
    """The call that writes ``product(x, packed)`` into ``out``, for lists of calls on the same memory.

    ``x`` and ``out`` are contiguous and in fp32.
    """
    assert out.shape == (len(x), packed.rows), f"out is {tuple(out.shape)}, expected {(len(x), packed.rows)}"
    if not native.available():
        return lambda: out.copy_(reference(x, packed))
    assert x.dtype == out.dtype == torch.float32
    return Call("int8_product", "rpprniit", (x, packed.tiles, packed.scales, out, len(x), packed.rows, packed.columns))


def reference(x: Float[Tensor, "n in"], packed: PackedInt8) -> Float[Tensor, "n out"]:
    """What ``product`` must give to the last bit, by torch's operations."""
    _fits(x, packed)
    q, scale = quantise_rows(x)
    codes, w_scale = unpack(packed)
    return _sums(q, codes).float() * w_scale * scale[:, None]


def _sums(q: Int8[Tensor, "n in"], codes: Int8[Tensor, "out in"]) -> Int32[Tensor, "n out"]:
    """sum of q code, exactly: fp32 products of few enough columns, added in whole numbers."""
    total = torch.zeros(len(q), len(codes), dtype=torch.int32, device=q.device)
    for a, b in zip(q.split(EXACT, 1), codes.split(EXACT, 1), strict=True):
        total += (a.float() @ b.float().t()).to(torch.int32)
    return total


def _fits(x: Tensor, packed: PackedInt8) -> None:
    if x.ndim != 2 or x.shape[1] != packed.columns or x.device != packed.tiles.device:
        raise UsageError(
            f"activations of shape {tuple(x.shape)} on {x.device} for a packed {packed.rows} x {packed.columns} matrix on "
            f"{packed.tiles.device}; expected [n, {packed.columns}] there"
        )
