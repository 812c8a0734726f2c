"""The codec of five trits a byte: codes -1, 0 and 1 in base 3, 1.6 bits each where information theory asks for 1.585.

Every row (the last dimension) is packed by itself: n codes become ``packed_length(n)`` = ceil(n / 5) bytes. With b bytes
in a row, byte j holds the codes at j, j + b, j + 2b, j + 3b and j + 4b as base-3 digits, the first one the lowest:

    byte_j = sum_i 3^i (code[j + i b] + 1),      i = 0 .. 4

so that packing and unpacking are arithmetic on five neighbouring stretches of memory instead of steps of five. Places
beyond the end of a row hold the digit 1, which is code 0. A byte says at most 3^5 - 1 = 242; the other 13 values are no
codes, and are refused.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

from triloop.errors import DataError

__all__ = ["HIGHEST", "PER_BYTE", "from_trits", "packed_length", "to_trits"]

PER_BYTE = 5
"""Codes in a byte: 3^5 = 243 is the largest power of three that a byte can count."""
HIGHEST = 3**PER_BYTE - 1
"""The largest byte that means something: five times the digit 2."""


def packed_length(n: int) -> int:
    """Bytes of a row of ``n`` codes."""
    return -(-n // PER_BYTE)


def to_trits(codes: Int8[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows bytes"]:
    """Codes -1, 0 and 1 as bytes, each row by itself; flatten first to pack a whole tensor.

    Raises DataError for any other code.
    """
    if codes.numel():
        low, high = (int(v) for v in torch.aminmax(codes))
        if low < -1 or high > 1:
            raise DataError(
                f"codes from {low} to {high} were to be packed as trits; expected -1, 0 and 1: quantise the tensor first"
            )
    n = codes.shape[-1]
    size = packed_length(n)
    digits = np.ones((*codes.shape[:-1], PER_BYTE * size), dtype=np.uint8)
    np.add(codes.detach().cpu().numpy(), 1, out=digits[..., :n], casting="unsafe")
    digits = digits.reshape(*codes.shape[:-1], PER_BYTE, size)
    packed = digits[..., PER_BYTE - 1, :].copy()
    for i in reversed(range(PER_BYTE - 1)):
        packed *= 3
        packed += digits[..., i, :]
    return torch.from_numpy(packed).to(codes.device)


def from_trits(packed: UInt8[Tensor, "*rows bytes"], n: int) -> Int8[Tensor, "*rows n"]:
    """The codes of rows of ``n``: the inverse of ``to_trits``.

    Raises DataError where the rows have another length than ``n`` codes need, or a byte is above 242.
    """
    size = packed.shape[-1]
    if size != packed_length(n):
        raise DataError(
            f"rows of {size} bytes were to be read as {n} codes, which take {packed_length(n)}; "
            "the data are cut off, or their shape is another"
        )
    rest = packed.detach().cpu().numpy()
    if rest.size and (worst := int(rest.max())) > HIGHEST:
        raise DataError(
            f"a byte of packed trits is {worst}; expected 0 to {HIGHEST}: the data are damaged, make them again"
        )
    digits = np.empty((*packed.shape[:-1], PER_BYTE, size), dtype=np.uint8)
    for i in range(PER_BYTE):
        whole = rest // np.uint8(3)
        np.subtract(rest, whole * np.uint8(3), out=digits[..., i, :])
        rest = whole
    codes = digits.reshape(*packed.shape[:-1], PER_BYTE * size).view(np.int8)[..., :n]
    return torch.from_numpy(codes - np.int8(1)).to(packed.device)
