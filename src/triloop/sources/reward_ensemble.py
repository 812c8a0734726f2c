"""Several reward models as one: the mean less what they disagree by, and disagreement as doubt.

    score = mean_m (s_m - origin_m) - k std_m (s_m - origin_m)

A policy that learns from one reward model finds where that one is wrong; where members that were trained apart differ, the
lower bound pays less. arXiv:2310.02743 (worst-case and uncertainty-weighted ensembles), arXiv:2312.09244.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from triloop import rng
from triloop.errors import ConfigError
from triloop.feedback.kinds import Pair, Scalar, write
from triloop.records import Feedback, Prompt
from triloop.sources.reward_audit import Audit, audit_scores
from triloop.sources.reward_config import RewardTraining
from triloop.sources.reward_examples import RewardExample, RewardPair
from triloop.sources.reward_model import RewardModel
from triloop.sources.reward_read import chances, declared, sigmoid
from triloop.sources.reward_training import Trained

__all__ = ["RewardEnsemble"]


class RewardEnsemble:
    """Members that learn from the same examples, each in its own order and with its own held-out prompts.

    ``k`` standard deviations are taken off the mean; 0 is the mean. With ``resample`` every member learns from examples
    drawn with replacement. What one member cannot score, the ensemble does not score.
    """

    def __init__(
        self, members: Sequence[RewardModel], *, k: float = 1.0, resample: bool = False, name: str = "rewards"
    ) -> None:
        if not members or k < 0:
            raise ConfigError(
                f"an ensemble of {len(members)} members with k={k}; expected at least one, and k of at least 0"
            )
        self.members, self.k, self.resample, self.name = tuple(members), k, resample, name

    @classmethod
    def build(
        cls, make: Callable[[int], RewardModel], size: int, *, k: float = 1.0, resample: bool = False
    ) -> RewardEnsemble:
        """``make(seed)`` for seeds 0 .. size - 1."""
        return cls([make(seed) for seed in range(size)], k=k, resample=resample)

    def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """The lower confidence bound of each text; NaN where a member has no score."""
        scores, _ = self._scores(prompts, texts)
        return self._bound(scores)

    def disagreement(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Standard deviation of the members' scores, nats."""
        return self._scores(prompts, texts)[0].std(axis=0)

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """``scalar`` feedback: 2 sigmoid(score) - 1. Confidence is 1 less the standard deviation of members' values."""
        scores, failures = self._scores(prompts, texts)
        bound, spread = self._bound(scores), scores.std(axis=0)
        doubt = np.tanh(scores / 2.0).std(axis=0)  # tanh(x / 2) = 2 sigmoid(x) - 1
        out = []
        for i in range(len(texts)):
            if i in failures:
                out.append(Feedback(value=None, failure=failures[i], source=self.name, kind="scalar"))
                continue
            said = Scalar(2.0 * sigmoid(float(bound[i])) - 1.0)
            parts = {"score": float(bound[i]), "mean": float(scores[:, i].mean()), "spread": float(spread[i])}
            out.append(write(said, source=self.name, confidence=max(0.0, 1.0 - float(doubt[i])), breakdown=parts))
        return out

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """``pair`` feedback by the members' mean probabilities. Confidence is that of what is said, less k times its
        standard deviation over the members."""
        n = len(prompts)
        scores, failures = self._scores([*prompts, *prompts], [*firsts, *seconds])
        difference = scores[:, :n] - scores[:, n:]
        votes = np.stack([chances(d, m.config.ties, m.tie_nu) for d, m in zip(difference, self.members, strict=True)])
        mean, spread = votes.mean(axis=0), votes.std(axis=0)
        out = []
        for i in range(n):
            why = failures.get(i) or failures.get(n + i)
            if why is not None:
                out.append(Feedback(value=None, failure=why, source=self.name, kind="pair"))
                continue
            preference, strength, confidence = declared(mean[i])
            sure = max(0.0, confidence - self.k * float(spread[i, 1 - preference]))
            parts = dict(zip(("first", "tie", "second"), mean[i].tolist(), strict=True))
            out.append(write(Pair(preference, strength), source=self.name, confidence=sure, breakdown=parts))
        return out

    def learn(self, examples: Sequence[RewardExample], *, training: RewardTraining | None = None) -> list[Trained]:
        """Each member learns, with a seed of its own."""
        out = []
        for m, member in enumerate(self.members):
            how = training or member.training
            given = list(examples)
            if self.resample:
                draw = rng.generator(how.seed, "resample", m, member.trainings).integers(0, len(given), len(given))
                given = [given[i] for i in draw.tolist()]
            out.append(member.learn(given, training=replace(how, seed=rng.key(how.seed, "member", m) >> 32)))
        return out

    def audit(self, pairs: Sequence[RewardPair]) -> Audit:
        """As of one reward model, by the lower confidence bound."""
        prompts = [e.prompt for e in pairs]
        scores = self.score([*prompts, *prompts], [e.first for e in pairs] + [e.second for e in pairs])
        return audit_scores(pairs, scores[: len(pairs)], scores[len(pairs) :])

    def frozen(self) -> RewardEnsemble:
        """A copy that stays as it is when this one learns."""
        return RewardEnsemble([m.frozen() for m in self.members], k=self.k, resample=self.resample, name=self.name)

    def save_state(self, folder: Path) -> None:
        """One folder for each member."""
        for m, member in enumerate(self.members):
            member.save_state(folder / f"member-{m}")

    def load_state(self, folder: Path) -> None:
        """Go on from what ``save_state`` of as many members wrote."""
        for m, member in enumerate(self.members):
            member.load_state(folder / f"member-{m}")

    def _scores(
        self, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> tuple[Float[np.ndarray, "members texts"], dict[int, str]]:
        """Every member's score less its origin, and why a text has none."""
        rows, failures = [], dict[int, str]()
        for member in self.members:
            scores, wrong = member.scored(prompts, texts)
            rows.append(scores - member.origin)
            failures |= wrong
        return np.stack(rows), failures

    def _bound(self, scores: Float[np.ndarray, "members texts"]) -> Float[np.ndarray, " texts"]:
        return scores.mean(axis=0) - self.k * scores.std(axis=0)
