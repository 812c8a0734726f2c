"""Ternary products on the processor: weights of two bits, activations of eight, sums in whole numbers.

``pack`` puts codes -1, 0 and 1 into the layout that the compiled kernels multiply from (``csrc/ternary.cpp``), two bits
each; ``product`` quantises every row of activations to int8 and multiplies. A row x[t] and the groups g of columns give

    q[t] = round(x[t] / s[t]),      s[t] = max(max |x[t]|, 1e-5) / 127                    (``quantise_rows``)
    D[t, o, g] = sum of q[t] code[o] over the columns of g,     T[t, g] = sum of q[t]
    y[t, o] = s[t] sum_g (D[t, o, g] w_scale[o, g] + T[t, g] w_shift[o, g])

D and T are exact in int32. The rest is fp32 in the order written: a product is rounded before it is added, groups are added
in order, s[t] comes last. So ``product`` equals ``reference``, torch's operations on unpacked codes, bit for bit, on
every processor, for any number of rows and of threads. Scale and shift belong to the matrix, its rows, or groups of
columns of a row; one scale for all columns is one group. int8 per token and absmean codes: BitNet b1.58, arXiv:2402.17764.

With ``block``, every block of so many columns of a row has an s of its own (``quantise_blocks``), and in llama.cpp's order

    y[t, o] = sum_b (D[t, o, b] (w_scale[o, g] s[t, b]) + T[t, b] (w_shift[o, g] s[t, b]))          g: the group of block b

Without the compiled library torch computes the same numbers, far slower. What ``moved`` put on a GPU is multiplied there by
a Triton kernel from the same layout, and by torch where Triton does not work; both give these numbers too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor

from triloop.errors import UsageError
from triloop.kernels import native, ternary_triton
from triloop.kernels.calls import Call
from triloop.kernels.products import moved
from triloop.kernels.rows import quantise_rows, torch_blocks, torch_rows

__all__ = [
    "MOST_COLUMNS",
    "PackedTernary",
    "float_product",
    "integer_product",
    "level",
    "moved",
    "pack",
    "pack_weights",
    "prepared",
    "product",
    "quantise_rows",
    "reference",
    "unpack",
]

SIDE = 64
"""Rows and columns of a tile of the layout."""
MOST_COLUMNS = 98_304
"""Sums of masked bytes, up to 170 * 128 a column, stay in int32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedTernary:
    """A matrix of codes -1, 0 and 1 with its scales, ready to multiply; made by ``pack``."""

    rows: int
    """Outputs."""
    columns: int
    """Inputs."""
    group: int
    """Neighbouring columns that share a scale; all of them where there is one group."""
    tiles: UInt8[Tensor, "blocks across 1024"]
    """The codes; rows and groups are filled up to 64 with zeros (see ``csrc/ternary.cpp``)."""
    scale: Float[Tensor, "rows_or_1 groups"]
    shift: Float[Tensor, "rows_or_1 groups"] | None
    scales: Float[Tensor, "groups padded_rows"]
    """``scale`` for every row, as the kernels read it."""
    shifts: Float[Tensor, "groups padded_rows"] | None

    @property
    def bytes(self) -> int:
        """Of the codes as packed, and of the scales and shifts as given."""
        kept = (self.tiles, self.scale, self.shift)
        return sum(t.numel() * t.element_size() for t in kept if t is not None)

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.columns // self.group)


def level() -> str:
    """The instructions in use: amx, vnni, avxvnni, avx2, neon or portable; torch where nothing is compiled."""
    return native.ternary_level() or "torch"


# ---------------------------------------------------------------------- packing


def pack(
    codes: Int8[Tensor, "out in"],
    scale: Tensor | float,
    shift: Tensor | float | None = None,
    group: int | None = None,
) -> PackedTernary:
    """The weights code * scale + shift, packed.

    ``scale`` and ``shift`` are one number, [out], or [out or 1, groups]; ``group`` columns share a scale, the last group
    may be smaller. Groups of a multiple of 64 columns waste no memory. Raises UsageError for other codes and shapes.
    """
    record = _empty(codes.shape, scale, shift, group)
    codes = codes.detach().cpu().contiguous()
    if native.available():
        wrong = torch.zeros(1, dtype=torch.int64)
        p = native.pointer
        sizes = (record.rows, record.columns, record.group)
        native.function("ternary_pack", "pppiiii")(p(codes), p(record.tiles), p(wrong), *sizes, _threads())
        fine = not int(wrong)
    else:
        low, high = (int(v) for v in torch.aminmax(codes))
        fine = low >= -1 and high <= 1
        record.tiles.copy_(_tiles(codes, record))
    if not fine:
        low, high = (int(v) for v in torch.aminmax(codes))
        raise UsageError(
            f"codes from {low} to {high} were to be packed; expected -1, 0 and 1: quantise the weights first"
        )
    return record


