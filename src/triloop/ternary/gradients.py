"""Weight quantisers in training: the dense matrix that the codes stand for, with the gradient that its paper gives it.

The functions answer exactly ``Quantised.dense()``; only what flows back differs:

    straight through   dL/dw = dL/dw_hat                        (absmean, absmedian, statistics, twn, binary)
    dead zone          the same, and lambda dL/dbias where the code is 0
    dual               the same; dL/dscale = sum dL/dw_hat codes,   dL/dshift = sum dL/dw_hat
    elastic            dL/dw = dL/dw_hat where w / scale is not clipped, else 0; dL/dscale below
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from triloop.ternary.config import TernaryConfig
from triloop.ternary.quantisers import FLOOR, Quantised, clipping, quantise, spread, steps

__all__ = ["trained"]


def trained(
    w: Float[Tensor, "out in"],
    config: TernaryConfig,
    learned: Mapping[str, Float[Tensor, "rows groups"]] = MappingProxyType({}),
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None, Quantised]:
    """``(w_hat, bias, quantised)``: the first two in fp32 and differentiable in ``w`` and ``learned``, the last not."""
    quantised = quantise(w, config, learned)
    latent = w.float()
    bias = None
    if config.quantiser == "dual":
        return _Dual.apply(latent, learned["scale"], learned["shift"], quantised), None, quantised
    if config.kind.learned:
        return _Elastic.apply(latent, learned["scale"], quantised, config.quantiser), None, quantised
    if config.kind.bias:
        bias = config.dead_zone * (latent * (quantised.codes == 0)).sum(1)
    return _StraightThrough.apply(latent, quantised), bias, quantised


class _StraightThrough(torch.autograd.Function):
    """Bengio et al., arXiv:1308.3432: rounding is passed over as if it were not there."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, quantised: Quantised) -> Tensor:
        return quantised.dense()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Dual(torch.autograd.Function):
    """w_hat = scale codes + shift, both trained (TernaryLLM, arXiv:2406.07177)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, shift: Tensor, quantised: Quantised) -> Tensor:
        ctx.save_for_backward(quantised.codes)
        ctx.group, ctx.shape = quantised.group, scale.shape
        return quantised.dense()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (codes,) = ctx.saved_tensors
        return grad, _gather(grad * codes, ctx.shape, ctx.group), _gather(grad, ctx.shape, ctx.group), None


class _Elastic(torch.autograd.Function):
    """A trained scale ``a``, of which codes are ``steps`` to the whole (LSQ, arXiv:1902.08153 eq. 3; ParetoQ eq. 6).

        d w_hat / d w = 1 where w / a is inside the clipping, else 0
        d w_hat / d a = codes / steps - (w / a where inside, else 0),      binary: codes

    The gradient of ``a`` is divided by sqrt(weights that share it * largest code), as LSQ does (its section 2.2), so that
    scales and weights move at comparable rates. ParetoQ's published code takes for clipped ternary weights the bound of
    the clipping in place of the level; here it is the level, which is what the equation says.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, quantised: Quantised, name: str) -> Tensor:
        ctx.save_for_backward(w, scale, quantised.codes)
        ctx.group, ctx.name = quantised.group, name
        return quantised.dense()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        w, scale, codes = ctx.saved_tensors
        low, high = clipping(ctx.name)
        ratio = w / spread(scale.float().clamp_min(FLOOR), ctx.group, w.shape[1])
        inside = (ratio >= low) & (ratio <= high)
        slope = codes / steps(ctx.name)
        if ctx.name != "paretoq-1":
            slope = slope.sub_(ratio * inside)
        sharing = _gather(torch.ones_like(w), scale.shape, ctx.group)
        largest = max(1.0, high)
        to_scale = _gather(grad * slope, scale.shape, ctx.group) / (sharing * largest).sqrt()
        return grad * inside, to_scale.to(scale.dtype), None, None


def _gather(x: Tensor, shape: torch.Size, group: int) -> Tensor:
    """The sum of ``x`` [out, in] over what shares a number: the transpose of spreading numbers of ``shape``."""
    if shape[1] > 1:
        padded = torch.nn.functional.pad(x, (0, shape[1] * group - x.shape[1]))
        return padded.view(x.shape[0], shape[1], group).sum(2)
    return x.sum(1, keepdim=True) if shape[0] == x.shape[0] else x.sum().view(1, 1)
