"""Two bits a code in files: there and back, by hand, and what is refused."""

from __future__ import annotations

import pytest
import torch

from triloop.errors import DataError
from triloop.kernels.two_bits import from_two_bits, to_two_bits


def test_by_hand() -> None:
    """Digits 2, 1, 0, 1, then 0 and three places that are filled with the digit 1."""
    packed = to_two_bits(torch.tensor([[1, 0, -1, 0, -1]], dtype=torch.int8))
    assert packed.tolist() == [[2 + 4 * 1 + 0 + 64 * 1, 0 + 4 + 16 + 64]]


@pytest.mark.parametrize("shape", [(1,), (4,), (7, 1), (3, 4), (5, 63), (2, 3, 130), (0, 5), (3, 0)])
def test_there_and_back(shape: tuple[int, ...]) -> None:
    codes = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.int8)
    packed = to_two_bits(codes)
    assert packed.shape == (*shape[:-1], (shape[-1] + 3) // 4)
    assert torch.equal(from_two_bits(packed, shape[-1]), codes)


def test_all_bytes() -> None:
    """The 81 bytes of four digits below 3 are read; the other 175 are refused."""
    read = 0
    for byte in range(256):
        data = torch.tensor([byte], dtype=torch.uint8)
        if 3 in [byte >> i & 3 for i in (0, 2, 4, 6)]:
            with pytest.raises(DataError, match="digit 3"):
                from_two_bits(data, 4)
        else:
            assert torch.equal(to_two_bits(from_two_bits(data, 4)), data)
            read += 1
    assert read == 81


def test_refused() -> None:
    with pytest.raises(DataError, match="codes from 0 to 2"):
        to_two_bits(torch.tensor([0, 2], dtype=torch.int8))
    with pytest.raises(DataError, match="rows of 2 bytes"):
        from_two_bits(torch.zeros(3, 2, dtype=torch.uint8), 9)
