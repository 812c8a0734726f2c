"""Quantised linears and heads that were read from a file: codes and scales without the weight they were made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triloop.errors import ModelError
from triloop.kernels import int8
from triloop.kernels import ternary as kernels
from triloop.kernels.products import OwnProduct
from triloop.ternary import activations
from triloop.ternary.product import multiply
from triloop.ternary.quantisers import Quantised

__all__ = ["FixedHead", "FixedLinear", "QuantisedLinear", "fixed_linears"]


@dataclass(frozen=True, kw_only=True)
class QuantisedLinear:
    """One linear of the decoder as it samples: y = weight Q(norm(x)) + bias."""

    weight: Quantised
    """Its own ``bias`` is None here: it is part of ``bias``."""
    bias: Float[Tensor, " out"] | None = None
    """The linear's bias and what the quantiser adds to it, in fp32."""
    activations: str = "int8"
    """How its input is quantised: int8, int8-256, none or elastic."""
    activation_bits: int = 8
    input_scale: Float[Tensor, " 1"] | None = None
    """Of elastic activations, with ``input_zero``."""
    input_zero: Float[Tensor, " 1"] | None = None
    norm: Float[Tensor, " in"] | None = None
    """Weight of the extra RMS norm before the product."""
    norm_eps: float = 1e-6


class FixedLinear(nn.Module, OwnProduct):
    """y = weight Q(norm(x)) + bias, the numbers of the TernaryLinear it was. It samples and scores; it cannot learn."""

    def __init__(self, linear: QuantisedLinear) -> None:
        super().__init__()
        weight = linear.weight
        self.out_features, self.in_features = weight.codes.shape
        packable = linear.activations in (*activations.PACKED, "none") and int(weight.codes.abs().max()) <= 1
        self.packed = kernels.pack(weight.codes, weight.scale, weight.shift, weight.group or None) if packable else None
        # A byte for each code beside the packed two bits would be most of the memory.
        self._given = linear if self.packed is None else _with_codes(linear, weight.codes[:0, :0].clone())

    @property
    def linear(self) -> QuantisedLinear:
        """What it was made from."""
        return self._given if self.packed is None else _with_codes(self._given, kernels.unpack(self.packed)[0])

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Raises ModelError where a gradient is asked for."""
        _no_gradient(x)
        y = self._product(self._normed(x.reshape(-1, self.in_features).float()))
        if self._given.bias is not None:
            y = y + self._given.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def into(self, x: Float[Tensor, "n in"], out: Float[Tensor, "n out"]) -> Callable[[], object]:
        """The product on fixed memory, by the kernels where nothing but int8 activations stands before it."""
        given, block = self._given, activations.PACKED.get(self._given.activations)
        if self.packed is None or block is None or given.norm is not None or x.dtype != torch.float32:
            return lambda: out.copy_(self(x))
        product, bias = kernels.prepared(x, self.packed, out, block=block), given.bias
        return product if bias is None else lambda: (product(), out.add_(bias))

    def _product(self, rows: Tensor) -> Tensor:
        if self.packed is None:
            return multiply(self._rows(rows), self._given.weight)
        block = activations.PACKED.get(self._given.activations)
        if block is None:
            return kernels.float_product(rows, self.packed)
        return kernels.product(rows, self.packed, block=block)

    def _normed(self, x: Tensor) -> Tensor:
        norm = self._given.norm
        return x if norm is None else F.rms_norm(x, (self.in_features,), norm, self._given.norm_eps)

    def _rows(self, x: Tensor) -> activations.Rows:
        g = self._given
        return activations.quantised(g.activations, x, g.input_scale, g.input_zero, g.activation_bits)[1]

    def extra_repr(self) -> str:
        """What ``print`` tells."""
        return f"{self.in_features}, {self.out_features}, fixed codes"

    def _apply(self, fn: Any, recurse: bool = True) -> FixedLinear:
        _stays(fn)
        return self


class FixedHead(nn.Module, OwnProduct):
    """logits = Q(x) codes^T by row scales, the numbers of the Int8Head it was. It samples and scores; it cannot learn."""

    def __init__(self, weight: Quantised) -> None:
        super().__init__()
        self.packed = int8.pack(weight.codes, weight.scale[:, 0])

    @property
    def quantised(self) -> Quantised:
        """Codes, and a scale for each row."""
        codes, scale = int8.unpack(self.packed)
        return Quantised(codes=codes, scale=scale[:, None])

    @property
    def weight(self) -> Float[Tensor, "vocab hidden"]:
        """The matrix that the codes stand for."""
        return self.quantised.dense()

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocab"]:
        """Logits in fp32. Raises ModelError where a gradient is asked for."""
        _no_gradient(x)
        rows = int8.product(x.reshape(-1, self.packed.columns).float(), self.packed)
        return rows.view(*x.shape[:-1], self.packed.rows)

    def into(self, x: Float[Tensor, "n in"], out: Float[Tensor, "n out"]) -> Callable[[], object]:
        """The product on fixed memory."""
        if x.dtype != torch.float32 or out.dtype != torch.float32:
            return lambda: out.copy_(self(x))
        return int8.prepared(x, self.packed, out)

    def _apply(self, fn: Any, recurse: bool = True) -> FixedHead:
        _stays(fn)
        return self


def _no_gradient(x: Tensor) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise ModelError(
            "a packed policy holds codes and no weights to train: it samples and scores. Start training from the "
            "run's own checkpoint, or from --format hf."
        )


def _stays(fn: Any) -> None:
    # `.to(device)` and the like: codes lie in the kernels' layout, which is the processor's.
    probe = fn(torch.zeros(1))
    if probe.device.type != "cpu":
        raise ModelError(f"a packed policy runs on the processor, got device {probe.device}; choose --device cpu")


def _with_codes(linear: QuantisedLinear, codes: Tensor) -> QuantisedLinear:
    return replace(linear, weight=replace(linear.weight, codes=codes))


def fixed_linears(module: nn.Module) -> dict[str, FixedLinear]:
    """Those of ``module`` by name; empty when it was not read from packed weights."""
    return {name: m for name, m in module.named_modules() if isinstance(m, FixedLinear)}
