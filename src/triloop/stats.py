"""The one evaluator: intervals and paired tests that every comparison of Triloop uses.

Python's own arithmetic where a closed form exists; numpy (imported inside the function) only for resampling, so that
importing this module costs nothing. Resampling is seeded through ``triloop.rng``: the same values and seed give the same
interval on any machine. Wrong input raises ``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Interval",
    "binomial_two_sided",
    "bootstrap_mean",
    "control_variate",
    "mcnemar",
    "paired_difference",
    "pass_at_k",
    "sign_test",
    "two_proportion_z",
    "two_proportions",
    "wilson",
]

_CELLS = 2_000_000
"""Most numbers that one block of resampling holds in memory at once (16 MB)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval; ``n`` is how many independent units it rests on."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, point: float) -> bool:
        """Whether ``point`` lies outside the interval."""
        return point < self.low or point > self.high


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a rate.

        (p + z^2/2n  +-  z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)

    Wilson 1927. Keeps its coverage near 0 and 1, where the normal interval has none."""
    if n <= 0 or not 0 <= successes <= n:
        raise ValueError(f"a rate needs 0 <= successes <= n and n > 0; got {successes} of {n}")
    z = _quantile(level)
    p = successes / n
    scale = 1.0 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    # rounding must not push the interval off its own estimate
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, level: float = 0.95, resamples: int = 4000) -> Interval:
    """Percentile bootstrap of a mean (Efron 1979). With several samples per prompt, pass one mean per prompt.

    Fewer than about ten values make the interval too narrow: that is the bootstrap's own limit.
    """
    import numpy as np

    from triloop import rng

    x = _vector(values, "bootstrap_mean")
    _check_level(level)
    draw = rng.generator(seed, "bootstrap", len(x), resamples)
    block = max(1, min(resamples, _CELLS // len(x)))
    means = np.concatenate(
        [
            x[draw.integers(0, len(x), size=(min(block, resamples - done), len(x)))].mean(axis=1)
            for done in range(0, resamples, block)
        ]
    )
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return Interval(float(x.mean()), float(low), float(high), len(x))


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0, level: float = 0.95, resamples: int = 4000
) -> Interval:
    """Mean of ``a[i] - b[i]`` with its paired bootstrap interval; entry ``i`` of both is the same problem."""
    return bootstrap_mean(_differences(a, b), seed=seed, level=level, resamples=resamples)


def sign_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided p of "neither side wins more often", exact binomial over the pairs that differ; ties are left out."""
    differences = _differences(a, b)
    return binomial_two_sided(sum(d > 0 for d in differences), sum(d != 0 for d in differences))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Two-sided exact p of McNemar's test (1947) on paired outcomes: do ``a`` and ``b`` pass equally often?"""
    return sign_test([float(bool(x)) for x in a], [float(bool(y)) for y in b])


def two_proportions(successes_a: int, n_a: int, successes_b: int, n_b: int, level: float = 0.95) -> Interval:
    """Difference of two independent rates, ``a - b``, with Newcombe's hybrid score interval (1998, method 10)."""
    a, b = wilson(successes_a, n_a, level), wilson(successes_b, n_b, level)
    difference = a.value - b.value
    low = difference - math.hypot(a.value - a.low, b.high - b.value)
    high = difference + math.hypot(a.high - a.value, b.value - b.low)
    return Interval(difference, low, high, n_a + n_b)


def two_proportion_z(rate_a: float, n_a: float, rate_b: float, n_b: float) -> float:
    """z of the difference of two independent rates under the pooled null; 0 where both are 0 or both are 1."""
    if n_a <= 0 or n_b <= 0 or not (0 <= rate_a <= 1 and 0 <= rate_b <= 1):
        raise ValueError(f"rates lie in [0, 1] over n > 0; got {rate_a} of {n_a} and {rate_b} of {n_b}")
    pooled = (rate_a * n_a + rate_b * n_b) / (n_a + n_b)
    variance = pooled * (1 - pooled) * (1 / n_a + 1 / n_b)
    return (rate_a - rate_b) / math.sqrt(variance) if variance > 0 else 0.0


def control_variate(
    values: Sequence[float], control: Sequence[float], control_mean: float, level: float = 0.95
) -> Interval:
    """Mean of ``values`` made sharper by a correlated ``control`` whose true mean is known.

        mean(v) - beta (mean(c) - control_mean),   beta = cov(v, c) / var(c)

    Normal interval from the residual variance on n - 2 degrees of freedom, so n of 30 and more is meant. A constant
    control changes nothing. Lavenberg and Welch 1981.
    """
    v, c = _vector(values, "control_variate"), _vector(control, "control_variate")
    n = len(v)
    if len(c) != n or n < 3:
        raise ValueError(f"values and control need the same length of at least 3; got {n} and {len(c)}")
    spread = c - c.mean()
    power = float(spread @ spread)
    beta = float(spread @ v) / power if power > 0 else 0.0
    residual = v - v.mean() - beta * spread
    value = float(v.mean()) - beta * (float(c.mean()) - control_mean)
    # what estimating beta adds to the variance
    leverage = (float(c.mean()) - control_mean) ** 2 / power if power > 0 else 0.0
    error = math.sqrt(float(residual @ residual) / (n - 2) * (1 / n + leverage))
    half = _quantile(level) * error
    return Interval(value, value - half, value + half, n)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of ``k`` samples passes, from ``correct`` of ``n``: 1 - C(n-c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374 eq. 1."""
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n; got n={n}, correct={correct}, k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def binomial_two_sided(successes: int, n: int) -> float:
    """Two-sided exact p of ``successes`` of ``n`` throws of a fair coin; 1.0 for no throw at all."""
    if not 0 <= successes <= n:
        raise ValueError(f"a coin needs 0 <= successes <= n; got {successes} of {n}")
    tail = sum(math.comb(n, i) for i in range(min(successes, n - successes) + 1))
    # integers up to the one division: 2**n leaves the range of floats at n = 1024
    return min(1.0, 2 * tail / 2**n) if n else 1.0


def _differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"pairs need two equally long, non-empty lists; got {len(a)} and {len(b)}")
    return [float(x) - float(y) for x, y in zip(a, b, strict=True)]


def _vector(values: Sequence[float], who: str) -> NDArray[np.float64]:
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not bool(np.isfinite(x).all()):
        raise ValueError(f"{who} needs a non-empty list of finite numbers; got shape {x.shape}: drop failures first")
    return x


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"a confidence level lies between 0 and 1, such as 0.95; got {level}")


def _quantile(level: float) -> float:
    """Two-sided normal quantile: 1.96 at 0.95."""
    _check_level(level)
    return NormalDist().inv_cdf(0.5 + level / 2.0)
