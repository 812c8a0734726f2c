"""Which shape, which weights, which rate: many candidates a little, the better ones longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from triloop.errors import ConfigError

__all__ = ["Found", "successive_halving"]

Candidate = TypeVar("Candidate")


@dataclass(frozen=True, kw_only=True)
class Found(Generic[Candidate]):
    """The end of a search."""

    best: Candidate
    loss: float
    """Of the best, after all its updates."""
    rungs: tuple[tuple[float, ...], ...]
    """Losses rung by rung, in the order of the candidates that were still there."""


def successive_halving(
    candidates: Sequence[Candidate],
    train: Callable[[Candidate, int], float],
    *,
    first: int,
    factor: int = 3,
) -> Found[Candidate]:
    """All train ``first`` updates, the best of every ``factor`` go on until each has had ``factor`` times as many, and on.

    ``train(candidate, updates)`` goes on from where that candidate stands and answers its held-out loss, lower is better;
    one that is not a number counts as the worst. With n candidates each rung costs n * first updates at most, for a last
    one that has had n * first (Jamieson and Talwalkar, arXiv:1502.07943; Li et al., arXiv:1603.06560, the inner loop).
    """
    if not candidates or first < 1 or factor < 2:
        raise ConfigError(
            f"{len(candidates)} candidates, first {first}, factor {factor}: expected a candidate, an update, and 2 or more"
        )
    left, had, now = list(candidates), 0, first
    rungs: list[tuple[float, ...]] = []
    while True:
        losses = [train(candidate, now - had) for candidate in left]
        rungs.append(tuple(losses))
        order = sorted(range(len(left)), key=lambda i: (losses[i] != losses[i], losses[i]))
        if len(left) == 1 or len(left) < factor:
            return Found(best=left[order[0]], loss=losses[order[0]], rungs=tuple(rungs))
        left = [left[i] for i in order[: len(left) // factor]]
        had, now = now, now * factor
