"""Search by proposals that heed directional feedback: *this should be larger*, +1, 0 (nothing said) or -1 a coordinate.

What an optimiser made of a language model does with words, on plain vectors: told a direction it goes that way, told none
it guesses; and where nobody says a direction, past attempts and their scores are made into one. After arXiv:2405.16434.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from triloop.errors import ConfigError

__all__ = ["Advise", "Attempt", "propose", "search", "synthesised"]

_LONGER, _SHORTER = 1.5, 0.75
"""What a step becomes after a success, and after a failure; 1.5 x 0.75^1.4 is 1, so a success in 2.4 keeps its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A point that was tried, and its score: more is better."""

    point: Float[np.ndarray, " coordinates"]
    score: float


Advise = Callable[[Sequence[Attempt], Attempt], Float[np.ndarray, " coordinates"]]
"""(attempts so far, the best of them) -> what is said of the best: a number in [-1, 1] for each coordinate, + for more."""


def propose(
    point: Float[np.ndarray, " coordinates"],
    advice: Float[np.ndarray, " coordinates"],
    step: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, " coordinates"]:
    """x_i + step s_i |z_i|, z normal; where nothing is said (s_i = 0), x_i + step z_i."""
    z = rng.standard_normal(len(point))
    return point + step * np.where(advice == 0, z, advice * np.abs(z))


def synthesised(attempts: Sequence[Attempt], best: Attempt, *, nearest: int = 8) -> Float[np.ndarray, " coordinates"]:
    """Which change has paid so far: a sign per coordinate from the attempts closest to the best one.

        s_i = sign( sum_j (x_ij - x_i*) (f_j - mean f) )

    over the ``nearest`` attempts other than the best; all 0 with fewer than two of these. An ``Advise``.
    """
    others = sorted((a for a in attempts if a is not best), key=lambda a: float(np.linalg.norm(a.point - best.point)))[
        :nearest
    ]
    if len(others) < 2:
        return np.zeros(len(best.point))
    scores = np.array([*(a.score for a in others), best.score])
    points = np.array([*(a.point for a in others), best.point])
    return np.sign((points - best.point).T @ (scores - scores.mean()))


def search(
    score: Callable[[Float[np.ndarray, " coordinates"]], float],
    start: Float[np.ndarray, " coordinates"],
    advise: Advise | None,
    n: int,
    *,
    step: float = 1.0,
    rng: np.random.Generator,
) -> list[Attempt]:
    """``n`` scored attempts: each a proposal from the best so far, by what is advised of it. None advises nothing.

    ConfigError unless n is at least 1. The step grows after a success and shrinks after a failure, however advised.
    """
    if n < 1:
        raise ConfigError(f"n={n}: expected at least one attempt")
    best = Attempt(point=np.asarray(start, dtype=np.float64), score=score(start))
    attempts = [best]
    for _ in range(n - 1):
        advice = np.zeros(len(best.point)) if advise is None else advise(attempts, best)
        point = propose(best.point, advice, step, rng)
        tried = Attempt(point=point, score=score(point))
        attempts.append(tried)
        better = tried.score > best.score
        best, step = (tried, step * _LONGER) if better else (best, step * _SHORTER)
    return attempts
