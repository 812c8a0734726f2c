"""The learning rate as a pure function of the step. No torch."""

from __future__ import annotations

import math

from triloop.errors import ConfigError
from triloop.learn.choices import Schedule

__all__ = ["learning_rate"]


def learning_rate(
    step: int, *, peak: float, warmup: int = 0, total: int = 0, shape: Schedule = "constant", floor: float = 0.0
) -> float:
    """Learning rate of optimiser step ``step``, counted from 0.

        ramp:      peak (step + 1) / warmup                                     step < warmup
        constant:  peak
        linear:    peak (floor + (1 - floor) (1 - u))                           u = (step - warmup) / (total - warmup)
        cosine:    peak (floor + (1 - floor) (1 + cos(pi u)) / 2)

    The first step already moves (rate > 0), step ``warmup`` is the first at the peak, and from step ``total`` on the rate
    is ``floor * peak``. ``floor`` is a share of the peak. ``total`` counts the ramp and is read by ``linear`` and
    ``cosine`` alone.
    """
    if step < 0:
        raise ConfigError(f"step={step}: expected at least 0")
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape == "constant":
        return peak
    if total <= 0:
        raise ConfigError(f"schedule={shape!r} needs the total number of steps, got total={total}")
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    left = 1.0 - done if shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return peak * (floor + (1.0 - floor) * left)
