"""Log-probabilities and entropies in slices equal those of the whole matrix, and so do their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triloop.policies.statistics import token_statistics

HIDDEN = torch.randn(23, 8, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(11, 8, generator=torch.Generator().manual_seed(1))
TARGETS = torch.randint(0, 11, (23,), generator=torch.Generator().manual_seed(2))


def computed(
    whole: int, *, temperature: float = 1.0, entropy: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    hidden, weight = HIDDEN.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    largest = 0

    def logits_of(h: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(h) * len(weight))
        return h @ weight.T

    logps, entropies = token_statistics(
        logits_of, hidden, TARGETS, vocab_size=11, temperature=temperature, entropy=entropy, whole=whole
    )
    (logps.sin().sum() + 0.3 * entropies.square().sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    return logps.detach(), entropies.detach(), hidden.grad, weight.grad, largest


def test_against_the_definition() -> None:
    logps, entropies, *_ = computed(10**6, temperature=0.7)
    expected = torch.log_softmax(HIDDEN @ WEIGHT.T / 0.7, -1)
    torch.testing.assert_close(logps, expected[torch.arange(23), TARGETS])
    torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=expected).entropy())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("entropy", [True, False])
def test_slices_equal_the_whole_and_stay_small(temperature: float, entropy: bool) -> None:
    *whole, size = computed(10**6, temperature=temperature, entropy=entropy)
    *sliced, largest = computed(50, temperature=temperature, entropy=entropy)
    assert size == 23 * 11 and largest <= 50
    for a, b in zip(whole, sliced, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_one_row_is_the_least() -> None:
    assert computed(1)[-1] == 11
