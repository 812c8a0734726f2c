"""The int8 output head: its numbers, its gradients, and when the packed weight is made anew."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from triloop.errors import ConfigError
from triloop.kernels import int8, ternary
from triloop.ternary import head as module
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import ternarise
from triloop.ternary.head import Int8Head

VOCAB, HIDDEN = 70, 24


def made(tied: bool = False) -> tuple[nn.Module, Int8Head]:
    torch.manual_seed(0)
    source = nn.Embedding(VOCAB, HIDDEN) if tied else nn.Linear(HIDDEN, VOCAB, bias=False)
    return source, Int8Head(source)


def inputs(n: int = 5) -> Tensor:
    return torch.randn(n, HIDDEN, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tied", [False, True])
def test_trained_and_packed_product_are_one(tied: bool) -> None:
    source, head = made(tied)
    expected = int8.product(inputs(), int8.pack_weights(source.weight.detach()))
    x = inputs().requires_grad_()
    assert torch.equal(head(x), expected) and head(x).requires_grad
    with torch.no_grad():
        assert torch.equal(head(x), expected)
        out = torch.empty(5, VOCAB)
        head.into(x.detach(), out)()
        assert torch.equal(out, expected)
    assert head(x.view(5, 1, HIDDEN)).shape == (5, 1, VOCAB)
    plain = x @ source.weight.t()
    assert 0 < (plain - expected).abs().max() < 0.03 * plain.abs().max()


@pytest.mark.parametrize("at_once", [1024, 7])
def test_gradients_pass_the_rounding(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    source, head = made()
    x, g = inputs().requires_grad_(), torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(2))
    codes, scale = head.codes()
    q, s = ternary.quantise_rows(x)
    head(x).backward(g)
    torch.testing.assert_close(x.grad, g @ (codes * scale[:, None]))
    torch.testing.assert_close(source.weight.grad, g.t() @ (q * s[:, None]))


def test_a_tied_head_has_no_parameter_and_trains_the_embedding() -> None:
    embed, head = made(tied=True)
    assert not list(head.parameters()) and not head.state_dict() and head.weight is None
    x = embed(torch.tensor([1, 2]))
    head(x).sum().backward()
    q, s = ternary.quantise_rows(x)
    by_head = torch.ones(VOCAB, 2) @ (q * s[:, None])
    codes, scale = head.codes()
    by_lookup = torch.zeros(VOCAB, HIDDEN)
    by_lookup[[1, 2]] = (codes * scale[:, None]).sum(0)
    torch.testing.assert_close(embed.weight.grad, by_head + by_lookup)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("through", ["head", "embedding alone"])
def test_new_weights_are_seen(fused: bool, through: str) -> None:
    """Fused optimisers do not count as changes of a parameter, and the gradient may come past the head."""
    embed, head = made(tied=True)
    optimiser = torch.optim.AdamW(embed.parameters(), lr=0.1, fused=fused)
    with torch.no_grad():
        before = head(inputs())
        assert head.packed() is head.packed()
    loss = head(inputs()) if through == "head" else embed(torch.arange(VOCAB))
    loss.square().sum().backward()
    assert head.packed() is not head.packed(), "a gradient waits"
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    with torch.no_grad():
        after = head(inputs())
    assert torch.equal(after, int8.product(inputs(), int8.pack_weights(embed.weight.detach())))
    assert not torch.equal(after, before)


def test_a_copy_is_its_own() -> None:
    embed, head = made(tied=True)
    both = nn.ModuleDict({"embed": embed, "head": head})
    with torch.no_grad():
        before = head(inputs())
        other = copy.deepcopy(both)
        other["embed"].weight.mul_(-1)
        assert torch.equal(other["head"](inputs()), -before) and torch.equal(head(inputs()), before)


def test_in_bf16_the_weight_is_quantised_as_it_is() -> None:
    source, head = made()
    source.to(torch.bfloat16)
    x, out = inputs().bfloat16(), torch.empty(5, VOCAB)
    with torch.no_grad():
        y = head(x)
        head.into(x, out)()
    assert y.dtype == torch.float32 and torch.equal(out, y)
    assert torch.equal(y, int8.product(x.float(), int8.pack_weights(source.weight.detach().float())))
    head(x).sum().backward()
    assert source.weight.grad.dtype == torch.bfloat16


def test_what_cannot_be_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="of Linear; expected a linear without bias"):
        Int8Head(nn.Linear(3, 4))
    with pytest.raises(ConfigError, match="of ReLU"):
        Int8Head(nn.ReLU())
    with pytest.raises(ConfigError, match="head 'int4' is none of full, int8"):
        TernaryConfig(head="int4")
    with pytest.raises(ConfigError, match="head int8 is of a policy's output head"):
        ternarise(nn.Sequential(nn.Linear(3, 4)), TernaryConfig(head="int8"), ("*",))
