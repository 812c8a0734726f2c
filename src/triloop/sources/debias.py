"""What a judge is biased by, measured where the truth is known, and how to take it out: position, and length.

A judge that favours the first place or the longer text is measured on pairs whose truth is known; order is cured by asking
both ways, length by subtracting what length alone explains of the judge's log-odds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from triloop.errors import DataError
from triloop.feedback.kinds import write
from triloop.records import Feedback, Prompt
from triloop.sources.judge import Judge, PairJudge
from triloop.sources.lm_judge import sigmoid
from triloop.sources.lm_pairs import pair_of
from triloop.stats import Interval, bootstrap_mean, paired_difference, wilson

__all__ = [
    "BiasReport",
    "BothOrders",
    "KnownPair",
    "KnownText",
    "LengthControlled",
    "LengthCorrection",
    "ScoreReport",
    "auc",
    "fit_length_correction",
    "measure_bias",
    "measure_scores",
    "words",
]

_SUREST = 1e-3
"""A probability nearer to 0 or 1 than this counts as this: a judge without doubt has finite log-odds."""


def words(text: str) -> int:
    """Length in words."""
    return len(text.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownPair:
    """Two responses, and which is better: ``truth`` above 0 the first, below 0 the second, 0 neither."""

    prompt: Prompt
    first: str
    second: str
    truth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasReport:
    """How good a pair judge is, and what else moves it. Intervals at 95 %; None where no item tells."""

    n: int
    """Pairs that were judged in both orders."""
    failures: int
    """Pairs that were not."""
    accuracy: Interval | None
    """Right, of the pairs that have a better side, by the mean of both orders; a tie is half right."""
    one_order: Interval | None
    """The same by the first order alone."""
    position: Interval | None
    """Mean value for what is shown first, over both orders: +1 always the first place, -1 always the second."""
    flips: Interval | None
    """Share of pairs whose two orders choose different responses."""
    longer: Interval | None
    """How much more often the judge prefers the longer response than the truth does, over pairs of different length."""


def measure_bias(
    judge: PairJudge, items: Sequence[KnownPair], *, length: Callable[[str], int] = words, seed: int = 0
) -> BiasReport:
    """Ask about every pair in both orders and compare with the truth.

    A judge that asks in both orders itself shows no position bias here.
    """
    forward, backward = _both(judge, [(x.prompt, x.first, x.second) for x in items])
    good = [i for i, (f, b) in enumerate(zip(forward, backward, strict=True)) if f is not None and b is not None]
    told = [(items[i], forward[i] or 0.0, backward[i] or 0.0) for i in good]
    decided = [(x.truth > 0, f, b) for x, f, b in told if x.truth]
    uneven = [(x, f + b) for x, f, b in told if x.truth and length(x.first) != length(x.second)]
    chose = [_half(value if length(x.first) > length(x.second) else -value) for x, value in uneven]
    should = [float((x.truth > 0) == (length(x.first) > length(x.second))) for x, _ in uneven]

    def mean(values: list[float]) -> Interval | None:
        return bootstrap_mean(values, seed=seed) if values else None

    return BiasReport(
        n=len(told),
        failures=len(items) - len(told),
        accuracy=mean([_half(f + b if first else -f - b) for first, f, b in decided]),
        one_order=mean([_half(f if first else -f) for first, f, _ in decided]),
        position=mean([(f - b) / 2 for _, f, b in told]),
        flips=wilson(sum(f * b < 0 for _, f, b in told), len(told)) if told else None,
        longer=paired_difference(chose, should, seed=seed) if chose else None,
    )


class BothOrders:
    """Any pair judge, asked in both orders: the mean, or a tie where the orders disagree. Twice the price."""

    def __init__(self, judge: PairJudge, *, inconsistent: Literal["tie", "average"] = "tie") -> None:
        self._judge, self._tie = judge, inconsistent == "tie"
        self.name = f"both-orders({judge.name})"

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, first, second), in order; both orders must succeed."""
        n = len(prompts)
        told = self._judge.compare([*prompts, *prompts], [*firsts, *seconds], [*seconds, *firsts])
        return [self._verdict(forward, backward) for forward, backward in zip(told[:n], told[n:], strict=True)]

    def _verdict(self, forward: Feedback, backward: Feedback) -> Feedback:
        cost = forward.cost + backward.cost
        failed = next((f for f in (forward, backward) if f.value is None), None)
        if failed is not None or forward.value is None or backward.value is None:
            why = failed.failure if failed is not None and failed.failure else "one order has no value"
            return Feedback(value=None, failure=why, kind="pair", source=self.name, cost=cost)
        first, second = forward.value, -backward.value
        value = 0.0 if self._tie and first * second < 0 else (first + second) / 2
        parts = {"forward": (1 + first) / 2, "backward": (1 + second) / 2, "bias": (first - second) / 2}
        sure = (forward.confidence + backward.confidence) / 2 * (1 - abs(first - second) / 2)
        return write(
            pair_of(value), source=self.name, confidence=min(1.0, sure), cost=cost, breakdown=parts, about=forward.about
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthCorrection:
    """What length alone adds to a judge's log-odds for the first response.

        log-odds' = log-odds - offset - slope tanh((length(first) - length(second)) / scale)

    The form of AlpacaEval's length control (arXiv:2404.04475 eq. 2) with the quality term given by known truth. ``offset``
    is the position bias of a judge asked in one order.
    """

    slope: float
    scale: float
    offset: float = 0.0

    def __call__(self, value: float, difference: float) -> float:
        """The corrected value in [-1, 1] of a pair whose lengths differ by ``difference``."""
        p = min(1 - _SUREST, max(_SUREST, (1 + value) / 2))
        odds = math.log(p / (1 - p)) - self.offset - self.slope * math.tanh(difference / self.scale)
        return 2 * sigmoid(odds) - 1


def fit_length_correction(
    judge: PairJudge, items: Sequence[KnownPair], *, length: Callable[[str], int] = words
) -> LengthCorrection:
    """Least squares of the judge's log-odds on [1, truth, tanh(length difference / its standard deviation)].

    The truth stands in the fit so that length is not blamed for quality that goes with it. Raises DataError with fewer than
    ten judged pairs, or where lengths never differ.
    """
    told = judge.compare([x.prompt for x in items], [x.first for x in items], [x.second for x in items])
    good = [(x, f.value) for x, f in zip(items, told, strict=True) if f.value is not None and not f.failed]
    differences = np.array([float(length(x.first) - length(x.second)) for x, _ in good])
    scale = float(differences.std()) if len(good) else 0.0
    if len(good) < 10 or scale == 0:
        raise DataError(
            f"{len(good)} judged pairs, lengths differ by {scale:.3g} on average; expected ten and some difference"
        )
    p = np.clip([(1 + value) / 2 for _, value in good], _SUREST, 1 - _SUREST)
    truth = np.array([x.truth for x, _ in good])
    table = np.stack([np.ones(len(good)), truth, np.tanh(differences / scale)], axis=1)
    fit = np.linalg.lstsq(table, np.log(p / (1 - p)), rcond=None)[0]
    return LengthCorrection(slope=float(fit[2]), scale=scale, offset=float(fit[0]))


class LengthControlled:
    """A pair judge with the part of its verdict that length explains taken out."""

    def __init__(self, judge: PairJudge, correction: LengthCorrection, *, length: Callable[[str], int] = words) -> None:
        self._judge, self._correction, self._length = judge, correction, length
        self.name = f"length-controlled({judge.name})"

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, first, second), in order."""
        told = self._judge.compare(prompts, firsts, seconds)
        out = []
        for f, first, second in zip(told, firsts, seconds, strict=True):
            if f.failed or f.value is None:
                out.append(replace(f, source=self.name))
                continue
            value = self._correction(f.value, self._length(first) - self._length(second))
            parts = {**f.breakdown, "uncorrected": f.value}
            out.append(replace(f, value=value, source=self.name, breakdown=parts))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownText:
    """A response, and how good it is."""

    prompt: Prompt
    text: str
    truth: float
    """Higher is better; above 0 is good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """How well a judge's values follow the truth, and how much they follow length besides."""

    n: int
    failures: int
    auc: float
    """Chance that a good text gets a higher value than a bad one; ties are half. NaN without both kinds."""
    accuracy: Interval | None
    """Share of texts whose value has the sign of the truth; a value of 0 is half right."""
    correlation: float
    """Of value and truth (Pearson)."""
    length: float
    """Partial correlation of value and length, given the truth: 0 for a judge that reads past length."""


