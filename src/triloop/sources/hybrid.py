"""A verifier and a reward model as one judge: the verifier's word first, the reward model's shades within it.

A verifier is right when it says right, and misses much; a reward model misses little, and can be flattered. Stratified, no
score lifts what the verifier rejects above what it accepts, and a group that it judges alike still has an order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float

from triloop.feedback.kinds import Scalar, write
from triloop.learn.combine import stratified
from triloop.records import Feedback, Prompt
from triloop.sources.judge import Judge

__all__ = ["HybridJudge", "Scores"]


class Scores(Protocol):
    """What gives every (prompt, text) a number, NaN where there is none: a reward model, or an ensemble."""

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[np.ndarray, " texts"]: ...


class HybridJudge:
    """``scalar`` feedback on all completions of a prompt together: those of one prompt in one call are its group.

        stratified   learn.combine.stratified of the verifier's word and the scores, [-alpha, 1 + beta] brought to [-1, 1]
        sum          (verifier's value + min-max of the group's scores in [-1, 1]) / 2

    What the verifier or the reward model fails on fails. ConfigError when alpha and beta would let the strata meet. HERO,
    arXiv:2510.07242; ``sum`` is what it is compared with.
    """

    def __init__(
        self,
        verifier: Judge,
        scores: Scores,
        *,
        how: Literal["stratified", "sum"] = "stratified",
        alpha: float = 0.1,
        beta: float = 0.1,
    ) -> None:
        self._verifier, self._scores, self._how = verifier, scores, how
        self._alpha, self._beta = alpha, beta
        self.name = f"hybrid:{verifier.name}"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, text), in order."""
        said = self._verifier.judge(prompts, texts)
        scores = np.asarray(self._scores.score(prompts, texts), dtype=np.float64)
        places: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            places.setdefault(prompt.id, []).append(i)
        out: list[Feedback] = list(said)
        for group in places.values():
            values = self._group([said[i] for i in group], scores[group])
            for i, value in zip(group, values, strict=True):
                out[i] = self._told(said[i], float(scores[i]), value)
        return out

    def _group(self, said: Sequence[Feedback], scores: Float[np.ndarray, " group"]) -> list[float]:
        """The combined value of each completion of one prompt; anything where one of the two failed."""
        valid = torch.tensor(
            [[f.value is not None and bool(np.isfinite(s)) for f, s in zip(said, scores, strict=True)]]
        )
        right = torch.tensor([[f.value is not None and f.value > 0 for f in said]])
        told = torch.tensor(np.nan_to_num(scores))[None]
        if self._how == "sum":
            within = stratified(torch.zeros_like(right), told, valid, alpha=0.5, beta=0.0)[0]  # all in one stratum
            return [(float(f.value or 0.0) + 2.0 * u) / 2.0 for f, u in zip(said, within.tolist(), strict=True)]
        reward = stratified(right, told, valid, alpha=self._alpha, beta=self._beta)[0]
        low, high = -self._alpha, 1.0 + self._beta
        return [2.0 * (r - low) / (high - low) - 1.0 for r in reward.tolist()]

    def _told(self, said: Feedback, score: float, value: float) -> Feedback:
        if said.value is None or not np.isfinite(score):
            why = said.failure or "the reward model gives no score"
            return Feedback(value=None, failure=why, source=self.name, kind="scalar", cost=said.cost)
        parts = {"verifier": float(said.value), "score": score}
        return write(Scalar(min(1.0, max(-1.0, value))), source=self.name, cost=said.cost, breakdown=parts)
