"""The quantised product: whole numbers are multiplied and summed first, scales come after.

    y[t, o] = x_scale[t] (sum_g w_scale[o, g] D[t, o, g] + w_shift[o, g] S[t, g]) + zero W[o]
    y[t, o] = sum_b (w_scale[o, g] x_scale[t, b]) D[t, o, b] + (w_shift[o, g] x_scale[t, b]) S[t, b]

the second where blocks b of activations have scales of their own, and g is the group that b lies in. With D[t, o, g] = sum
of x_codes w_codes over the inputs of group g, S[t, g] = sum of x_codes, W[o] = sum of w_hat. D and S are whole numbers
below 2^24 for up to 16,500 inputs of four-bit codes, 132,000 of ternary ones: fp32 holds them exactly whatever the order of
summation, and so do TF32 products. The packed kernels compute the same D in int32 and go on in the same order, each step
rounded (``triloop.kernels.ternary``): learner and sampler get the same numbers to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from triloop.ternary.activations import Rows
from triloop.ternary.quantisers import Quantised

__all__ = ["multiply", "product"]


def multiply(rows: Rows, weight: Quantised) -> Float[Tensor, "n out"]:
    """The product of what both stand for, in fp32; no gradient."""
    x = rows.codes.float()
    y = _scaled(x, weight, rows)
    if rows.scale is not None and not rows.block:
        y.mul_(rows.scale)
    if rows.zero is not None:
        y.add_(rows.zero * _scaled(torch.ones_like(x[:1]), weight))
    return y


def _scaled(x: Tensor, weight: Quantised, rows: Rows | None = None) -> Tensor:
    """sum_g scale D + shift S, over blocks of ``rows`` where it has some."""
    columns, groups = x.shape[1], weight.scale.shape[1]
    group = columns if groups == 1 else weight.group
    s = rows.scale if rows is not None and rows.block else None
    width = group if rows is None or s is None else min(rows.block, group)
    total: Tensor | None = None
    for i, start in enumerate(range(0, columns, width)):
        part, g = slice(start, start + width), start // group
        w, b = weight.scale[:, g], None if weight.shift is None else weight.shift[:, g]
        if s is not None:
            w, b = w * s[:, i, None], None if b is None else b * s[:, i, None]
        xg = x[:, part]
        y = (xg @ weight.codes[:, part].float().t()).mul_(w)
        if b is not None:
            y.add_(xg.sum(1, keepdim=True) * b)  # rounded before it is added, as the kernels do
        total = y if total is None else total.add_(y)
    assert total is not None
    return total


def product(
    x_hat: Float[Tensor, "n in"], w_hat: Float[Tensor, "out in"], rows: Rows, weight: Quantised
) -> Float[Tensor, "n out"]:
    """``multiply(rows, weight)``, through which gradients flow to ``x_hat`` and ``w_hat``: dL/dy w_hat and dL/dy^T x_hat.

    Of both only the codes are kept for that, a byte each.
    """
    return _Product.apply(x_hat, w_hat, rows, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, w_hat: Tensor, rows: Rows, weight: Quantised) -> Tensor:
        ctx.save_for_backward(rows.codes, rows.scale, rows.zero, weight.codes, weight.scale, weight.shift)
        ctx.group, ctx.block, ctx.type = weight.group, rows.block, x_hat.dtype
        with torch.autocast(x_hat.device.type, enabled=False):
            return multiply(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_codes, x_scale, zero, codes, scale, shift = ctx.saved_tensors
        to_x = to_w = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                to_x = (grad @ Quantised(codes=codes, scale=scale, shift=shift, group=ctx.group).dense()).to(ctx.type)
            if ctx.needs_input_grad[1]:
                to_w = grad.t() @ Rows(codes=x_codes, scale=x_scale, zero=zero, block=ctx.block).dense()
        return to_x, to_w, None, None