def measure_scores(
    judge: Judge, items: Sequence[KnownText], *, length: Callable[[str], int] = words, seed: int = 0
) -> ScoreReport:
    """Judge every text and compare with the truth."""
    told = judge.judge([x.prompt for x in items], [x.text for x in items])
    good = [(x, f.value) for x, f in zip(items, told, strict=True) if f.value is not None and not f.failed]
    values = np.array([v for _, v in good], dtype=np.float64)
    truth = np.array([x.truth for x, _ in good], dtype=np.float64)
    long = np.array([float(length(x.text)) for x, _ in good])
    r = {(a, b): _correlation(x, y) for a, x in (("v", values), ("l", long)) for b, y in (("t", truth), ("l", long))}
    spread = math.sqrt(max(0.0, (1 - r["v", "t"] ** 2) * (1 - r["l", "t"] ** 2)))
    right = [_half(v if t > 0 else -v) for v, t in zip(values.tolist(), truth.tolist(), strict=True) if t]
    return ScoreReport(
        n=len(good),
        failures=len(items) - len(good),
        auc=auc(values, truth > 0),
        accuracy=bootstrap_mean(right, seed=seed) if right else None,
        correlation=r["v", "t"],
        length=(r["v", "l"] - r["v", "t"] * r["l", "t"]) / spread if spread > 1e-12 else math.nan,
    )


def auc(scores: Float[np.ndarray, " n"], good: np.ndarray) -> float:
    """Area under the ROC curve, (wins + ties / 2) / (good x bad) by ranks; NaN without both kinds."""
    positive, negative = np.sort(scores[good]), np.sort(scores[~good])
    if not len(positive) or not len(negative):
        return math.nan
    below = np.searchsorted(negative, positive, side="left").sum()
    upto = np.searchsorted(negative, positive, side="right").sum()
    return float((below + upto) / 2 / (len(positive) * len(negative)))


def _both(judge: PairJudge, pairs: Sequence[tuple[Prompt, str, str]]) -> tuple[list[float | None], list[float | None]]:
    """Value for the first response in either order; None where the judge failed."""
    prompts, firsts, seconds = [p for p, _, _ in pairs], [a for _, a, _ in pairs], [b for _, _, b in pairs]
    told = judge.compare([*prompts, *prompts], [*firsts, *seconds], [*seconds, *firsts])
    values = [None if f.failed else f.value for f in told]
    n = len(pairs)
    return values[:n], [None if v is None else -v for v in values[n:]]


def _half(value: float) -> float:
    """1 for a value above 0, 0 below, one half at 0."""
    return 0.5 if value == 0 else float(value > 0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
