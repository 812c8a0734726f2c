"""What a guard sees and says. A guard is a pure function of what it is shown: it keeps no state of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from triloop.records import Episode, Verdict

__all__ = ["Guard", "Watch"]

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """One round as the guards see it.

    ``metrics`` names (all floats; absent when not measured this round):

    reward, reward_std          mean and standard deviation of the reward the learner saw
    zero_std_share              share of groups whose rewards are all equal
    entropy                     mean entropy of the policy per generated token, nats
    kl                          k1 estimate of KL(policy || original) per token, nats, at least 0
    ppl_original                perplexity of the samples under the original model
    length, truncated_share     mean tokens of a completion; share cut at the limit
    distinct_2                  distinct bigrams of tokens / all bigrams, over the round's samples
    template_share              share of samples whose text, digits and names masked, is the commonest one
    clip_share, ratio_max, grad_norm, loss, lr     from the update
    lr_scale                    what the schedule's learning rate was multiplied by: below 1 after ``tighten``
    judge_failures              share of judgements that failed
    canary_proxy, canary_gold   on held-out canary prompts: the training judge's mean and the gold judge's mean,
                                both as pass rate in [0, 1]
    canary_n                    how many canary completions
    counter_*                   counter-metrics of the round's samples, each a share in [0, 1]
    """

    round: int
    metrics: Metrics
    history: Sequence[Metrics] = field(default_factory=tuple)
    """Metrics of all rounds before this one, oldest first."""
    episodes: Sequence[Episode] = field(default_factory=tuple)


class Guard(Protocol):
    """Watches a run. ``check`` never raises and never changes anything; the loop acts on its verdict."""

    name: str

    def check(self, watch: Watch) -> Verdict: ...
