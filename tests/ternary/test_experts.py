"""A mixture of experts: who is chosen, what comes out, and that the biases balance it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from triloop.errors import ConfigError
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import linears
from triloop.ternary.experts import Experts, GatedMLP, chosen, imbalance, nudged


def _block(**settings: object) -> Experts:
    torch.manual_seed(0)
    return Experts(12, 8, 6, 2, **settings)  # type: ignore[arg-type]


def test_the_bias_chooses_and_does_not_weigh() -> None:
    affinity = torch.tensor([[0.9, 0.6, 0.3]], requires_grad=True)
    who, gates = chosen(affinity, torch.tensor([0.0, 0.0, 0.5]), 2)
    assert sorted(who[0].tolist()) == [0, 2]
    assert dict(zip(who[0].tolist(), gates[0].tolist(), strict=True)) == pytest.approx({0: 0.75, 2: 0.25})
    gates[0, 0].backward()
    assert affinity.grad is not None and float(affinity.grad[0, 1]) == 0.0 and float(affinity.grad[0, 0]) != 0.0


def test_biases_and_imbalance_by_hand() -> None:
    load = torch.tensor([6.0, 2.0, 4.0, 4.0])
    assert nudged(torch.zeros(4), load, 0.5).tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert imbalance(load) == 0.5 and imbalance(torch.zeros(3)) == 0.0


@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("config", [None, TernaryConfig()], ids=["fp32", "ternary"])
def test_sorting_by_expert_changes_nothing(shared: int, config: TernaryConfig | None) -> None:
    """Against every expert on every token, weighted by its gate or 0."""
    block = _block(shared=shared, config=config).eval()
    block.bias.copy_(torch.linspace(-0.2, 0.2, 6))
    x = torch.randn(2, 7, 12)
    who, gates = chosen(block.router(x.view(-1, 12)).sigmoid(), block.bias, 2)
    weights = torch.zeros(14, 6).scatter(1, who, gates)
    every = torch.stack([expert(x.view(-1, 12)) for expert in block.experts], dim=1)
    expected = (weights[..., None] * every).sum(dim=1).view_as(x)
    if block.shared is not None:
        expected = expected + block.shared(x)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_ternary_by_choice_router_never() -> None:
    made = linears(_block(shared=4, config=TernaryConfig()))
    assert len(made) == 3 * 7 and "router" not in made
    assert not linears(_block(shared=4))


def test_experts_that_nobody_asks_get_no_gradient() -> None:
    block = _block()
    block.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0, 0.0, 0.0]))
    block(torch.randn(5, 12)).square().sum().backward()
    grads = [expert.up.weight.grad for expert in block.experts if isinstance(expert, GatedMLP)]
    assert all(g is not None and float(g.abs().sum()) > 0 for g in grads[:2])
    assert grads[2:] == [None] * 4


def test_loads_are_counted_in_training_and_forgotten() -> None:
    block = _block(rate=0.1)
    block.eval()(torch.randn(50, 12))
    assert float(block.load.sum()) == 0
    block.train()(torch.randn(50, 12))
    load = block.balance()
    assert float(load.sum()) == 100 and float(block.load.sum()) == 0
    assert block.bias.tolist() == pytest.approx((0.1 * (load.mean() - load).sign()).tolist())


@pytest.mark.parametrize(("rate", "even"), [(0.01, True), (0.0, False)])
def test_the_biases_balance_skewed_tokens(rate: float, even: bool) -> None:
    block = _block(rate=rate)
    g = torch.Generator().manual_seed(1)
    centre = torch.randn(12, generator=g)
    for _ in range(200):
        block(centre + 0.3 * torch.randn(300, 12, generator=g))
        load = block.balance()
    assert (imbalance(load) < 0.3) is even


def test_it_learns() -> None:
    block = _block(shared=4, rate=0.01, config=TernaryConfig())
    g = torch.Generator().manual_seed(2)
    x = torch.randn(256, 12, generator=g)
    y = torch.where(x[:, :1] > 0, x.roll(1, dims=1), -x)
    optimiser = torch.optim.AdamW(block.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(block(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        block.balance()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("wrong", [(4, 8, 4, 5), (4, 8, 4, 0), (4, 0, 4, 1)])
def test_impossible_shapes_are_refused(wrong: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError, match="experts"):
        Experts(*wrong)
