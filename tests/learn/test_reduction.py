from __future__ import annotations

import math
from functools import partial

import jaxtyping
import pytest
import torch

from triloop.learn.reduction import Denominators, fixed_length, sequence_mean, token_mean

LOSSES = torch.tensor([[1.0, 3.0, math.nan, math.nan], [2.0, 2.0, 2.0, 4.0]])
MASK = torch.tensor([[True, True, False, False], [True, True, True, True]])
WHOLE = Denominators(tokens=6, sequences=2, max_tokens=5)
REDUCTIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "fixed_length": fixed_length}
every_reduction = pytest.mark.parametrize("name", REDUCTIONS)


@pytest.mark.parametrize(("name", "expected"), [("token_mean", 14 / 6), ("sequence_mean", 2.25), ("fixed_length", 1.4)])
def test_value_by_hand(name: str, expected: float) -> None:
    assert REDUCTIONS[name](LOSSES, MASK, WHOLE).item() == pytest.approx(expected)


@every_reduction
def test_pieces_add_up_to_the_whole(name: str) -> None:
    """Gradient accumulation: each piece is divided by the whole's counts."""
    losses = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(4) < torch.tensor([1, 4, 2, 3, 4, 2])[:, None]
    whole = Denominators(tokens=float(mask.sum()), sequences=6, max_tokens=4)
    reduce = partial(REDUCTIONS[name], denominators=whole)
    parts = reduce(losses[:1], mask[:1]) + reduce(losses[1:4], mask[1:4]) + reduce(losses[4:], mask[4:])
    torch.testing.assert_close(parts, reduce(losses, mask))


@every_reduction
def test_nothing_to_reduce_is_zero(name: str) -> None:
    nothing = Denominators(tokens=0, sequences=0, max_tokens=5)
    assert REDUCTIONS[name](LOSSES, torch.zeros_like(MASK), nothing).item() == 0


@every_reduction
def test_wrong_shape_is_refused(name: str) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        REDUCTIONS[name](LOSSES, MASK[:1], WHOLE)


def test_at_equal_lengths_all_three_agree() -> None:
    losses, mask = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.ones(3, 4, dtype=torch.bool)
    whole = Denominators(tokens=12, sequences=3, max_tokens=4)
    first, *rest = (reduce(losses, mask, whole) for reduce in REDUCTIONS.values())
    for other in rest:
        torch.testing.assert_close(other, first)
