"""Rewards at a density of their own: what a reward model says of each token, placed on the tokens that the policy chose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from triloop.learn.batch import pad
from triloop.learn.spans import Marks, dense_rewards
from triloop.loops.assemble import offsets
from triloop.loops.crew import Crew
from triloop.policies.protocol import Policy
from triloop.records import Episode

__all__ = ["placed", "word_rewards"]


def word_rewards(crew: Crew, policy: Policy, episodes: Sequence[Episode]) -> list[list[float]]:
    """Rewards of each completion's tokens by the model per token, times ``cycle.reward.words``; its marks are cut to
    [-1, 1], which is what it was taught."""
    assert crew.words is not None, "asked for only where there is one"
    texts = [e.completion.text for e in episodes]
    scores = crew.words.token_scores([e.prompt for e in episodes], texts)
    marks: list[Marks] = []
    for e, text, of_tokens in zip(episodes, texts, scores, strict=True):
        own = crew.words.encoder.offsets(text)
        chosen = offsets(policy, e.completion.tokens)
        marks.append(placed(np.clip(of_tokens, -1.0, 1.0), own, chosen, e.completion.mask))
    time = max(len(e.completion.tokens) for e in episodes)
    mask = pad([e.completion.mask for e in episodes], time) > 0
    rewards = dense_rewards({"words": marks}, {"words": crew.config.cycle.reward.words}, mask)
    return [row[: len(e.completion.tokens)] for e, row in zip(episodes, torch.Tensor.tolist(rewards), strict=True)]


def placed(
    scores: Float[np.ndarray, " tokens"],
    own: Sequence[tuple[int, int]],
    chosen: Sequence[tuple[int, int]],
    mask: Sequence[bool],
) -> Marks:
    """Scores of a reader's tokens as marks of a writer's: each on the first token that it chose and that ends no earlier.

    ``own`` are the characters of the reader's tokens, ``chosen`` those of the writer's. The last score, of the end of the
    text, is left out: nobody is taught anything of it. A reader that saw only the end of a long text marks only that.
    """
    last = max((t for t, own_word in enumerate(mask) if own_word), default=-1)
    if last < 0 or len(scores) < 2:
        return []
    seen = min(len(own), len(scores) - 1)
    marks: list[tuple[int, float]] = []
    for score, (_, end) in zip(scores[len(scores) - 1 - seen : -1], own[len(own) - seen :], strict=True):
        at = next((t for t, (_, stop) in enumerate(chosen) if mask[t] and stop >= end), last)
        marks.append((at, float(score)))
    return sorted(marks)
