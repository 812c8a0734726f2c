"""Step sizes that EF21 is proved for, from how smooth the workers' losses are. arXiv:2106.05203, arXiv:2402.10774."""

from __future__ import annotations

import math
from collections.abc import Sequence

from triloop.errors import ConfigError

__all__ = ["arithmetic_mean", "quadratic_mean", "step_size", "weights", "xi"]


def xi(alpha: float) -> float:
    """(1 + sqrt(1 - alpha)) / alpha - 1: what a compressor of that alpha costs; 0 for a lossless one."""
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha is {alpha}; a contractive compressor's lies above 0 and at most at 1")
    return (1.0 + math.sqrt(1.0 - alpha)) / alpha - 1.0


def arithmetic_mean(smoothness: Sequence[float]) -> float:
    """L_AM = mean_i L_i, with L_i the Lipschitz constant of worker i's gradient."""
    return math.fsum(_checked(smoothness)) / len(smoothness)


def quadratic_mean(smoothness: Sequence[float]) -> float:
    """L_QM = sqrt(mean_i L_i^2), never below L_AM."""
    return math.sqrt(math.fsum(v * v for v in _checked(smoothness)) / len(smoothness))


def weights(smoothness: Sequence[float]) -> tuple[float, ...]:
    """EF21-W's w_i = L_i / sum_j L_j, by rank."""
    total = math.fsum(_checked(smoothness))
    return tuple(v / total for v in smoothness)


def step_size(whole: float, smoothness: Sequence[float], alpha: float, *, arithmetic: bool = True) -> float:
    """The largest step that is proved: gamma = 1 / (L + mean xi(alpha)).

    ``whole`` is L, of the mean of all losses; ``mean`` is L_AM (arXiv:2402.10774, theorems 3 and 4: EF21-W, and EF21 by
    a better analysis), or L_QM as EF21 was first analysed (arXiv:2106.05203, theorem 1). For plain gradient steps: with
    momentum or Adam take this as an upper end.
    """
    mean = arithmetic_mean(smoothness) if arithmetic else quadratic_mean(smoothness)
    if whole <= 0:
        raise ConfigError(f"the smoothness of the whole loss is {whole}; expected above 0")
    return 1.0 / (whole + mean * xi(alpha))


def _checked(smoothness: Sequence[float]) -> Sequence[float]:
    if not smoothness or min(smoothness) <= 0:
        raise ConfigError(f"smoothness constants are {list(smoothness)}; expected one above 0 for each worker")
    return smoothness
