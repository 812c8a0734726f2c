"""Do probabilities mean what they say, how to mend them, and when to answer 0 instead.

``probability`` is a forecast of a yes in [0, 1], ``outcome`` what came (bool); several labels: a table [items labels] and
the true label of each item. For a classifier's ECE pass its top probability and whether its top label was right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from triloop.errors import ConfigError, DataError

__all__ = [
    "Binning",
    "Brier",
    "Conformal",
    "Isotonic",
    "Reliability",
    "brier",
    "conformal",
    "ece",
    "isotonic",
    "log_loss",
    "reliability",
    "temperature",
    "top",
]

Binning = Literal["width", "mass"]
"""Bins of equal width over [0, 1], or of equally many forecasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """A reliability table: bins that hold a forecast, from low to high."""

    count: Int[np.ndarray, " bins"]
    forecast: Float[np.ndarray, " bins"]
    """Mean forecast of the bin."""
    observed: Float[np.ndarray, " bins"]
    """Share of yes among them."""

    @property
    def ece(self) -> float:
        """Mean distance between forecast and observed, weighted by count."""
        return float((self.count * np.abs(self.forecast - self.observed)).sum() / self.count.sum())


def reliability(
    probability: Float[np.ndarray, " items"],
    outcome: Bool[np.ndarray, " items"],
    *,
    bins: int = 10,
    binning: Binning = "width",
) -> Reliability:
    """The table behind a reliability diagram. 1 falls in the last bin; empty bins are left out.

    Bins of equal mass cut the forecasts in order; forecasts that are equal stay in one bin, so there may be fewer."""
    _check(probability, outcome)
    if bins < 1:
        raise ConfigError(f"bins={bins}: expected at least 1")
    if binning == "width":
        place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    else:
        edges = np.sort(probability)[np.arange(1, bins) * len(probability) // bins]
        place = np.searchsorted(edges, probability, side="right")
    count = np.bincount(place, minlength=bins)
    full = count > 0
    forecast = np.bincount(place, weights=probability, minlength=bins)[full] / count[full]
    observed = np.bincount(place, weights=outcome, minlength=bins)[full] / count[full]
    return Reliability(count=count[full], forecast=forecast, observed=observed)


def ece(
    probability: Float[np.ndarray, " items"],
    outcome: Bool[np.ndarray, " items"],
    *,
    bins: int = 10,
    binning: Binning = "width",
) -> float:
    """Expected calibration error (Naeini et al. 2015): 0 is calibrated. Biased upwards when bins hold few forecasts."""
    return reliability(probability, outcome, bins=bins, binning=binning).ece


@dataclass(frozen=True, slots=True, kw_only=True)
class Brier:
    """``score = reliability - resolution + uncertainty``, exactly."""

    score: float
    reliability: float
    """Squared distance of forecasts from what was observed under them; 0 is calibrated."""
    resolution: float
    """How far what was observed under the forecasts spreads around the base rate; more is better."""
    uncertainty: float
    """Variance of the outcomes: the score of forecasting the base rate always."""


def brier(probability: Float[np.ndarray, " items"], outcome: Bool[np.ndarray, " items"]) -> Brier:
    """Mean squared error of a forecast, and Murphy's decomposition (1973) over its distinct values.

    Forecasts that are all different put every outcome in a group of its own; round them first, then."""
    _check(probability, outcome)
    y = outcome.astype(np.float64)
    values, place, count = np.unique(probability, return_inverse=True, return_counts=True)
    rate, base = np.bincount(place, weights=y) / count, float(y.mean())
    return Brier(
        score=float(((probability - y) ** 2).mean()),
        reliability=float((count * (values - rate) ** 2).sum() / len(y)),
        resolution=float((count * (rate - base) ** 2).sum() / len(y)),
        uncertainty=base * (1.0 - base),
    )


def log_loss(posterior: Float[np.ndarray, "items labels"], label: Int[np.ndarray, " items"]) -> float:
    """Mean of minus the log of the true label's probability, in nats; probabilities below 1e-15 count as that."""
    return float(-np.log(np.maximum(posterior[np.arange(len(label)), label], 1e-15)).mean())


def top(
    posterior: Float[np.ndarray, "items labels"], label: Int[np.ndarray, " items"]
) -> tuple[Float[np.ndarray, " items"], Bool[np.ndarray, " items"]]:
    """Top probability of each item and whether the top label is the true one: what ``ece`` reads."""
    return posterior.max(axis=1), posterior.argmax(axis=1) == label


def temperature(
    logits: Float[np.ndarray, "items labels"], label: Int[np.ndarray, " items"], *, iterations: int = 50
) -> float:
    """The T at which softmax(logits / T) has the least log loss (Guo et al. 2017). A yes/no logit z: columns (0, z).

    With b = 1/T the loss is convex: gradient E_p[z] - z_y, curvature var_p(z). Newton on b, halved where it would leave
    b > 0. Where every item is right the best T is 0: what is returned is small, at least 0.01; where the
    logits say nothing or the contrary of the truth it is infinite, and 100 is returned."""
    if len(logits) != len(label) or not len(label):
        raise DataError(
            f"temperature: {len(logits)} rows of logits and {len(label)} labels; expected as many, not none"
        )
    b, low, high = 1.0, 0.01, 100.0
    own = logits[np.arange(len(label)), label]
    for _ in range(iterations):
        scaled = b * logits
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * logits).sum(axis=1)
        slope = float((mean - own).mean())
        bend = float(((p * logits**2).sum(axis=1) - mean**2).mean())
        # the factor 4 bounds a step from where the loss is flat
        new = float(np.clip(b - slope / max(bend, 1e-300), b / 4.0, b * 4.0))
        new = min(max(new, low), high)
        if abs(new - b) <= 1e-12 * b:
            break
        b = new
    return 1.0 / b


