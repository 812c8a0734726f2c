"""An output head in whole numbers: int8 weights by row, int8 activations by token, exact sums.

    y[t, o] = (D[t, o] w_scale[o]) s[t],    D[t, o] = sum of round(x[t] / s[t]) round(w[o] / w_scale[o])

with both scales the largest magnitude of the row over 127 (``triloop.kernels.int8``). A head of 32,000 tokens is most of
what a small ternary model reads for a token; a byte a weight is a quarter of fp32. Learner and sampler call one product, so
they get the same logits bit for bit. The embedding, tied or not, is looked up in full precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from triloop.errors import ConfigError
from triloop.kernels import int8
from triloop.kernels.products import OwnProduct
from triloop.kernels.rows import quantise_rows
from triloop.ternary.linear import stamp

__all__ = ["Int8Head"]

AT_ONCE = 1024
"""Rows of the weight that a gradient reads as numbers at once: at a width of 1536 they stay in a cache of 8 MB."""


class Int8Head(nn.Module, OwnProduct):
    """logits = Q(x) Q(weight)^T, in fp32.

    Of a linear it takes over ``weight``; tied to an embedding it has no parameter of its own. Gradients pass the rounding
    of both sides as if it were not there: dL/dx = dL/dy w_hat, dL/dweight = dL/dy^T x_hat.

    The packed weight is kept from call to call until the weight may have changed, as in ``TernaryLinear``; a gradient that
    arrives at the weight drops it, wherever in the network it came from.
    """

    weight: nn.Parameter | None

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        # A list hides it from torch: the embedding's weight is no parameter of this module.
        self._tied: list[nn.Embedding] = []
        self.weight = None
        if isinstance(source, nn.Embedding):
            self._tied.append(source)
        elif isinstance(source, nn.Linear) and isinstance(source.weight, nn.Parameter) and source.bias is None:
            self.weight = source.weight
        else:
            raise ConfigError(
                f"an int8 head was to be made of {type(source).__name__}; expected a linear without bias, or the "
                "embedding that it is tied to"
            )
        self._kept: tuple[object, int8.PackedInt8] | None = None
        self._watch: RemovableHandle | None = None

    @property
    def latent(self) -> Float[Tensor, "vocab hidden"]:
        """The weight that is trained."""
        return self._tied[0].weight if self.weight is None else self.weight

    def codes(self) -> tuple[Int8[Tensor, "vocab hidden"], Float[Tensor, " vocab"]]:
        """Codes and scales as they now stand."""
        return int8.unpack(self.packed())

    def packed(self) -> int8.PackedInt8:
        """The weight as the kernels read it; again when it has changed."""
        weight = self.latent
        mark = stamp(weight)
        if self._kept is not None and mark is not None and self._kept[0] == mark:
            return self._kept[1]
        self.forget()
        packed = int8.pack_weights(weight)
        if mark is not None:
            self._kept = (mark, packed)
            if weight.requires_grad:
                self._watch = weight.register_post_accumulate_grad_hook(lambda _: self.forget())
        return packed

    def forget(self) -> None:
        """Drop what is kept from call to call."""
        self._kept = None
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocab"]:
        """Logits, in fp32 whatever ``x`` is."""
        rows, weight = x.reshape(-1, x.shape[-1]).float(), self.latent
        if torch.is_grad_enabled() and (rows.requires_grad or weight.requires_grad):
            y: Tensor = _Product.apply(rows, weight, self.packed())
        else:
            y = int8.product(rows, self.packed())
        return y.view(*x.shape[:-1], len(weight))

    def into(self, x: Float[Tensor, "n in"], out: Float[Tensor, "n out"]) -> Callable[[], object]:
        """The product on fixed memory."""
        if x.dtype != torch.float32 or out.dtype != torch.float32:
            return lambda: out.copy_(self(x))
        return int8.prepared(x, self.packed(), out)

    def extra_repr(self) -> str:
        """What ``print`` tells."""
        vocab, hidden = self.latent.shape
        return f"{hidden}, {vocab}, int8 by row, activations int8" + (", tied" if self._tied else "")

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without what is kept."""
        return {**self.__dict__, "_kept": None, "_watch": None}


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, packed: int8.PackedInt8) -> Tensor:
        ctx.save_for_backward(*quantise_rows(x))
        ctx.packed, ctx.type = packed, weight.dtype
        return int8.product(x, packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        q, scale = ctx.saved_tensors
        to_x = to_weight = None
        with torch.autocast(grad.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                codes, w_scale = int8.unpack(ctx.packed)
                to_x, room = grad.new_zeros(q.shape), grad.new_empty(AT_ONCE, q.shape[1])
                for g, c, s in zip(grad.split(AT_ONCE, 1), codes.split(AT_ONCE), w_scale.split(AT_ONCE), strict=True):
                    to_x.addmm_(g * s, room[: len(c)].copy_(c))
            if ctx.needs_input_grad[1]:
                to_weight = (grad.t() @ (q * scale[:, None])).to(ctx.type)
        return to_x, to_weight, None
