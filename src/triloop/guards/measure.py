"""What a round's episodes say of themselves, as numbers for the guards. Pure functions; 256 episodes take milliseconds."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from triloop.records import Completion, Episode

__all__ = ["distinct_n", "failure_share", "measure", "template_share", "truncated_share", "zero_std_share"]

_DIGITS = re.compile(r"\d+")
_NAME = re.compile(r"\b[A-Z][a-z]+\b")
_EVEN = 1e-9
"""Rewards of a group that differ by less are equal: no advantage comes of rounding."""


def measure(episodes: Sequence[Episode]) -> dict[str, float]:
    """The metrics of ``guards.base.Watch`` that episodes alone determine; those that nothing determines are absent."""
    if not episodes:
        return {}
    completions = [e.completion for e in episodes]
    rewards = [e.reward for e in episodes if e.reward is not None]
    found = {
        "length": sum(sum(c.mask) for c in completions) / len(completions),
        "truncated_share": truncated_share(completions),
        "distinct_2": distinct_n([_own(c) for c in completions], 2),
        "template_share": template_share([c.text for c in completions]),
        "zero_std_share": zero_std_share(episodes),
        "judge_failures": failure_share(episodes),
    }
    if rewards:
        mean = math.fsum(rewards) / len(rewards)
        found["reward"] = mean
        found["reward_std"] = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))
    return {name: value for name, value in found.items() if not math.isnan(value)}


def distinct_n(rows: Iterable[Sequence[int]], n: int = 2) -> float:
    """Distinct n-grams of tokens over all n-grams of all rows, in (0, 1]; NaN when no row is long enough.

    Li et al. 2016, arXiv:1510.03055. Falls as rows grow in number and length: compare equal rounds only.
    """
    seen: set[tuple[int, ...]] = set()
    total = 0
    for row in rows:
        seen.update(zip(*(row[i:] for i in range(n)), strict=False))
        total += max(0, len(row) - n + 1)
    return len(seen) / total if total else math.nan


def template_share(texts: Sequence[str]) -> float:
    """Share of texts that are the commonest one once numbers and capitalised words are masked; NaN for no text."""
    if not texts:
        return math.nan
    masked = Counter[str]()
    for text, count in Counter(texts).items():
        masked[" ".join(_NAME.sub("@", _DIGITS.sub("#", text)).split())] += count
    return masked.most_common(1)[0][1] / len(texts)


def truncated_share(completions: Sequence[Completion]) -> float:
    """Share of completions that were cut at the length limit; NaN for none."""
    return sum(c.finish == "length" for c in completions) / len(completions) if completions else math.nan


def zero_std_share(episodes: Sequence[Episode]) -> float:
    """Share of prompts all of whose judged samples have one reward; NaN where no prompt has two judged samples."""
    groups: dict[tuple[int, str], list[float]] = {}
    for e in episodes:
        if e.reward is not None:
            groups.setdefault((e.completion.round, e.prompt.id), []).append(e.reward)
    spreads = [max(g) - min(g) for g in groups.values() if len(g) > 1]
    return sum(s < _EVEN for s in spreads) / len(spreads) if spreads else math.nan


def failure_share(episodes: Sequence[Episode]) -> float:
    """Share of judgements that failed; an episode without any judgement counts as one failure."""
    judgements = [f.failed for e in episodes for f in e.feedback]
    judgements += [True for e in episodes if not e.feedback]
    return sum(judgements) / len(judgements) if judgements else math.nan


def _own(completion: Completion) -> Sequence[int]:
    """The tokens that the policy chose, without what the environment inserted."""
    if all(completion.mask):
        return completion.tokens
    return [t for t, own in zip(completion.tokens, completion.mask, strict=True) if own]
