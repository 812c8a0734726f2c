"""One linear whose weight is quantised in every forward pass while a latent weight of higher precision is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triloop.errors import ConfigError
from triloop.kernels import ternary as kernels
from triloop.kernels.products import OwnProduct
from triloop.kernels.train import product_type
from triloop.ternary import activations
from triloop.ternary.config import TernaryConfig
from triloop.ternary.gradients import trained
from triloop.ternary.product import multiply, product
from triloop.ternary.quantisers import Quantised, initial, quantise

__all__ = ["TernaryLinear", "stamp"]

UNIT_NORMAL_SIZE = 0.8
"""Mean |x| of normed activations: where elastic scales start before they have seen any."""


class TernaryLinear(nn.Module, OwnProduct):
    """y = Q(norm(x)) Q(weight)^T + bias.

    ``weight`` and ``bias`` keep the names they had in the linear. Beside them there may be ``weight_scale`` and
    ``weight_shift`` (learned), ``input_scale`` and ``input_zero`` (elastic activations) and ``norm_weight``, all vectors so
    that optimisers which decay matrices leave them alone, and the buffer ``blend`` (gradual).

    With gradients off the codes are kept from call to call until a parameter may have changed: torch's count of changes
    tells, except of fused optimisers, which do not count (torch 2.13). So a backward pass through the layer drops what was
    kept, and nothing is kept while a gradient waits to be applied. ``forget`` is for what is changed behind all of that:
    through ``parameter.data``, or by a fused step on gradients that were set by hand.
    """

    blend: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, config: TernaryConfig) -> None:
        super().__init__()
        self.config = config
        self.out_features, self.in_features = weight.shape
        self.weight = _parameter(
            weight
        )  # the same object where it is one: weights may be tied, and optimisers hold them
        self.bias = None if bias is None else _parameter(bias)
        start = initial(weight, config)
        self.weight_scale = nn.Parameter(start["scale"].reshape(-1)) if "scale" in start else None
        self.weight_shift = nn.Parameter(start["shift"].reshape(-1)) if "shift" in start else None
        elastic, on = config.activations == "elastic", weight.device
        first = activations.elastic_start(UNIT_NORMAL_SIZE, config.activation_bits)
        self.input_scale = nn.Parameter(torch.full((1,), first, device=on)) if elastic else None
        self.input_zero = nn.Parameter(torch.zeros(1, device=on)) if elastic else None
        self.norm_weight = nn.Parameter(torch.ones(self.in_features, device=on)) if config.norm else None
        self.register_buffer("blend", torch.zeros((), device=on) if config.gradual else None)
        self._kept: tuple[object, Quantised] | None = None
        self._packed: tuple[object, kernels.PackedTernary] | None = None

    @classmethod
    def of(cls, linear: nn.Linear, config: TernaryConfig) -> TernaryLinear:
        """Around the parameters of ``linear``."""
        return cls(linear.weight, linear.bias, config)

    def extra_repr(self) -> str:
        """What ``print`` tells."""
        c = self.config
        return f"{self.in_features}, {self.out_features}, {c.quantiser} per {c.shared_by}, activations {c.activations}"

    # ------------------------------------------------------------------ parts

    def learned(self) -> dict[str, Float[Tensor, "rows groups"]]:
        """The quantiser's trained numbers, as its functions take them."""
        rows = 1 if self.config.shared_by == "tensor" else self.out_features
        both = {"scale": self.weight_scale, "shift": self.weight_shift}
        return {name: p.view(rows, -1) for name, p in both.items() if p is not None}

    @property
    def share(self) -> float:
        """How much of the product is quantised: 1, or where the gradual schedule stands."""
        return 1.0 if self.blend is None else float(self.blend)

    def quantised(self) -> Quantised:
        """The weight's codes and scales as they now stand."""
        stamp = self._stamp()
        if self._kept is None or stamp is None or self._kept[0] != stamp:
            self._kept = (stamp, quantise(self.weight, self.config, self.learned()))
        return self._kept[1]

    def fused_bias(self) -> Float[Tensor, " out"] | None:
        """What is added to the quantised product, in fp32: the bias and what the quantiser adds to it."""
        return self._sum(self.quantised().bias if self.config.kind.bias else None)

    def _sum(self, more: Tensor | None) -> Tensor | None:
        own = None if self.bias is None else self.bias.float()
        if own is None or more is None:
            return more if own is None else own
        return own + more

    def normed(self, x: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """The rows that are quantised: fp32, behind the extra norm where there is one."""
        x = x.float()
        if self.norm_weight is None:
            return x
        return F.rms_norm(x, (self.in_features,), self.norm_weight.float(), self.config.norm_eps)

    # ------------------------------------------------------------------ the product

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """The answer has the type that ``nn.Linear`` would give it; everything before is fp32."""
        rows, share = self.normed(x.reshape(-1, self.in_features)), self.share
        if share < 1:
            y = self._blended(rows, share)
        elif torch.is_grad_enabled():
            y = self._trained(rows)
        else:
            y = self._kept_product(rows)
        return y.to(product_type(x)).view(*x.shape[:-1], self.out_features)

    def _rows(self, x: Tensor) -> tuple[Tensor, activations.Rows]:
        c = self.config
        return activations.quantised(c.activations, x, self.input_scale, self.input_zero, c.activation_bits)

    def _differentiable(self) -> tuple[Tensor, Tensor | None, Quantised]:
        w_hat, more, weight = trained(self.weight, self.config, self.learned())
        if w_hat.requires_grad:
            w_hat.register_hook(lambda _: self.forget())
        return w_hat, more, weight

    def _trained(self, x: Tensor) -> Tensor:
        w_hat, more, weight = self._differentiable()
        x_hat, rows = self._rows(x)
        y = product(x_hat, w_hat, rows, weight)
        bias = self._sum(more)
        return y if bias is None else y + bias

    def _kept_product(self, x: Tensor) -> Tensor:
        packable, block = self.config.kind.packable, activations.PACKED.get(self.config.activations)
        if packable and block is not None:
            y = kernels.product(x, self._pack(), block=block)
        elif packable and x.device.type == "cpu" and self.config.activations == "none":
            y = kernels.float_product(x, self._pack())
        else:
            y = multiply(self._rows(x)[1], self.quantised())
        bias = self.fused_bias()
        return y if bias is None else y.add_(bias)

    def _blended(self, x: Tensor, share: float) -> Tensor:
        """Weight and activations on the way from latent to quantised (arXiv:2505.08823); at share 0 the plain linear."""
        w_hat, more, _ = self._differentiable()
        x_hat, rows = self._rows(x)
        with torch.autocast(x.device.type, enabled=False):
            w = torch.lerp(self.weight.float(), w_hat, share)
            seen = x_hat + share * (rows.dense() - x_hat).detach() if self.input_scale is None else x.lerp(x_hat, share)
            return F.linear(seen, w, self._sum(None if more is None else more * share))

    # ------------------------------------------------------------------ packed

    def unpackable(self) -> str | None:
        """Why the packed kernels cannot compute this product; None when they can."""
        c = self.config
        if not c.kind.packable:
            return f"the quantiser {c.quantiser} has codes {c.kind.codes}, the kernels know -1, 0 and 1"
        if c.activations not in activations.PACKED:
            return f"activations are {c.activations}, the kernels read {' and '.join(activations.PACKED)}"
        if self.share < 1:
            return f"the gradual schedule stands at {self.share:.3g}; it must have come to 1"
        return None

    def prepared(self) -> kernels.PackedTernary:
        """The weight packed for ``kernels.product(normed(x), prepared()) + fused_bias()``; again when it has changed.

        With activations int8-256 the product takes ``block=256``.
        Raises ConfigError where the kernels cannot compute the product.
        """
        why = self.unpackable()
        if why is not None:
            raise ConfigError(f"this layer cannot be packed: {why}")
        return self._pack()

    def _pack(self) -> kernels.PackedTernary:
        stamp = self._stamp()
        if self._packed is None or stamp is None or self._packed[0] != stamp:
            q = self.quantised()
            packed = kernels.pack(q.codes, q.scale, q.shift, q.group or None)
            self._packed = (stamp, kernels.moved(packed, self.weight.device))
        return self._packed[1]

    def into(self, x: Float[Tensor, "n in"], out: Float[Tensor, "n out"]) -> Callable[[], object]:
        """The packed product on fixed memory where the kernels can compute it, else the forward pass."""
        plain = self.unpackable() is None and self.norm_weight is None and x.dtype == out.dtype == torch.float32
        if not plain:
            return lambda: out.copy_(self(x))
        block = activations.PACKED[self.config.activations]
        multiply, bias = kernels.prepared(x, self.prepared(), out, block=block), self.fused_bias()
        if bias is None:
            return multiply

        def both() -> None:
            multiply()
            out.add_(bias)

        return both

    def forget(self) -> None:
        """Drop what is kept from call to call."""
        self._kept = self._packed = None

    def _stamp(self) -> object:
        """Changes whenever a parameter does; None where that cannot be known, and nothing must be kept."""
        return stamp(*(p for p in (self.weight, self.weight_scale, self.weight_shift) if p is not None))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without what is kept."""
        return {**self.__dict__, "_kept": None, "_packed": None}


def stamp(*parameters: Tensor) -> object:
    """Changes whenever one of them does, but for fused optimisers; None while a gradient waits to be applied and where
    torch does not count changes: then nothing must be kept."""
    if any(p.grad is not None or p.is_inference() for p in parameters):
        return None
    return tuple((p.data_ptr(), p._version) for p in parameters)


def _parameter(x: Tensor) -> nn.Parameter:
    return x if isinstance(x, nn.Parameter) else nn.Parameter(x)
