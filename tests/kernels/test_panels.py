"""Products on weights that were laid out, against sums in double precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kernels.levels import run_at
from triloop.kernels import panels
from triloop.kernels.native import available
from triloop.nn.fused import Linear, linear

pytestmark = pytest.mark.skipif(not available(), reason="the compiled kernels are not built")

SHAPES = [(1, 1), (1, 40), (3, 7), (16, 16), (17, 33), (31, 100), (48, 257), (64, 513), (130, 64)]
"""Outputs and inputs: less and more than a panel, than the inputs that are taken at once."""
ROWS = [1, 2, 5, 6, 7, 13, 64, 300]


def product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, transposed: bool = False
) -> torch.Tensor:
    outputs, inputs = weight.shape[::-1] if transposed else weight.shape
    laid_out = panels.lay_out(weight, panels.room(outputs, inputs).fill_(float("nan")), transposed=transposed)
    out = torch.full((len(x), outputs), float("nan"))
    panels.prepared(x, laid_out, bias, out)()
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_sum_in_double_precision(shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    weight, bias = torch.randn(shape, generator=g), torch.randn(shape[0], generator=g)
    for rows in ROWS:
        x = torch.randn(rows, shape[1], generator=g)
        exact = x.double() @ weight.double().t()
        room = 1e-6 * (x.double().abs() @ weight.double().abs().t() + bias.abs())
        assert bool(((product(x, weight, bias) - exact - bias).abs() <= room).all())
        assert bool(((product(x, weight, None) - exact).abs() <= room).all())
        other = product(x, weight.t().contiguous(), None, transposed=True)
        torch.testing.assert_close(other, product(x, weight, None), atol=0, rtol=0)


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]])
    assert product(torch.tensor([[10.0, 1.0]]), weight, torch.tensor([0.0, 1.0, -1.0])).tolist() == [[12.0, 27.0, 4.0]]


def test_neither_company_nor_threads_change_a_bit() -> None:
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(200, 700, generator=g), torch.randn(333, 700, generator=g)
    whole = product(x, weight, None)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for rows in (1, 3, 8, 50, 333):
                torch.testing.assert_close(product(x[-rows:], weight, None), whole[-rows:], atol=0, rtol=0)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_finite_stays_in_its_row() -> None:
    weight, x = torch.ones(20, 3), torch.ones(9, 3)
    x[4, 1] = float("nan")
    x[7, 0] = float("inf")
    found = product(x, weight, None)
    assert bool(found[4].isnan().all()) and bool((found[7] == float("inf")).all())
    assert bool((found[[0, 1, 2, 3, 5, 6, 8]] == 3).all())


@pytest.mark.parametrize("biased", [False, True])
def test_gradients(biased: bool) -> None:
    g = torch.Generator().manual_seed(1)
    layer = Linear(37, 53, bias=biased)
    x, towards = torch.randn(29, 37, generator=g, requires_grad=True), torch.randn(29, 53, generator=g)
    assert panels.usable(x, layer.weight)
    found = torch.autograd.grad((layer(x) * towards).sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad((F.linear(x, layer.weight, layer.bias) * towards).sum(), [x, *layer.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_other_products_are_torch_s() -> None:
    x, weight = torch.randn(2, 3, 4), torch.randn(5, 4)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=0, rtol=0)
    low = linear(x[0].bfloat16(), weight.bfloat16())
    assert low.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x[0], weight).dtype == torch.bfloat16
    assert linear(torch.zeros(0, 4), weight).shape == (0, 5)


def test_what_is_not_contiguous() -> None:
    """Copies that are made on the way live until the product is done."""
    g = torch.Generator().manual_seed(2)
    x, weight = torch.randn(600, 500, generator=g), torch.randn(400, 600, generator=g)
    torch.testing.assert_close(linear(x.t(), weight), linear(x.t().contiguous(), weight), atol=0, rtol=0)
    other = torch.randn(500, 300, generator=g).t()
    torch.testing.assert_close(linear(x, other), linear(x, other.contiguous()), atol=0, rtol=0)


@pytest.mark.parametrize("level", ["default", "avx2"])
def test_every_instruction_set_agrees(level: str, tmp_path: Path) -> None:
    where = str(tmp_path / "y")
    run_at(
        level,
        "from kernels.test_panels import product; g = torch.Generator().manual_seed(0)\n"
        f"torch.save(product(torch.randn(70, 300, generator=g), torch.randn(90, 300, generator=g), None), {where!r})",
    )
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(70, 300, generator=g), torch.randn(90, 300, generator=g)
    torch.testing.assert_close(torch.load(where), product(x, weight, None), atol=1e-4, rtol=1e-5)
