"""Products are all noted, with their shapes and layouts, and computed again as they were."""

from __future__ import annotations

import pytest
import torch

from triloop.bench.case import Case
from triloop.bench.model import config_of
from triloop.bench.products import noted, replayed
from triloop.bench.rollout import Rollout
from triloop.bench.train import Train
from triloop.bench.work import attention_flops, decoding, head_flops, learning, prefill, token_flops
from triloop.kernels.native import available
from triloop.kernels.panels import tally


def test_each_product_once_with_its_layout() -> None:
    x, w, b = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True), torch.randn(5)
    into = torch.empty(3, 5)
    with noted() as found:
        torch.mm(x, w.detach().t(), out=into)
        torch.addmm(b, x, w.detach().t())
        torch.bmm(torch.randn(2, 3, 4), torch.randn(2, 4, 6))
        torch.nn.functional.linear(x, w).sum().backward()  # there, and back to the weight
        (x * 2).sum()
    assert [p.op for p in found] == [torch.mm, torch.addmm, torch.bmm, torch.mm, torch.mm]
    assert [p.flops for p in found] == [2 * 3 * 4 * 5] * 2 + [2 * 2 * 3 * 4 * 6] + [2 * 3 * 4 * 5] * 2
    first = found[0]
    assert first.given[1].shape == (4, 5) and first.given[1].strides == (1, 4), "a transposed view, as it was"
    assert first.out is not None and first.out.shape == (3, 5) and found[1].out is None
    assert replayed(found) > 0


def test_square_products_do_not_write_over_what_they_read() -> None:
    x = torch.eye(4)
    with noted() as found:
        torch.mm(x, x, out=torch.empty(4, 4))
    replayed(found)


@pytest.mark.skipif(not available(), reason="the compiled kernels are not built")
@pytest.mark.parametrize("name", ["rollout", "train"])
def test_what_is_noted_is_what_the_floor_counts(name: str) -> None:
    """Up to attention, which no product computes here, and what the counting leaves out or in: see below."""
    case = Case(name=name, size="0.2m", batch=16, length=8, precision="fp32")
    made = Rollout(case) if name == "rollout" else Train(case)
    c, s = config_of("0.2m"), made.samples
    before, seconds = tally()
    with noted() as found:
        made.work(1)
    own, later = tally()
    assert own > before and later > seconds
    flops = own - before + sum(p.flops for p in found)
    steps, prompts = s.length - 1, len(s.prompts)
    attention = sum(attention_flops(c, 0, p) + s.group * attention_flops(c, p, p + steps) for p in s.prompts)
    if name == "train":
        counted = learning(c, s, 4).flops - 3 * attention
        assert flops == pytest.approx(counted, rel=0.1), "completions that begin alike are computed once"
    else:
        counted = (prefill(c, s, 4) + decoding(c, s, 4)).flops - attention
        assert flops == pytest.approx(counted, rel=0.1), "rows are rounded up to a multiple of 4"
    assert flops > prompts * (token_flops(c) + head_flops(c))
