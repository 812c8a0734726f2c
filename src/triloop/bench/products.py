"""How much of a run is matrix products: those that torch computes are noted as they occur, and computed again alone.

What remains is everything else: attention, which has kernels of its own, norms, rotation, sampling, optimiser, host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Product", "noted", "replayed"]

_OPS: Mapping[Any, Callable[..., Tensor]] = {
    torch.ops.aten.mm.default: torch.mm,
    torch.ops.aten.mm.out: torch.mm,
    torch.ops.aten.addmm.default: torch.addmm,
    torch.ops.aten.addmm.out: torch.addmm,
    torch.ops.aten.bmm.default: torch.bmm,
    torch.ops.aten.bmm.out: torch.bmm,
}


@dataclass(frozen=True, slots=True)
class _Layout:
    """All of a tensor but its numbers."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> _Layout:
        return cls(tuple(x.shape), x.stride(), x.dtype, x.device)

    def fresh(self) -> Tensor:
        x = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return x.fill_(0.5)


@dataclass(frozen=True, slots=True)
class Product:
    """One call, without its numbers. Without ``out`` the answer was a tensor of its own, as in learning."""

    op: Callable[..., Tensor]
    given: tuple[_Layout, ...]
    out: _Layout | None

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        left, right = self.given[-2:]
        found = 2 * left.shape[-2] * left.shape[-1] * right.shape[-1]
        return found * (left.shape[0] if len(left.shape) == 3 else 1)


class _Notes(TorchDispatchMode):
    """Hears every operation, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in _OPS:
            given = tuple(_Layout.of(x) for x in args if isinstance(x, Tensor))
            out = options.get("out")
            self.found.append(Product(_OPS[func], given, None if out is None else _Layout.of(out)))
        return func(*args, **options)


@contextmanager
def noted() -> Iterator[list[Product]]:
    """The products of what happens in here, in their order."""
    notes = _Notes()
    with notes:
        yield notes.found


def replayed(products: list[Product]) -> float:
    """Seconds for all of them, in their order, at the same shapes and layouts. The second time counts."""
    sources = {x: x.fresh() for p in products for x in p.given}
    answers = {p.out: p.out.fresh() for p in products if p.out is not None}
    calls = [(p.op, [sources[x] for x in p.given], {} if p.out is None else {"out": answers[p.out]}) for p in products]
    cuda = any(layout.device.type == "cuda" for layout in sources)
    seconds = 0.0
    with torch.no_grad():
        for _ in range(2):
            t0 = perf_counter()
            for op, given, out in calls:
                op(*given, **out)
            if cuda:
                torch.cuda.synchronize()
            seconds = perf_counter() - t0
    return seconds
