"""Conversions between kinds that are numbers and orders. Pure functions; each says what it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from triloop.errors import DataError
from triloop.feedback.contents import Abstention, Pair, Ranking, Rubric, Scalar, Sign, Steps, Ternary, check_number
from triloop.feedback.ties import Comparisons, TieModel, fit

__all__ = [
    "Versus",
    "abstention_to_ternary",
    "pair_to_ternary",
    "pairs_to_scores",
    "pairs_to_strengths",
    "ranking_to_pairs",
    "ranking_to_scores",
    "rubric_to_scalar",
    "rubric_to_ternary",
    "scalar_to_ternary",
    "scores_to_pairs",
    "sign_of",
    "steps_to_scalar",
    "ternary_to_scalar",
]

Versus = tuple[int, int, Pair]
"""(first, second, what is said of these two), as positions in a list of candidates."""


def sign_of(value: float, dead_zone: float = 0.0) -> Sign:
    """0 where ``|value| <= dead_zone``, else the sign."""
    return cast(Sign, (value > dead_zone) - (value < -dead_zone))


def scalar_to_ternary(content: Scalar, *, dead_zone: float = 0.2) -> Ternary:
    """+1 above the dead zone, -1 below it, 0 within ``|value| <= dead_zone``.

    Loses: how far from zero; every order among values on one side of the dead zone.
    """
    check_number("dead_zone", dead_zone, 0.0, 1.0)
    return Ternary(sign_of(content.value, dead_zone))


def ternary_to_scalar(content: Ternary) -> Scalar:
    """The same number.

    Loses: that 0 meant *cannot tell* and not *average*.
    """
    return Scalar(float(content.value))


def abstention_to_ternary(content: Abstention) -> Ternary:
    """0.

    Loses: that the judge looked and would not say, as against a judge that called it neither good nor bad.
    """
    return Ternary(0)


def rubric_to_scalar(content: Rubric, *, weights: Mapping[str, float] | None = None) -> Scalar:
    """Weighted mean of the marks, ``sum_c w_c m_c / sum_c w_c``; without weights all criteria weigh alike.

    Raises ``DataError`` when a criterion has no weight, a weight is negative, or all are zero.

    Loses: which criterion failed; a good mark pays for a bad one, and a mark of 0 counts as average.
    """
    if weights is None:
        return Scalar(content.mean)
    missing = sorted(content.marks.keys() - weights.keys())
    if missing:
        raise DataError(f"weights have no entry for {', '.join(missing)}; expected one for every criterion")
    for name in content.marks:
        check_number(f"the weight of {name!r}", weights[name], 0.0, float("inf"))
    total = sum(weights[name] for name in content.marks)
    if total <= 0:
        raise DataError("the weights of all criteria are 0; expected at least one above 0")
    value = sum(weights[name] * mark for name, mark in content.marks.items()) / total
    return Scalar(max(-1.0, min(1.0, value)))  # a rounded sum may pass the end by one unit in the last place


def rubric_to_ternary(
    content: Rubric, *, weights: Mapping[str, float] | None = None, dead_zone: float = 0.2
) -> Ternary:
    """The weighted mean, cut by the dead zone.

    Loses: which criterion failed, and by how much the good outweighs the bad.
    """
    return scalar_to_ternary(rubric_to_scalar(content, weights=weights), dead_zone=dead_zone)


def steps_to_scalar(content: Steps) -> Scalar:
    """The worst step: a chain is as good as its weakest link.

    Loses: which step it was, and how many others were good.
    """
    return Scalar(float(min(content.signs)))


def pair_to_ternary(content: Pair) -> tuple[Ternary, Ternary]:
    """Each side on its own: the better one +1, the worse one -1; a tie gives 0 and 0.

    Loses: that the judgement was relative. Two good texts become one good and one bad; strength is left to the caller.
    """
    return Ternary(content.preference), Ternary(sign_of(-content.preference))


def ranking_to_pairs(content: Ranking) -> list[Versus]:
    """Every two positions, the lower position first: n (n - 1) / 2 pairs, a tie where they stand in one group.

    Loses: that the pairs come from one judgement; they are not independent votes.
    """
    rank = {k: place for place, group in enumerate(content.order) for k in group}
    size = content.size
    return [(i, j, Pair(sign_of(rank[j] - rank[i]))) for i in range(size) for j in range(i + 1, size)]


def ranking_to_scores(content: Ranking) -> list[Scalar]:
    """Borda: (beaten - beating) / (n - 1) of each position; those of one group share their mean place.

    Loses: that only the order was said; equal distances between places are made up.
    """
    return pairs_to_scores(ranking_to_pairs(content), content.size)


def pairs_to_scores(pairs: Sequence[Versus], n: int) -> list[Scalar]:
    """Mean signed strength of each candidate's comparisons, ``sum(won) - sum(lost)`` over their count; 0 without any.

    With every pair judged once at full strength this is the Borda count scaled to [-1, 1] (Copeland's where pairs repeat
    evenly). Candidates that met different opponents are better compared by ``pairs_to_strengths``.

    Loses: who was compared with whom, cycles, and how many comparisons stand behind a score.
    """
    total, met = [0.0] * n, [0] * n
    for i, j, pair in _checked(pairs, n):
        margin = pair.preference * pair.strength
        total[i] += margin
        total[j] -= margin
        met[i] += 1
        met[j] += 1
    return [Scalar(max(-1.0, min(1.0, t / m)) if m else 0.0) for t, m in zip(total, met, strict=True)]


def pairs_to_strengths(
    pairs: Sequence[Versus], n: int, *, model: TieModel = "davidson", ridge: float = 0.1
) -> list[Scalar]:
    """Scores of a paired-comparison model, ``tanh(s / 2) = 2 sigmoid(s) - 1``: 0 is the average candidate.

    A preference counts as its strength, a tie as one. The ridge of ``triloop.feedback.ties.fit`` is larger here than
    there, so that a candidate with one win is not called perfect.

    Loses: who was compared with whom, cycles, and how many comparisons stand behind a score.
    """
    rows = _checked(pairs, n)
    outcomes = [(p.strength * (p.preference > 0), float(p.tie), p.strength * (p.preference < 0)) for _, _, p in rows]
    played = Comparisons(
        first=np.array([i for i, _, _ in rows], dtype=np.int64),
        second=np.array([j for _, j, _ in rows], dtype=np.int64),
        outcomes=np.array(outcomes, dtype=np.float64).reshape(-1, 3),
        n_players=n,
    )
    return [Scalar(math.tanh(score / 2)) for score in fit(played, model, ridge=ridge).scores.tolist()]


def _checked(pairs: Sequence[Versus], n: int) -> Sequence[Versus]:
    for i, j, _ in pairs:
        if i == j or not (0 <= i < n and 0 <= j < n):
            raise DataError(f"a pair compares {i} with {j}; expected two different positions from 0 to {n - 1}")
    return pairs


def scores_to_pairs(scores: Sequence[Scalar], *, tie: float = 0.1) -> list[Versus]:
    """Every two candidates: a tie where ``|difference| <= tie``, else a preference of strength ``|difference| / 2``.

    Loses: the level; a pair of bad texts and a pair of good ones look alike. Differences within ``tie`` are gone.
    """
    check_number("tie", tie, 0.0, 2.0)
    pairs: list[Versus] = []
    for i, first in enumerate(scores):
        for j in range(i + 1, len(scores)):
            margin = first.value - scores[j].value
            sign = sign_of(margin, tie)
            pairs.append((i, j, Pair(sign, abs(margin) / 2 if sign else 0.0)))
    return pairs
