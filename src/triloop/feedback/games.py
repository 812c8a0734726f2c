"""Preferences as a game: what a mixture of answers loses to its strongest rival, and the mixture that loses nothing.

A population's preferences may go round (a over b, b over c, c over a), and then no single answer is best. What remains is
the von Neumann winner: the mixture that no answer beats more often than not. Numpy alone.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from triloop.errors import DataError

__all__ = ["beaten_by", "exploitability", "winner"]

Matrix = Float[np.ndarray, "n n"]
"""Entry [i, j] is the chance that i is preferred to j; [i, j] + [j, i] = 1."""


def beaten_by(preferences: Matrix, mixture: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How often each answer is preferred to one drawn from the mixture."""
    return _checked(preferences) @ mixture


def exploitability(preferences: Matrix, mixture: Float[np.ndarray, " n"]) -> float:
    """max_i P(i over mixture) - 1/2, at least 0 but for rounding: 0 where nothing beats the mixture.

    Half of the duality gap of the symmetric preference game (Nash-MD, arXiv:2312.00886 section 4)."""
    return float(beaten_by(preferences, mixture).max()) - 0.5


def winner(preferences: Matrix, *, rounds: int = 4000) -> Float[np.ndarray, " n"]:
    """A mixture of exploitability about 0: the average of fictitious play (Brown 1951; Robinson 1951).

    Each round the answer that beats the average so far is added to it. The error falls about as 1 / sqrt(rounds)."""
    counts = np.full(len(preferences), 1.0 / len(preferences))
    gain = _checked(preferences) @ counts
    for _ in range(rounds):
        best = int(gain.argmax())
        counts[best] += 1.0
        gain += preferences[:, best]
    return counts / counts.sum()


def _checked(preferences: Matrix) -> Matrix:
    if preferences.ndim != 2 or not np.allclose(preferences + preferences.T, 1.0, atol=1e-6):
        raise DataError("preferences: expected a square matrix whose [i, j] + [j, i] is 1")
    return preferences
