"""Products with operands as they stand, against those on laid-out weights, sums in double precision and a serial chain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.levels import run_at
from kernels.test_panels import product
from triloop.kernels import native, panels
from triloop.kernels.native import available
from triloop.nn.fused import Linear

pytestmark = pytest.mark.skipif(not available(), reason="the compiled kernels are not built")

SHAPES = [(1, 1, 1), (1, 40, 3), (2, 3, 17), (5, 256, 16), (6, 257, 15), (7, 33, 100), (13, 700, 31), (97, 64, 130)]
SHAPES += [(300, 513, 48), (5, 1, 129), (1300, 300, 20)]
"""Rows, terms and outputs: less and more than a tile, a panel, a vector, what is multiplied at once."""


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def operands(rows: int, terms: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows + terms + outputs)
    sizes = ((rows, terms), (terms, outputs), (outputs,))
    left, right, bias = (torch.randn(size, generator=g) for size in sizes)
    return left, right, bias


def all_ways(left: Tensor, right: Tensor, bias: Tensor | None) -> list[Tensor]:
    """The same product with each side as it stands and across."""
    lefts, rights = (left, left.t().contiguous()), (right, right.t().contiguous())
    return [
        panels.multiply(lefts[i], rights[j], bias, left_across=i == 1, right_across=j == 1)
        for i in (0, 1)
        for j in (0, 1)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_same_bits_as_with_weights_laid_out(shape: tuple[int, int, int], number: int, threads: None) -> None:
    left, right, bias = operands(*shape)
    plain, biased = (product(left, right, b, transposed=True) for b in (None, bias))
    torch.set_num_threads(number)
    for found in all_ways(left, right, None):
        assert torch.equal(found, plain)
    for found in all_ways(left, right, bias):
        assert torch.equal(found, biased)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_sum_in_double_precision(shape: tuple[int, int, int]) -> None:
    left, right, bias = operands(*shape)
    exact = left.double() @ right.double() + bias.double()
    size = left.double().abs() @ right.double().abs() + bias.double().abs()
    for found in all_ways(left, right, bias):
        assert bool(((found - exact).abs() <= (shape[1] + 1) * 2.0**-24 * size).all())


def chain(left: Tensor, right: Tensor, *, fused: bool) -> Tensor:
    """One multiply-add after the other; in double precision a product of two fp32 numbers is exact."""
    total = torch.zeros(len(left), right.shape[1])
    for i in range(left.shape[1]):
        term = left[:, i, None].double() * right[None, i].double()
        total = (total.double() + (term if fused else term.float().double())).float()
    return total


@pytest.mark.parametrize("shape", [(7, 40, 19), (64, 300, 33), (20, 1030, 16)])
def test_is_one_chain_in_the_order_of_the_terms(shape: tuple[int, int, int]) -> None:
    """Of fused multiply-adds where the processor has them."""
    left, right, _ = operands(*shape)
    for found in all_ways(left, right, None):
        assert torch.equal(found, chain(left, right, fused=True)) or torch.equal(found, chain(left, right, fused=False))


def test_nothing_to_multiply() -> None:
    assert panels.multiply(torch.ones(0, 4), torch.ones(4, 5)).shape == (0, 5)
    assert panels.multiply(torch.ones(3, 4), torch.ones(4, 0)).shape == (3, 0)
    assert panels.multiply(torch.ones(0, 3), torch.ones(0, 5), left_across=True).tolist() == [[0.0] * 5] * 3
    found = panels.multiply(torch.ones(2, 0), torch.ones(2, 0), torch.tensor([1.0, 2.0]), right_across=True)
    assert found.tolist() == [[1.0, 2.0]] * 2


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(AssertionError, match="cannot multiply"):
        panels.multiply(torch.ones(2, 3), torch.ones(4, 5))


def walled(x: Tensor) -> tuple[Tensor, Tensor]:
    """A copy with no number beside it, and the memory it lies in."""
    memory = torch.full((x.numel() + 64,), float("nan"))
    return memory[32 : 32 + x.numel()].view(x.shape).copy_(x), memory


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_around_is_used_or_changed(shape: tuple[int, int, int]) -> None:
    left, right, bias = operands(*shape)
    expected, p = product(left, right, bias, transposed=True), native.pointer
    for i in (0, 1):
        for j in (0, 1):
            given = [walled(x.contiguous())[0] for x in (left.t() if i else left, right.t() if j else right, bias)]
            out, memory = walled(torch.zeros(shape[0], shape[2]))
            call = native.function("product", "ppppiiiiii")
            call(*map(p, given), p(out), shape[0], shape[1], shape[2], i, j, 1)
            assert torch.equal(out, expected)
            assert bool(memory[:32].isnan().all()) and bool(memory[-32:].isnan().all())


def test_what_is_not_finite_stays_where_it_is() -> None:
    left, right = torch.ones(9, 3), torch.ones(3, 20)
    left[4, 1], right[2, 7] = float("nan"), float("inf")
    for found in all_ways(left, right, None):
        assert bool(found[4].isnan().all()) and bool((found[[0, 8], 7] == float("inf")).all())
        assert bool((found[[0, 1, 2, 3, 5, 6, 7, 8]][:, [*range(7), *range(8, 20)]] == 3).all())


@pytest.mark.parametrize("tokens", [1, 29, 600])
def test_gradients_are_the_same_bits_with_any_number_of_threads(tokens: int, threads: None) -> None:
    g = torch.Generator().manual_seed(tokens)
    layer = Linear(130, 200)
    x, towards = torch.randn(tokens, 130, generator=g, requires_grad=True), torch.randn(tokens, 200, generator=g)
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(torch.autograd.grad((layer(x) * towards).sum(), [x, layer.weight]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    expected = product(towards.t().contiguous(), x.detach(), None, transposed=True)
    assert torch.equal(found[0][1], expected)


@pytest.mark.parametrize("level", ["default", "avx2"])
def test_every_instruction_set_agrees(level: str, tmp_path: Path) -> None:
    where = str(tmp_path / "y")
    run_at(
        level,
        "from kernels.test_multiply import SHAPES, all_ways, operands\n"
        f"torch.save([all_ways(*operands(*s)) for s in SHAPES], {where!r})",
    )
    for shape, found in zip(SHAPES, torch.load(where), strict=True):
        left, right, bias = operands(*shape)
        assert all(torch.equal(found[0], f) for f in found)
        torch.testing.assert_close(found[0], product(left, right, bias, transposed=True), atol=1e-4, rtol=1e-4)