def pack_weights(weight: Float[Tensor, "out in"], scale: Tensor | float, group: int | None = None) -> PackedTernary:
    """``pack(round(weight / scale) between -1 and 1, scale)``, halves to even, in one pass over the weights.

    With scale = max(mean |weight|, 1e-5) these are BitNet's codes (arXiv:2402.17764 eq. 1 to 3). Raises UsageError where a
    quotient is no number.
    """
    record = _empty(weight.shape, scale, None, group)
    weight = weight.detach().cpu().float().contiguous()
    if native.available():
        wrong = torch.zeros(1, dtype=torch.int64)
        p = native.pointer
        steps = [s if n > 1 else 0 for s, n in zip(record.scale.stride(), record.scale.shape, strict=True)]
        sizes = (record.rows, record.columns, record.group, *steps)
        call = native.function("ternary_pack_weights", "ppppiiiiii")
        call(p(weight), p(record.scale), p(record.tiles), p(wrong), *sizes, _threads())
        fine = not int(wrong)
    else:
        divisor = _by_column(record.scale.expand(record.rows, -1), record)
        codes = (weight / divisor).round_().clamp_(-1, 1)
        fine = not bool(codes.isnan().any())
        record.tiles.copy_(_tiles(codes.nan_to_num_(0.0).to(torch.int8), record))
    if not fine:
        raise UsageError(
            "weights divided by their scale are not all numbers: expected finite weights and scales above 0"
        )
    return record


def unpack(
    packed: PackedTernary,
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, "rows groups"], Float[Tensor, "rows groups"] | None]:
    """Codes, scale and shift."""
    return _codes(packed), packed.scale, packed.shift


