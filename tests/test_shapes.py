"""The shape checker that all other tests lean on is really there."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from triloop.learn.reduction import Denominators, token_mean

COUNTS = Denominators(tokens=4, sequences=2, max_tokens=2)


def test_a_right_shape_passes() -> None:
    assert token_mean(torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bool), COUNTS).item() == 1.0


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool), torch.ones(2, 2)],
    ids=["other length", "a dimension short", "not boolean"],
)
def test_a_wrong_shape_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        token_mean(torch.ones(2, 2), mask, COUNTS)
