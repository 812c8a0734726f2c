"""Five trits a byte: the bytes by hand, every byte there is, and any length and shape there and back."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.errors import DataError
from triloop.kernels.trits import HIGHEST, from_trits, packed_length, to_trits


def _codes(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int8)


def test_bytes_by_hand() -> None:
    # two bytes: the first holds places 0, 2 and 4, the second 1, 3 and 5; what is beyond the end is digit 1
    packed = to_trits(_codes([1, 0, -1, 1, 0, -1]))
    assert packed.tolist() == [2 + 0 * 3 + 1 * 9 + 27 + 81, 1 + 2 * 3 + 0 * 9 + 27 + 81]
    assert from_trits(packed, 6).tolist() == [1, 0, -1, 1, 0, -1]


def test_ends_of_the_range() -> None:
    assert to_trits(_codes([-1] * 5)).tolist() == [0]
    assert to_trits(_codes([1] * 5)).tolist() == [HIGHEST] == [242]
    assert to_trits(_codes([0] * 5)).tolist() == to_trits(_codes([0])).tolist() == [121]


def test_every_byte_says_something_else() -> None:
    every = torch.tensor(list(itertools.product((-1, 0, 1), repeat=5)), dtype=torch.int8)
    packed = to_trits(every)
    assert sorted(packed.flatten().tolist()) == list(range(243))
    assert torch.equal(from_trits(packed, 5), every)


@given(st.lists(st.integers(0, 4), min_size=0, max_size=2), st.integers(0, 40), st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_any_shape_comes_back(leading: list[int], n: int, seed: int) -> None:
    codes = torch.randint(-1, 2, (*leading, n), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    packed = to_trits(codes)
    assert packed.shape == (*leading, packed_length(n))
    assert torch.equal(from_trits(packed, n), codes)


def test_rows_are_packed_by_themselves() -> None:
    codes = torch.randint(-1, 2, (7, 23), dtype=torch.int8)
    assert torch.equal(to_trits(codes), torch.stack([to_trits(row) for row in codes]))
    assert torch.equal(to_trits(codes.T.contiguous().T), to_trits(codes))  # strides do not matter


@pytest.mark.parametrize("byte", [243, 255])
def test_a_byte_that_means_nothing_is_refused(byte: int) -> None:
    with pytest.raises(DataError, match=f"is {byte}; expected 0 to 242"):
        from_trits(torch.tensor([0, byte, 0], dtype=torch.uint8), 15)


def test_a_wrong_length_is_refused() -> None:
    with pytest.raises(DataError, match="rows of 2 bytes were to be read as 11 codes, which take 3"):
        from_trits(torch.zeros(2, dtype=torch.uint8), 11)


@pytest.mark.parametrize("code", [2, -2, 127, -128])
def test_another_code_is_refused(code: int) -> None:
    with pytest.raises(DataError, match="expected -1, 0 and 1"):
        to_trits(_codes([0, code]))
