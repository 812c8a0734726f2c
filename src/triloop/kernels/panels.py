"""Products in fp32: with weights that are laid out once and then read from front to back (``csrc/matmul.inc``), and of
matrices as they stand (``csrc/product.inc``).

A library's product lays the weights out anew in every call. For the few hundred rows of a decoding step that costs up to a
third of it, for four or eight rows more than the product itself. Every number of the answer is one chain of multiply-adds
over the inputs, in their order, so that it depends neither on the other rows nor on threads: a token's logits are the same
in whatever batch it is sampled, and the same again when the learner reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from triloop.kernels import native
from triloop.kernels.calls import Call, Count
from triloop.kernels.train import product_type

__all__ = ["Known", "Product", "lay_out", "multiply", "prepared", "room", "tally", "usable"]

WIDEST = 32
"""Outputs of a panel, at most."""


def usable(x: Tensor, weight: Tensor) -> bool:
    """Whether this product is one of fp32 numbers on the processor, and the kernels are there."""
    fp32 = x.dtype == weight.dtype == product_type(x) == torch.float32
    return fp32 and x.device.type == weight.device.type == "cpu" and native.available()


def room(outputs: int, inputs: int) -> Float[Tensor, " numbers"]:
    """Memory for a weight [outputs, inputs]."""
    return torch.empty(-(-outputs // WIDEST) * WIDEST * inputs)


def lay_out(
    weight: Float[Tensor, "out in"], panels: Float[Tensor, " numbers"], *, transposed: bool = False
) -> Float[Tensor, " numbers"]:
    """``weight``, or its transpose, into memory from ``room``; the memory."""
    rows, columns = weight.shape
    p = native.pointer
    native.function("pack_panels", "ppiiii")(
        p(weight), p(panels), rows, columns, int(transposed), torch.get_num_threads()
    )
    return panels


def prepared(
    x: Float[Tensor, "n in"],
    panels: Float[Tensor, " numbers"],
    bias: Tensor | None,
    out: Float[Tensor, "n out"],
    count: Count | None = None,
) -> Call:
    """The call that writes x weight^T + bias into ``out``, for lists of calls on the same memory, all of it contiguous.
    ``count``: of so many first rows, as it then stands."""
    rows = len(x) if count is None else count
    return Call("panel_product", "rpprniit", (x, panels, bias, out, rows, x.shape[1], out.shape[1]))


def tally() -> tuple[int, float]:
    """Operations (two for each multiply-add) and seconds of all these products in this process so far."""
    if not native.available():
        return 0, 0.0
    out = torch.zeros(2, dtype=torch.int64)
    native.function("panel_tally", "p")(native.pointer(out))
    pairs, nanoseconds = out.tolist()
    return 2 * pairs, nanoseconds / 1e9


def multiply(
    left: Float[Tensor, "_ _"],
    right: Float[Tensor, "_ _"],
    bias: Float[Tensor, " outputs"] | None = None,
    *,
    left_across: bool = False,
    right_across: bool = False,
) -> Float[Tensor, "rows outputs"]:
    """left [rows, terms] times right [terms, outputs], plus bias; ``across``: its transpose is what is given.

    Nothing is laid out for later (``csrc/product.inc``); the bits are those of ``prepared``, for any number of threads.
    """
    left, right = left.contiguous(), right.contiguous()
    bias = None if bias is None else bias.contiguous()
    rows, terms = left.shape[::-1] if left_across else left.shape
    inputs, outputs = right.shape[::-1] if right_across else right.shape
    assert terms == inputs, f"{rows} rows of {terms} terms cannot multiply {inputs} rows of {outputs}"
    assert bias is None or len(bias) == outputs
    out, p = left.new_empty(rows, outputs), native.pointer
    native.function("product", "ppppiiiiii")(
        p(left), p(right), p(bias), p(out), rows, terms, outputs, left_across, right_across, torch.get_num_threads()
    )
    return out


class Product(torch.autograd.Function):
    """x weight^T + bias of rows x [n, in], weight [out, in] and bias [out] or None, where ``usable`` allows it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias, right_across=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad)


class Known(torch.autograd.Function):
    """A ``Product`` whose answer [n, out] is known: only its gradients are computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, answer: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return answer

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad), None


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
    return (
        multiply(grad, weight) if to_x else None,
        multiply(grad, x, left_across=True) if to_weight else None,
        grad.sum(0) if to_bias else None,
    )
