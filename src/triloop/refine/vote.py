"""Voting over samples of one problem, and when to stop drawing more. Pure functions over answers.

An answer is whatever can be compared, as text; None is a sample without a readable answer: it costs, and votes for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from triloop.errors import ConfigError

__all__ = ["draws_until_agreement", "majority"]


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer with the most votes, among equals the one given first; None without a readable answer.

    Self-consistency, arXiv:2203.11171.
    """
    votes = Counter(a for a in answers if a is not None)
    return max(votes, key=lambda a: votes[a]) if votes else None  # a Counter keeps the order of first appearance


def draws_until_agreement(answers: Sequence[str | None], agree: int) -> int:
    """How many samples, in order, until ``agree`` of them give the same answer; all of them when none ever does.

    The rule reads only what is drawn already, so an easy problem stops early and a hard one pays for more samples.
    Adaptive consistency with a fixed count, after arXiv:2305.11860.
    """
    if agree < 1:
        raise ConfigError(f"agree={agree}: expected at least 1 sample")
    votes: Counter[str] = Counter()
    for drawn, answer in enumerate(answers, start=1):
        if answer is not None:
            votes[answer] += 1
            if votes[answer] >= agree:
                return drawn
    return len(answers)
