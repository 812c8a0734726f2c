"""What is measured of a round: samples, drift from the original, and the canary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from triloop.guards.measure import measure
from triloop.loops.evaluate import Evaluation, evaluate
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Tag
from triloop.records import Episode
from triloop.sources.judge import JudgedBy

__all__ = ["canary", "drift", "round_metrics"]

TOGETHER = 4
"""Samples of one prompt that drift is measured on. On short answers to 32 prompts, 8 x 4 samples take a third of the time
of 32 x 1."""


def drift(shop: Workshop, episodes: Sequence[Episode]) -> dict[str, float]:
    """KL per token (k1, nats) and perplexity under the original, on ``reference_rows`` samples of prompts spread over the
    round.

    Measured whether or not the objective has a KL term: a policy that drifts unseen is the first thing to go wrong.
    """
    chosen = [e for e in _chosen(episodes, shop.config.reference_rows) if e.completion.tokens]
    if not chosen:
        return {}
    c = [e.completion for e in chosen]
    scored = shop.reference.logprobs(
        [(x.prompt_tokens, x.tokens) for x in c], temperature=shop.config.sampling.temperature
    )
    mask = np.concatenate([np.asarray(x.mask) for x in c])
    original = np.concatenate(scored)[mask].astype(np.float64)
    policy = np.concatenate([np.asarray(x.logps) for x in c])[mask]
    # The plain mean of log ratios, floored at 0. k3 has the smaller variance near the original, but far from it one
    # sample of something that the policy has all but given up outweighs a whole round.
    return {
        "kl": max(0.0, float(np.mean(policy - original))),
        "ppl_original": math.exp(min(50.0, -float(original.mean()))),
    }


def _chosen(episodes: Sequence[Episode], rows: int) -> list[Episode]:
    """So many of them, up to ``TOGETHER`` of a prompt: what they share is computed once."""
    groups = [list(g)[:TOGETHER] for _, g in groupby(episodes, key=lambda e: e.prompt.id)]
    if not groups or not rows:
        return []
    wanted = max(1, -(-rows // max(map(len, groups))))
    spread = groups[:: max(1, len(groups) // wanted)]
    return [e for g in spread for e in g][:rows]


def canary(shop: Workshop, round: int) -> tuple[dict[str, float], Evaluation]:
    """Training judge against gold judge, as pass rates on canary prompts that neither training nor evaluation uses.

    Where they are one and the same, nobody is asked twice.
    """
    c = shop.config
    by_task = c.verifier is None and (c.loop != "generations" or c.cycle.judge == "task")
    same = shop.env.honest and (by_task or isinstance(shop.env, JudgedBy))
    e = evaluate(
        shop.policy,
        shop.env,
        c.canary_n,
        c.sampling,
        Tag(seed=c.seed, round=round, purpose="canary"),
        judge=None if same else shop.judge,
        split="canary",
        level=c.env.level,
    )
    e = dataclasses.replace(e, proxy=e.gold) if e.proxy is None else e
    assert e.proxy is not None
    return {"canary_proxy": e.proxy, "canary_gold": e.gold, "canary_n": float(e.n)}, e


def round_metrics(
    shop: Workshop, state: LoopState, episodes: Sequence[Episode], update: Mapping[str, float]
) -> dict[str, float]:
    """Everything that the guards and the report see of one round, except the canary."""
    seen = measure(episodes)
    logps = [p for e in episodes for p, own in zip(e.completion.logps, e.completion.mask, strict=True) if own]
    return {
        "round": float(state.round + 1),
        **seen,
        # The mean surprise of what was drawn is an unbiased estimate of the entropy, over all samples and for free.
        "entropy": -sum(logps) / max(1, len(logps)),
        **update,
        "lr_scale": state.lr_scale,
        # The learner takes a screened sample, which was judged very well, for one whose judgement failed.
        "judge_failures": seen["judge_failures"],
        # The judge's own scale, whatever the learner was paid: guards and readers compare it with the gold judge's.
        **_judged(episodes),
        **(_levels(episodes) if shop.config.curriculum.kind != "mixture" else {}),
        **drift(shop, episodes),
    }


def _levels(episodes: Sequence[Episode]) -> dict[str, float]:
    """``share_level_K`` and ``reward_level_K``: what a curriculum practised, and how that was paid."""
    seen: dict[int, list[float]] = {}
    for e in episodes:
        seen.setdefault(e.prompt.level, []).append(0.0 if e.reward is None else e.reward)
    shares = {f"share_level_{k}": len(v) / len(episodes) for k, v in sorted(seen.items())}
    return {**shares, **{f"reward_level_{k}": sum(v) / len(v) for k, v in sorted(seen.items())}}


def _judged(episodes: Sequence[Episode]) -> dict[str, float]:
    values = [f.value for e in episodes for f in e.feedback[:1] if f.value is not None]
    if not values:
        return {}
    return {"reward": sum(values) / len(values), "pass_rate": sum(v > 0 for v in values) / len(values)}
