"""A diagonal recurrence: the scan is the loop, a state goes on, and negative transitions count modulo two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears
from triloop.ternary.scan import DiagonalScan, scan


def _loop(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    found = []
    for t in range(a.shape[1]):
        start = a[:, t] * start + b[:, t]
        found.append(start)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("time", [1, 2, 3, 7, 8, 33])
def test_the_scan_is_the_loop_gradients_too(time: int) -> None:
    g = torch.Generator().manual_seed(time)
    a = (2 * torch.rand(3, time, 5, generator=g, dtype=torch.float64) - 1).requires_grad_(True)
    b = torch.randn(3, time, 5, generator=g, dtype=torch.float64, requires_grad=True)
    start = torch.randn(3, 5, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, time, 5, generator=g, dtype=torch.float64)
    fast, slow = scan(a, b, start), _loop(a, b, start)
    torch.testing.assert_close(fast, slow)
    for x, y in zip(
        torch.autograd.grad((fast * weight).sum(), (a, b, start)),
        torch.autograd.grad((slow * weight).sum(), (a, b, start)),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_signs_alone_count_modulo_two() -> None:
    bits = torch.randint(0, 2, (4, 1000, 1))
    h = scan(1.0 - 2.0 * bits, torch.zeros(4, 1000, 1), torch.ones(4, 1))
    assert torch.equal(h, 1.0 - 2.0 * (bits.cumsum(dim=1) % 2))


@pytest.mark.parametrize("config", [None, TernaryConfig()], ids=["fp32", "ternary"])
def test_a_state_goes_on(config: TernaryConfig | None) -> None:
    torch.manual_seed(0)
    block = DiagonalScan(8, 16, config).eval()
    x = torch.randn(2, 11, 8)
    whole, end = block(x)
    first, state = block(x[:, :4])
    rest, last = block(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last, end, atol=1e-5, rtol=1e-4)
    assert len(linears(block)) == (0 if config is None else 4)


def test_the_future_is_not_read_and_the_state_is_bounded() -> None:
    torch.manual_seed(0)
    block = DiagonalScan(8, 16).eval()
    x = torch.randn(1, 9, 8)
    changed = x.clone()
    changed[:, 6:] += 1
    assert torch.equal(block(x)[0][:, :6], block(changed)[0][:, :6])
    assert not torch.equal(block(x)[0][:, 6:], block(changed)[0][:, 6:])
    largest = float(block.value(x).detach().abs().max())
    assert float(block(x)[1].detach().abs().max()) <= max(1.0, largest)