def _empty(shape: torch.Size, scale: Tensor | float, shift: Tensor | float | None, group: int | None) -> PackedTernary:
    """A record whose tiles are still to be written."""
    rows, columns = shape
    if rows < 1 or not 1 <= columns <= MOST_COLUMNS:
        raise UsageError(
            f"a matrix of {rows} x {columns} cannot be packed; expected rows, and 1 to {MOST_COLUMNS} columns"
        )
    if group is not None and group < 1:
        raise UsageError(f"group {group}: expected the number of neighbouring columns that share a scale, or None")
    given = [None if g is None else _table(g) for g in (scale, shift)]
    width = columns if group is None or all(g is None or g.shape[1] == 1 for g in given) else min(group, columns)
    groups, blocks = -(-columns // width), -(-rows // SIDE)
    for name, g in zip(("scale", "shift"), given, strict=True):
        if g is not None and (g.shape[0] not in (1, rows) or g.shape[1] not in (1, groups)):
            raise UsageError(
                f"{name} of shape {tuple(g.shape)} for {rows} x {columns} codes in {groups} groups; expected one number, "
                f"[{rows}], or [{rows} or 1, {groups} or 1]"
            )
    s, b = given
    assert s is not None
    return PackedTernary(
        rows=rows,
        columns=columns,
        group=width,
        tiles=torch.empty(blocks, groups * -(-width // SIDE), SIDE * SIDE // 4, dtype=torch.uint8),
        scale=s,
        shift=b,
        scales=_padded(s, rows, groups),
        shifts=None if b is None else _padded(b, rows, groups),
    )


def _table(numbers: Tensor | float) -> Float[Tensor, "rows groups"]:
    t = torch.as_tensor(numbers).detach().to("cpu", torch.float32)
    if t.ndim > 2:
        raise UsageError(
            f"a scale or shift of shape {tuple(t.shape)}; expected one number, one for each row, or two dimensions"
        )
    return (t.reshape(-1, 1) if t.ndim < 2 else t).clone(memory_format=torch.contiguous_format)


def _padded(numbers: Tensor, rows: int, groups: int) -> Float[Tensor, "groups padded_rows"]:
    full = torch.zeros(groups, -(-rows // SIDE) * SIDE)
    full[:, :rows] = numbers.expand(rows, groups).t()
    return full


def _threads() -> int:
    return torch.get_num_threads()


# ---------------------------------------------------------------------- products


def product(
    x: Float[Tensor, "n in"], packed: PackedTernary, out: Float[Tensor, "n out"] | None = None, *, block: int = 0
) -> Float[Tensor, "n out"]:
    """Rows of activations, quantised to int8, times the packed weights, in fp32: see the head of this file. No gradient.

    ``block``: columns of a row that share a scale, a multiple of 64; groups are multiples of it. 0: all. A row that holds a
    NaN or an infinity gives NaN everywhere, the others are not touched by it. Raises UsageError for other blocks.
    """
    _fits(x, packed, block)
    if x.device.type != "cpu" or not native.available():
        y = _elsewhere(x.detach().float(), packed, block)
        return y if out is None else out.copy_(y)
    x = x.detach().float().contiguous()
    if out is None:
        out = torch.empty(len(x), packed.rows)
    prepared(x, packed, out, block=block)()
    return out


def _elsewhere(x: Tensor, packed: PackedTernary, block: int) -> Tensor:
    """Without the compiled library: on a GPU by Triton where that works."""
    if not ternary_triton.usable(str(x.device)):
        return reference(x, packed, block=block)
    q, scale = torch_blocks(x, block) if block else torch_rows(x)
    sizes = {"rows": packed.rows, "group": packed.group, "block": block}
    return ternary_triton.multiply(q, scale, packed.tiles, packed.scales, packed.shifts, **sizes)


def prepared(
    x: Float[Tensor, "n in"], packed: PackedTernary, out: Float[Tensor, "n out"], *, block: int = 0
) -> Callable[[], object]:
    """The call that writes ``product(x, packed, block=block)`` into ``out``, for lists of calls on the same memory.

    ``x`` and ``out`` are contiguous and in fp32.
    """
    _fits(x, packed, block)
    assert out.shape == (len(x), packed.rows), f"out is {tuple(out.shape)}, expected {(len(x), packed.rows)}"
    if not native.available():
        return lambda: out.copy_(reference(x, packed, block=block))
    assert x.dtype == out.dtype == torch.float32
    given = (x, packed.tiles, packed.scales, packed.shifts, out)
    return Call("ternary_product", "rppprniiiit", (*given, len(x), packed.rows, packed.columns, packed.group, block))


def integer_product(q: Int8[Tensor, "n in"], packed: PackedTernary) -> Int32[Tensor, "n out"]:
    """sum over the columns of q * code, exactly; scales play no part."""
    _fits(q, packed)
    q = q.detach().contiguous()
    if q.device.type != "cpu" or not native.available():
        return (q.float() @ _codes(packed).float().t()).to(torch.int32)
    out, p = torch.empty(len(q), packed.rows, dtype=torch.int32), native.pointer
    sizes = (len(q), packed.rows, packed.columns, packed.group, _threads())
    native.function("ternary_integer", "pppiiiii")(p(q), p(packed.tiles), p(out), *sizes)
    return out


def float_product(x: Float[Tensor, "n in"], packed: PackedTernary) -> Float[Tensor, "n out"]:
    """Activations as they are times the packed weights, in fp32, for models whose activations are not quantised.

        y[t, o] = sum_g (w_scale[o, g] sum of x[t] code[o] + w_shift[o, g] sum of x[t])

    Columns are summed one after the other: results depend neither on other rows nor on threads. No gradient.
    """
    _fits(x, packed)
    x = x.detach().float().contiguous()
    if x.device.type != "cpu" or not native.available():
        return _scaled(x, _codes(packed).float(), packed)
    out, p = torch.empty(len(x), packed.rows), native.pointer
    given = (p(x), p(packed.tiles), p(packed.scales), p(packed.shifts), p(out))
    sizes = (len(x), packed.rows, packed.columns, packed.group, _threads())
    native.function("ternary_float", "pppppiiiii")(*given, *sizes)
    return out


# ---------------------------------------------------------------------- the same in torch


def reference(x: Float[Tensor, "n in"], packed: PackedTernary, *, block: int = 0) -> Float[Tensor, "n out"]:
    """What ``product`` must give to the last bit: a training-time forward pass on unpacked codes.

    Sums of products of whole numbers stay below 2^24, where fp32 is exact in any order.
    """
    _fits(x, packed, block)
    x, codes = x.detach().float(), _codes(packed).float()
    if block:
        q, scale = torch_blocks(x, block)
        return _scaled(q.float(), codes, packed, scale, block)
    q, scale = torch_rows(x)
    return _scaled(q.float(), codes, packed) * scale[:, None]


def _scaled(x: Tensor, codes: Tensor, packed: PackedTernary, s: Tensor | None = None, block: int = 0) -> Tensor:
    """Over groups in order, or with the scales ``s`` [n, blocks] of activations over blocks."""
    total: Tensor | None = None
    width = min(packed.group, block) if block else packed.group
    for i, start in enumerate(range(0, packed.columns, width)):
        part, g = slice(start, start + width), start // packed.group
        w, b = packed.scales[g, : packed.rows], None if packed.shifts is None else packed.shifts[g, : packed.rows]
        if s is not None:
            w, b = w * s[:, i, None], None if b is None else b * s[:, i, None]
        y = (x[:, part] @ codes[:, part].t()) * w
        if b is not None:
            y = y + x[:, part].sum(1, keepdim=True) * b
        total = y if total is None else total + y
    assert total is not None
    return total


def _fits(x: Tensor, packed: PackedTernary, block: int = 0) -> None:
    if x.ndim != 2 or x.shape[1] != packed.columns or x.device != packed.tiles.device:
        raise UsageError(
            f"activations of shape {tuple(x.shape)} on {x.device} for a packed {packed.rows} x {packed.columns} matrix on "
            f"{packed.tiles.device}; expected [n, {packed.columns}] there"
        )
    if block < 0 or block % SIDE or (block and packed.groups > 1 and packed.group % block):
        raise UsageError(
            f"blocks of {block} activations for groups of {packed.group} weights; expected a multiple of {SIDE} of which "
            "the group is a multiple"
        )


def _by_column(numbers: Tensor, packed: PackedTernary) -> Tensor:
    """One number for each column out of one for each group."""
    return numbers.repeat_interleave(packed.group, 1)[:, : packed.columns] if numbers.shape[1] > 1 else numbers


def _spread(packed: PackedTernary) -> Tensor:
    """Where each column stands among the columns of the tiles."""
    column = torch.arange(packed.columns, device=packed.tiles.device)
    return column // packed.group * (-(-packed.group // SIDE) * SIDE) + column % packed.group


def _tiles(codes: Tensor, packed: PackedTernary) -> Tensor:
    """The layout of ``csrc/ternary.cpp``: byte (quad, n, j) holds rows n, n + 16, n + 32, n + 48 at column 4 quad + j."""
    blocks, across, _ = packed.tiles.shape
    digits = torch.ones(blocks * SIDE, across * SIDE, dtype=torch.uint8)
    digits[: packed.rows, _spread(packed)] = (codes + 1).to(torch.uint8)
    planes = digits.view(blocks, 4, 16, across, 16, 4).permute(0, 3, 4, 2, 5, 1)
    return (planes * torch.tensor([1, 4, 16, 64], dtype=torch.uint8)).sum(-1, dtype=torch.uint8).view_as(packed.tiles)


def _codes(packed: PackedTernary) -> Int8[Tensor, "out in"]:
    if packed.tiles.device.type == "cpu" and native.available():
        out, p = torch.empty(packed.rows, packed.columns, dtype=torch.int8), native.pointer
        sizes = (packed.rows, packed.columns, packed.group, _threads())
        native.function("ternary_unpack", "ppiiii")(p(packed.tiles), p(out), *sizes)
        return out
    blocks, across, _ = packed.tiles.shape
    planes = torch.stack([packed.tiles >> shift & 3 for shift in (0, 2, 4, 6)])  # [plane, block, across, byte]
    digits = planes.view(4, blocks, across, 16, 16, 4).permute(1, 0, 4, 2, 3, 5).reshape(blocks * SIDE, across * SIDE)
    return digits[: packed.rows, _spread(packed)].to(torch.int8) - 1
