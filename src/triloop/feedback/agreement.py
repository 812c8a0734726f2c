"""How far judges agree beyond chance, and how far one agrees with himself when the order is turned.

Shapes: ``items`` things judged, ``raters`` judges, ``labels`` categories. Labels are numbers from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from triloop.errors import ConfigError, DataError
from triloop.stats import Interval, paired_difference, wilson

__all__ = [
    "Level",
    "PositionBias",
    "Weighting",
    "cohen_kappa",
    "fleiss_kappa",
    "krippendorff_alpha",
    "percent_agreement",
    "position_bias",
]

Level = Literal["nominal", "ordinal", "interval"]
Weighting = Literal["none", "linear", "quadratic"]


def percent_agreement(a: Int[np.ndarray, " items"], b: Int[np.ndarray, " items"]) -> Interval:
    """Share of items on which two judges agree, with Wilson's interval."""
    return wilson(int((a == b).sum()), len(a))


def cohen_kappa(a: Int[np.ndarray, " items"], b: Int[np.ndarray, " items"], *, weighting: Weighting = "none") -> float:
    """Two judges: 1 - observed / expected disagreement, expected from each one's own frequencies.

    Cohen 1960; with weights |i - j| or (i - j)^2 Cohen 1968. 1 agrees always, 0 as by chance; NaN where each judge knows
    one and the same label only."""
    if len(a) != len(b) or not len(a):
        raise DataError(f"kappa: {len(a)} and {len(b)} labels; expected as many, not none")
    k = int(max(a.max(), b.max())) + 1
    seen = np.bincount(a * k + b, minlength=k * k).reshape(k, k) / len(a)
    apart = np.abs(np.arange(k)[:, None] - np.arange(k)[None, :]).astype(np.float64)
    cost = {"none": (apart > 0).astype(np.float64), "linear": apart, "quadratic": apart**2}[weighting]
    expected = float((cost * np.outer(seen.sum(axis=1), seen.sum(axis=0))).sum())
    return 1.0 - float((cost * seen).sum()) / expected if expected > 0 else float("nan")


def fleiss_kappa(counts: Int[np.ndarray, "items labels"]) -> float:
    """Any judges, equally many per item: ``counts[i, k]`` of them gave item i the label k.

        (P - P_e) / (1 - P_e),   P = mean_i (sum_k n_ik^2 - n) / (n (n - 1)),   P_e = sum_k p_k^2

    Fleiss 1971. For unequal numbers use ``krippendorff_alpha``."""
    n = counts.sum(axis=1)
    if not len(n) or int(n.min()) != int(n.max()) or int(n[0]) < 2:
        raise DataError("fleiss_kappa: expected the same number of judges, at least 2, for every item")
    m = float(n[0])
    observed = float((((counts**2).sum(axis=1) - m) / (m * (m - 1.0))).mean())
    chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return (observed - chance) / (1.0 - chance) if chance < 1.0 else float("nan")


def krippendorff_alpha(values: Float[np.ndarray, "raters items"], *, level: Level = "nominal") -> float:
    """Any judges, any gaps (NaN): 1 - observed / expected disagreement over all pairs of values within items.

        alpha = 1 - (n - 1) sum o_ck d_ck / sum n_c n_k d_ck

    with the coincidences o: every ordered pair of values of one item, divided by its number of values less one.
    d is [c != k] (nominal), (c - k)^2 (interval), or (sum of n from c to k, less (n_c + n_k) / 2)^2 (ordinal).
    Krippendorff 2004, ch. 11; an item with one value counts for nothing. NaN where no two values differ."""
    seen = values[~np.isnan(values)]
    levels = np.unique(seen)
    place = np.searchsorted(levels, np.where(np.isnan(values), levels[0] if len(levels) else 0.0, values))
    table = np.zeros((values.shape[1], len(levels)))
    rows = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    np.add.at(table, (rows[~np.isnan(values)], place[~np.isnan(values)]), 1.0)
    table = table[table.sum(axis=1) > 1]
    if not len(table):
        raise DataError("krippendorff_alpha: no item has two values; expected at least one")
    share = table / (table.sum(axis=1, keepdims=True) - 1.0)
    coincidence = table.T @ share - np.diag(share.sum(axis=0))
    n = coincidence.sum(axis=1)
    distance = _distance(levels, n, level)
    expected = float((np.outer(n, n) * distance).sum())
    return 1.0 - (n.sum() - 1.0) * float((coincidence * distance).sum()) / expected if expected > 0 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """A pairwise judge asked in both orders. Verdicts are about what was shown: +1 first, -1 second, 0 tie."""

    n: int
    inconsistent: Interval
    """Share of pairs whose two verdicts do not name the same answer (or both a tie)."""
    favours_first: Interval | None
    """Of the pairs decided both times for one *place*, the share that went to the first; 0.5 is no bias. None: no such
    pair."""
    ties: Interval
    """Share of ties over both orders; its interval takes the two verdicts of a pair as independent."""
    lean: Interval
    """Mean over pairs of how often the first was preferred less how often the second was, from -1 to 1."""
    consensus: Int[np.ndarray, " items"]
    """Each pair's verdict in the order of the first asking: the common one, the decided one against a tie, or 0."""


def position_bias(there: Sequence[int], back: Sequence[int], *, seed: int = 0) -> PositionBias:
    """Compare a judge's verdicts on (A, B) with those on (B, A); entry i of both is the same pair.

    A consistent judge says ``back = -there``. Shares come with Wilson's intervals, ``lean`` with a bootstrap over pairs.
    """
    a, b = np.asarray(there, dtype=np.int64), np.asarray(back, dtype=np.int64)
    if len(a) != len(b) or not len(a) or not bool(np.isin(np.concatenate([a, b]), (-1, 0, 1)).all()):
        raise DataError("position_bias: expected two equally long lists of +1 (first), -1 (second), 0 (tie), not empty")
    n = len(a)
    stuck, first = (a == b) & (a != 0), (a == 1) & (b == 1)
    return PositionBias(
        n=n,
        inconsistent=wilson(int((a != -b).sum()), n),
        favours_first=wilson(int(first.sum()), int(stuck.sum())) if stuck.any() else None,
        ties=wilson(int((a == 0).sum() + (b == 0).sum()), 2 * n),
        lean=paired_difference((a / 2).tolist(), (-b / 2).tolist(), seed=seed),
        consensus=np.sign(a - b),
    )


def _distance(
    levels: Float[np.ndarray, " labels"], n: Float[np.ndarray, " labels"], level: Level
) -> Float[np.ndarray, "labels labels"]:
    if level == "nominal":
        return 1.0 - np.eye(len(levels))
    if level == "interval":
        return (levels[:, None] - levels[None, :]) ** 2
    if level == "ordinal":
        middle = np.cumsum(n) - n / 2.0  # the sum of n from c to k less half of both ends is a difference of middles
        return (middle[:, None] - middle[None, :]) ** 2
    raise ConfigError(f"level={level!r}: expected nominal, ordinal or interval")
