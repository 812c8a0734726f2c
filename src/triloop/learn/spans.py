"""Feedback on parts of a completion: signs per token as a policy gradient, and many reward models' marks as one reward.

Text becomes spans, spans become signs; a step is a span that ends where the step ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from triloop.errors import ConfigError
from triloop.learn.objectives import clipped_surrogate, reinforce

__all__ = ["Marks", "dense_rewards", "signed_policy_gradient"]

Marks = Sequence[tuple[int, float]]
"""(token index, reward) pairs of one completion: where each judged segment ends, and what it earned."""


def signed_policy_gradient(
    logp: Float[Tensor, "batch time"],
    signs: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    logp_old: Float[Tensor, "batch time"] | None = None,
    clip: float = 0.0,
    negative_weight: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """Policy gradient whose advantage of a token is the sign of what was said of it: nothing else is moved.

        A_bt = s_bt  (times ``negative_weight`` where s < 0)
        l_bt = -A_bt log p_bt                                           clip = 0
        l_bt = -min(r_bt A_bt, clip(r_bt, 1 - clip, 1 + clip) A_bt)     r = p / p_old

    The span-level rewards of Text2Grad (arXiv:2505.22338) as advantages, without its value head: a span is blamed for
    itself and not for what follows. The clip bounds how far one batch may push a token; without it negative signs push
    without end.
    """
    advantage = torch.where(signs < 0, negative_weight * signs, signs)
    if clip == 0:
        return reinforce(logp, advantage, mask)
    if logp_old is None:
        raise ConfigError(
            "clip > 0 needs log-probabilities under the policy before the update: pass old to build_judged"
        )
    return clipped_surrogate(logp, logp_old, advantage, mask, clip_low=clip, clip_high=clip)


def dense_rewards(
    marks: Mapping[str, Sequence[Marks]],
    weights: Mapping[str, float],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """Rewards per token from several reward models, each at its own density; what ``credit.gae`` takes.

        r_bt = sum_k w_k sum_j 1[segment j of model k ends at t] R_kj

    ``marks[k][b]`` are model k's marks of completion b: one per word, per sentence, or one for the whole. Fine-grained
    RLHF, arXiv:2306.01693 section 3 (its KL penalty is ``objectives.kl_k1``, to be subtracted). ``ConfigError`` for a mark
    where the policy chose no token, for a model without a weight, and for a wrong number of completions.
    """
    rewards = torch.zeros(mask.shape)
    chosen = mask.tolist()
    for model, rows in marks.items():
        if model not in weights:
            raise ConfigError(
                f"reward model {model!r} has no weight; weights are given for {', '.join(weights) or 'none'}"
            )
        if len(rows) != len(mask):
            raise ConfigError(f"reward model {model!r} marks {len(rows)} completions, expected {len(mask)}")
        for b, row in enumerate(rows):
            for t, reward in row:
                if not 0 <= t < mask.shape[1] or not chosen[b][t]:
                    raise ConfigError(
                        f"reward model {model!r} marks token {t} of completion {b}, which the policy did not choose"
                    )
                rewards[b, t] += weights[model] * reward
    return rewards
