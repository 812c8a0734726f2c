from __future__ import annotations

import torch
import torch.nn.functional as F

from triloop.nn.fused import rms_norm, rotated, swiglu
from triloop.nn.rope import rotate


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_swiglu_is_the_plain_expression_and_its_gradient() -> None:
    x = numbers(5, 6).requires_grad_()
    gate, up = x.chunk(2, dim=-1)
    assert torch.allclose(swiglu(x), F.silu(gate) * up)
    assert torch.allclose(swiglu(x.detach()), F.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, x)


def test_rms_norm_is_the_plain_expression_and_its_gradient() -> None:
    x, weight = numbers(3, 2, 4).requires_grad_(), numbers(4, seed=1).requires_grad_()
    plain = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    assert torch.allclose(rms_norm(x, weight, 1e-5), plain)
    with torch.no_grad():
        assert torch.allclose(rms_norm(x, weight, 1e-5), plain)
    assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-5), (x, weight))
    zero = torch.zeros(1, 4, requires_grad=True)
    rms_norm(zero, torch.ones(4), 1e-6).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_rotation_and_its_gradient() -> None:
    x, angle = numbers(3, 2, 4).requires_grad_(), numbers(3, 1, 2, seed=1)
    cos, sin = torch.cat((angle.cos(),) * 2, -1), torch.cat((-angle.sin(), angle.sin()), -1)
    assert torch.equal(rotated(x, cos, sin), rotate(x, cos, sin))
    assert torch.autograd.gradcheck(lambda a: rotated(a, cos, sin), x)
