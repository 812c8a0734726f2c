"""What a reward model is worth on pairs that people judged: accuracy, calibration, and whether it merely counts words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from triloop.errors import DataError
from triloop.feedback.calibration import ece
from triloop.sources.reward_examples import RewardPair
from triloop.stats import Interval, wilson

__all__ = ["Audit", "audit_scores", "words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Figures over the decided pairs (p other than 1/2) that could be scored. Probabilities are those of Bradley-Terry."""

    pairs: int
    failures: int
    """Pairs that could not be scored."""
    accuracy: Interval
    """Share of pairs whose preferred completion has the higher score; equal scores count as wrong."""
    log_loss: float
    """Mean -log P(judgement), nats; ln 2 = 0.693 is knowing nothing."""
    brier: float
    """Mean (1 - P(judgement))^2; 0.25 is knowing nothing."""
    ece: float
    """Expected calibration error of the winner's probability, 10 equal bins."""
    longer_wins_model: float
    """Share of pairs of different length (words) in which the longer has the higher score."""
    longer_wins_people: float
    """Share of the same pairs in which people preferred the longer."""
    length_correlation: float
    """Of the pair's difference of scores with its difference of words, both orders of each pair counted."""

    @property
    def length_bias(self) -> float:
        """How much more often the longer wins with the model than with people."""
        return self.longer_wins_model - self.longer_wins_people

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "length_bias": self.length_bias}


def audit_scores(
    pairs: Sequence[RewardPair], first: Float[np.ndarray, " pairs"], second: Float[np.ndarray, " pairs"]
) -> Audit:
    """The audit of scores for each pair's two completions; NaN where there is none.

    Raises DataError when no decided pair is left, for then there is nothing to say.
    """
    if not len(pairs) == len(first) == len(second):
        raise DataError(f"{len(pairs)} pairs with {len(first)} and {len(second)} scores; expected as many of each")
    p = np.array([e.p for e in pairs])
    scored = np.isfinite(first) & np.isfinite(second)
    kept = scored & (p != 0.5)
    if not kept.any():
        raise DataError(f"none of {len(pairs)} pairs is decided and scored; give pairs with a preference")
    sign = np.sign(p[kept] - 0.5)
    lead = (first - second)[kept] * sign
    counts = np.array([[words(e.first), words(e.second)] for e in pairs], dtype=np.float64)[kept]
    longer = (counts[:, 0] - counts[:, 1]) * sign
    unequal = longer != 0
    chance = _sigmoid(lead)
    right = lead > 0
    return Audit(
        pairs=int(kept.sum()),
        failures=int((~scored).sum()),
        accuracy=wilson(int(right.sum()), len(right)),
        log_loss=float(np.logaddexp(0.0, -lead).mean()),
        brier=float(np.square(1.0 - chance).mean()),
        ece=ece(np.maximum(chance, 1.0 - chance), right),
        longer_wins_model=_share((lead * longer > 0)[unequal]),
        longer_wins_people=_share((longer > 0)[unequal]),
        length_correlation=_correlation(lead, longer),
    )


def words(text: str) -> int:
    """Words between blanks: the length that biases are measured in."""
    return len(text.split())


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -x))


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 0.5


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's over (a, -a) and (b, -b), whose means are 0."""
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0
