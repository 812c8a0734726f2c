"""The plain form of two bits a code, for files: row after row, four neighbouring codes in a byte.

    byte_j = sum_i 4^i (code[4 j + i] + 1),      i = 0 .. 3

Every row (the last dimension) starts a byte of its own; places beyond its end hold the digit 1, which is code 0. The
digit 3 is no code, and is refused. ``triloop.kernels.trits`` takes 1.6 bits a code, and a little longer.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int8, UInt8
from torch import Tensor

from triloop.errors import DataError

__all__ = ["from_two_bits", "to_two_bits"]

PER_BYTE = 4


def to_two_bits(codes: Int8[Tensor, "*rows n"]) -> UInt8[Tensor, "*rows bytes"]:
    """Codes -1, 0 and 1 as bytes. Raises DataError for any other code."""
    if codes.numel():
        low, high = (int(v) for v in torch.aminmax(codes))
        if low < -1 or high > 1:
            raise DataError(f"codes from {low} to {high} were to be stored in two bits; expected -1, 0 and 1")
    n = codes.shape[-1]
    size = -(-n // PER_BYTE)
    digits = np.ones((*codes.shape[:-1], size * PER_BYTE), dtype=np.uint8)
    np.add(codes.detach().cpu().numpy(), 1, out=digits[..., :n], casting="unsafe")
    d = digits.reshape(*codes.shape[:-1], size, PER_BYTE)
    return torch.from_numpy(d[..., 0] | d[..., 1] << 2 | d[..., 2] << 4 | d[..., 3] << 6).to(codes.device)


def from_two_bits(packed: UInt8[Tensor, "*rows bytes"], n: int) -> Int8[Tensor, "*rows n"]:
    """The codes of rows of ``n``: the inverse of ``to_two_bits``.

    Raises DataError where rows have another length than ``n`` codes need, or a digit is 3.
    """
    size = packed.shape[-1]
    if size != -(-n // PER_BYTE):
        raise DataError(
            f"rows of {size} bytes were to be read as {n} codes of two bits, which take {-(-n // PER_BYTE)}; "
            "the data are cut off, or their shape is another"
        )
    data = packed.detach().cpu().numpy()
    if (data & data >> 1 & 0x55).any():
        raise DataError("two bits hold the digit 3, which is no code: the data are damaged, make them again")
    digits = np.stack([data >> (2 * i) & 3 for i in range(PER_BYTE)], axis=-1)
    codes = digits.reshape(*packed.shape[:-1], size * PER_BYTE)[..., :n].view(np.int8)
    return torch.from_numpy(codes - np.int8(1)).to(packed.device)
