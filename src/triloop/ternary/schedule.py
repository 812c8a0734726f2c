"""Numbers by step for training with quantised weights. Pure and free of torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from triloop.errors import ConfigError

__all__ = ["LayerwiseBlend", "depths", "trilm"]


@dataclass(frozen=True, kw_only=True)
class LayerwiseBlend:
    """How much of each layer is quantised at a step: from 0 to 1, one layer after another (arXiv:2505.08823 section 3).

    The first layer starts at step 0 and the last comes to 1 at ``steps``; each takes ``(1 - spread) steps`` for it.
    """

    steps: int
    """Updates until every layer is quantised."""
    spread: float = 0.5
    """Of the time, how much lies between the start of the first layer and that of the last: 0 moves all together."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.spread < 1:
            raise ConfigError(f"a blend needs steps >= 1 and spread in [0, 1); got {self.steps} and {self.spread}")

    def share(self, step: int, layer: int, layers: int) -> float:
        """For layer ``layer`` of ``layers`` (from 0) after ``step`` updates."""
        start = self.spread * layer / (layers - 1) if layers > 1 else 0.0
        if step >= self.steps:
            return 1.0  # exactly: only then is the product one of whole numbers
        return min(1.0, max(0.0, (step / self.steps - start) / (1 - self.spread)))

    def shares(self, step: int, names: Iterable[str]) -> dict[str, float]:
        """For linears by name, as ``set_blend`` takes them."""
        depth = depths(names)
        layers = max(depth.values(), default=0) + 1
        return {name: self.share(step, d, layers) for name, d in depth.items()}


def depths(names: Iterable[str]) -> dict[str, int]:
    """Which layer each linear belongs to, counted in the order they come: what stands before and at its first number.

    ``layers.0.qkv`` and ``layers.0.out`` are one layer; a name without a number is one of its own.
    """
    order: dict[str, int] = {}
    found: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        last = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        found[name] = order.setdefault(".".join(parts[: last + 1]), len(order))
    return found


def trilm(step: int, steps: int, *, peak: float, later_peak: float, weight_decay: float) -> tuple[float, float]:
    """(learning rate, weight decay) at ``step`` of ``steps`` for a ternary model from scratch (Spectra, arXiv:2407.12327).

    The rate falls in a line towards 0 at the end, from ``peak`` in the first half and as if from ``later_peak`` in the
    second; weight decay ends at two thirds.
    """
    if not 0 <= step < steps:
        raise ConfigError(f"step {step} is not one of {steps}")
    top = peak if 2 * step < steps else later_peak
    return top * (1 - step / steps), weight_decay if 3 * step < 2 * steps else 0.0
