"""What is measured of a round: samples, drift from the original, and the canary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from triloop.guards.measure import measure
from triloop.loops.evaluate import Evaluation, evaluate
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Tag
from triloop.records import Episode

__all__ = ["canary", "drift", "round_metrics"]


def drift(shop: Workshop, episodes: Sequence[Episode]) -> dict[str, float]:
    """KL per token (k3, nats) and perplexity under the original, on ``reference_rows`` samples spread over the round.

    Measured whether or not the objective has a KL term: a policy that drifts unseen is the first thing to go wrong.
    """
    rows = shop.config.reference_rows
    chosen = episodes[:: max(1, len(episodes) // rows)][:rows] if rows else ()
    chosen = [e for e in chosen if e.completion.tokens]
    if not chosen:
        return {}
    c = [e.completion for e in chosen]
    scored = shop.reference.logprobs([(x.prompt_tokens, x.tokens) for x in c], temperature=shop.config.sampling.temperature)
    mask = np.concatenate([np.asarray(x.mask) for x in c])
    original = np.concatenate(scored)[mask].astype(np.float64)
    policy = np.concatenate([np.asarray(x.logps) for x in c])[mask]
    ratio = original - policy
    return {
        "kl": float(np.mean(np.expm1(ratio) - ratio)),
        "ppl_original": math.exp(min(50.0, -float(original.mean()))),
    }


def canary(shop: Workshop, round: int) -> tuple[dict[str, float], Evaluation]:
    """Training judge against gold judge on canary prompts that neither training nor evaluation uses."""
    c = shop.config
    tag = Tag(seed=c.seed, round=round, purpose="canary")
    e = evaluate(shop.policy, shop.env, c.canary_n, c.sampling, tag, judge=shop.judge, split="canary", level=c.env.level)
    assert e.proxy is not None
    pass_rate = sum(x.feedback[0].value == 1 for x in e.episodes) / e.n if e.metric == "pass@1" else e.value
    return {"canary_proxy": e.proxy, "canary_gold": pass_rate, "canary_n": float(e.n)}, e


def round_metrics(
    shop: Workshop, state: LoopState, episodes: Sequence[Episode], update: Mapping[str, float]
) -> dict[str, float]:
    """Everything that the guards and the report see of one round, except the canary."""
    logps = [p for e in episodes for p, own in zip(e.completion.logps, e.completion.mask, strict=True) if own]
    return {
        "round": float(state.round + 1),
        **measure(episodes),
        # The mean surprise of what was drawn is an unbiased estimate of the entropy, over all samples and for free.
        "entropy": -sum(logps) / max(1, len(logps)),
        **update,
        **drift(shop, episodes),
    }