@dataclass(frozen=True, slots=True, kw_only=True)
class Isotonic:
    """A rising step function from scores to probabilities; between fitted scores it is linear, outside flat."""

    scores: Float[np.ndarray, " knots"]
    values: Float[np.ndarray, " knots"]

    def __call__(self, scores: Float[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
        """Calibrated probabilities."""
        return np.interp(scores, self.scores, self.values)


def isotonic(scores: Float[np.ndarray, " items"], outcome: Bool[np.ndarray, " items"]) -> Isotonic:
    """Least-squares fit among functions that never fall: pool adjacent violators (Ayer et al. 1955)."""
    if len(scores) != len(outcome) or not len(scores):
        raise DataError(f"isotonic: {len(scores)} scores and {len(outcome)} outcomes; expected as many, not none")
    knots, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rate = np.bincount(place, weights=outcome) / count
    pools: list[tuple[float, float, int]] = []  # value, weight, knots
    for value, weight in zip(rate.tolist(), count.tolist(), strict=True):
        pool = (value, float(weight), 1)
        while pools and pools[-1][0] >= pool[0]:
            before, mass, length = pools.pop()
            total = mass + pool[1]
            pool = ((before * mass + pool[0] * pool[1]) / total, total, length + pool[2])
        pools.append(pool)
    return Isotonic(scores=knots.astype(np.float64), values=np.repeat([v for v, _, _ in pools], [k for *_, k in pools]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformal:
    """Answers where only one label is plausible, and abstains elsewhere."""

    threshold: float
    """A label is plausible when its probability is at least this; 0 where the calibration set was too small to say."""
    level: float
    n: int

    def plausible(self, posterior: Float[np.ndarray, "items labels"]) -> Bool[np.ndarray, "items labels"]:
        """The prediction set of each item. May be empty: nothing looks like what was seen."""
        return posterior >= self.threshold

    def answer(self, posterior: Float[np.ndarray, "items labels"]) -> Int[np.ndarray, " items"]:
        """The one plausible label, or -1: abstain."""
        sets = self.plausible(posterior)
        return np.where(sets.sum(axis=1) == 1, sets.argmax(axis=1), -1)


def conformal(
    posterior: Float[np.ndarray, "items labels"], label: Int[np.ndarray, " items"], *, level: float = 0.1
) -> Conformal:
    """Split conformal prediction from items that nothing was fitted on (Vovk et al. 2005; Sadinle et al. 2019).

        threshold = 1 - the ceil((n + 1)(1 - level))-th smallest of 1 - p(true label)

    For a new item drawn like these, P(true label not plausible) <= level, whatever the posterior is worth. So the share of
    items that are answered *and* wrong is at most ``level``; among answered items alone it may be larger."""
    if not 0.0 < level < 1.0 or len(posterior) != len(label):
        raise ConfigError(
            f"level={level}, {len(posterior)} items, {len(label)} labels: expected 0 < level < 1 and equals"
        )
    n = len(label)
    rank = int(np.ceil((n + 1) * (1.0 - level)))
    if rank > n:
        return Conformal(threshold=0.0, level=level, n=n)
    own = np.sort(posterior[np.arange(n), label])[::-1]
    return Conformal(threshold=float(own[rank - 1]), level=level, n=n)


def _check(probability: Float[np.ndarray, " items"], outcome: Bool[np.ndarray, " items"]) -> None:
    if not len(probability) or not bool(((probability >= 0) & (probability <= 1)).all()):
        raise DataError(f"forecasts: {len(probability)} of them; expected at least one, all between 0 and 1")
