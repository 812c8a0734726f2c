"""Row S156: what a reward that is fitted to preferences is, on densities over a grid, where every answer is known."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from triloop import rng
from triloop.atlas.frame import Context, Contrast, Measured, Row
from triloop.feedback.ties import Comparisons, comparisons, fit

__all__ = ["DENSITY", "GRID", "bump", "divergence", "fitted", "lengthened", "played"]

GRID, GAMES, LONGEST = 20, 20_000, 4


def _density(context: Context) -> Measured:
    found = list[dict[str, float]]()
    for seed in context.seeds:
        g = rng.generator(seed, "atlas", "densities")
        games = context.scaled(GAMES)
        left, right = (bump(at + 0.05 * g.standard_normal()) for at in (0.3, 0.7))
        length = g.integers(1, LONGEST + 1, GRID).astype(np.float64)
        both = played([left, right], games, g)
        by_length = fitted(played([np.log(left) / length], games, g, logs=True))
        found.append(
            {
                "matched": divergence(left, np.exp(fitted(played([left], games, g)))),
                "mixture": statistics.fmean(divergence(d, np.exp(fitted(both))) for d in (left, right)),
                "each": statistics.fmean(divergence(d, np.exp(fitted(played([d], games, g)))) for d in (left, right)),
                "wrong_form": divergence(left, np.exp(by_length)),
                "right_form": divergence(left, lengthened(by_length, length)),
            }
        )
    by = {name: [f[name] for f in found] for name in found[0]}
    return Measured(
        baseline=[[TOLERANCE] * len(found), by["mixture"], by["wrong_form"]],
        treatment=[by["matched"], by["each"], by["right_form"]],
        facts={name: round(statistics.fmean(values), 4) for name, values in by.items()},
    )


TOLERANCE = 0.02
"""Nats."""


def bump(at: float) -> Float[np.ndarray, " grid"]:
    """A density on the grid: a bell of width 0.12 there, and a little everywhere."""
    x = np.linspace(0.0, 1.0, GRID)
    p = 0.02 + np.exp(-0.5 * ((x - at) / 0.12) ** 2)
    return p / p.sum()


def played(
    annotators: Sequence[Float[np.ndarray, " grid"]], games: int, g: np.random.Generator, *, logs: bool = False
) -> Comparisons:
    """Comparisons of two points each, every one by one of the annotators, who prefer a with chance d(a) / (d(a) + d(b));
    with ``logs`` it is the logarithms that are given."""
    who = g.integers(0, len(annotators), games)
    first = g.integers(0, GRID, games)
    second = (first + g.integers(1, GRID, games)) % GRID
    worth = np.stack([a if logs else np.log(a) for a in annotators])
    odds = worth[who, first] - worth[who, second]
    wins = np.where(g.random(games) < 1.0 / (1.0 + np.exp(-odds)), 1, -1)
    return comparisons(zip(first.tolist(), second.tolist(), wins.tolist(), strict=True), GRID)


def fitted(games: Comparisons) -> Float[np.ndarray, " grid"]:
    """Rewards by Bradley-Terry."""
    return fit(games).scores


def divergence(density: Float[np.ndarray, " grid"], weight: Float[np.ndarray, " grid"]) -> float:
    """KL(density || weight / its sum), nats."""
    return float((density * (np.log(density) - np.log(weight / weight.sum()))).sum())


def lengthened(reward: Float[np.ndarray, " grid"], length: Float[np.ndarray, " grid"]) -> Float[np.ndarray, " grid"]:
    """The density whose logarithm per unit of length is the reward up to a constant c: the sum of exp(length (reward + c))
    is 1, which c alone decides."""
    low, high = -50.0 - float(reward.max()), 50.0 - float(reward.min())
    for _ in range(100):
        c = (low + high) / 2
        low, high = (low, c) if np.logaddexp.reduce(length * (reward + c)) > 0 else (c, high)
    return np.exp(length * (reward + low))


DENSITY = Row(
    id="S156",
    claim="A reward fitted by Bradley-Terry is the logarithm of the annotator's density, if preferences are the "
    "density's odds; "
    "of two annotators as if they were one it is neither's, and of one who compares densities per length it is not "
    "either.",
    setup=f"densities on {GRID} points, {GAMES} comparisons; Bradley-Terry for one annotator, for a mixture of "
    "two, for each of "
    "the two, and for one who compares log density per length, read as a density and as what it is",
    core="feedback.ties.fit",
    contrasts=(
        Contrast(
            metric="KL of the annotator's density from softmax(reward), nats",
            treatment="one annotator",
            baseline=f"tolerance {TOLERANCE:g}",
            above=0.0,
            below=0.0,
            higher_is_better=False,
        ),
        Contrast(
            metric="the same, mean over two annotators",
            treatment="a fit for each",
            baseline="one fit for both",
            above=0.05,
            below=0.0,
            higher_is_better=False,
        ),
        Contrast(
            metric="the same, for an annotator who compares log density per length",
            treatment="reward read per length",
            baseline="reward read as log density",
            above=0.05,
            below=0.0,
            higher_is_better=False,
        ),
    ),
    run=_density,
    base="base:attributes",
    parts=("feedback.ties",),
)
