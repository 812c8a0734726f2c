"""Weights that undo a correlation between a condition and what it stands beside. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from triloop.errors import ConfigError

__all__ = ["inverse_propensity"]


def inverse_propensity(
    conditions: Sequence[Hashable], contexts: Sequence[Hashable], *, largest: float = float("inf")
) -> list[float]:
    """w_i = min(largest, P(c_i) / P(c_i | x_i)), with the shares counted in the data itself.

    Under these weights every condition is as frequent in one context as in another, and the weights' mean is 1 where each
    context has each condition. For ``weight`` of an example. Stabilised inverse propensities (Robins et al. 2000); for
    control codes arXiv:2210.03167, which resamples by 1 / P(c | x).
    """
    if len(conditions) != len(contexts):
        raise ConfigError(f"{len(conditions)} conditions for {len(contexts)} contexts: expected as many")
    n, of_condition, of_context = len(conditions), Counter(conditions), Counter(contexts)
    both = Counter(zip(conditions, contexts, strict=True))
    return [
        min(largest, of_condition[c] / n * of_context[x] / both[c, x])
        for c, x in zip(conditions, contexts, strict=True)
    ]
