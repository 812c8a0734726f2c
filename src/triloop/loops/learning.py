"""What a round does to the weights: policy-gradient steps, or supervised steps on accepted samples from the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from triloop import rng
from triloop.learn.batch import Batch, minibatches
from triloop.learn.build import build_batch
from triloop.learn.choices import OptimConfig
from triloop.learn.schedule import learning_rate
from triloop.learn.update import policy_loss
from triloop.loops.state import LoopState, Workshop
from triloop.records import Episode, Verdict

__all__ = ["Dense", "expert_iteration", "policy_gradient", "take_steps", "tightened"]

Metrics = dict[str, float]
Dense = Callable[[Sequence[Episode]], Sequence[Sequence[float]]]
"""Rewards of single tokens, one row per episode, one number per token of its completion."""

_TIGHTEST = 1 / 8
"""Of the schedule's learning rate. A run that a guard keeps asking to be careful still learns, and can come back."""


def tightened(scale: float, verdicts: Sequence[Verdict]) -> float:
    """What the next round's learning rate is multiplied by: half as much as now when a guard asks for it (``tighten``),
    down to an eighth; twice as much, up to the whole, after each round in which none does."""
    asked = any(v.value < 0 and v.action == "tighten" for v in verdicts)
    return max(_TIGHTEST, scale / 2) if asked else min(1.0, 2 * scale)


def policy_gradient(
    shop: Workshop,
    state: LoopState,
    episodes: Sequence[Episode],
    *,
    rounds_done: int | None = None,
    dense: Dense | None = None,
) -> Mapping[str, float]:
    """Credit, then ``updates_per_round`` passes of ``minibatches`` optimiser steps over the round's samples.

    The schedule is ``config.rounds`` rounds long. It stands where the policy's version says, or after ``rounds_done``.
    ``dense`` rewards come on top of the episodes' own.
    """
    batch, figures = _credited(shop, episodes, None if dense is None else dense(episodes))
    if batch is None:
        return {**figures, "updates": 0.0}
    total = shop.config.rounds * _steps(shop)
    done = shop.policy.version if rounds_done is None else rounds_done * _steps(shop)
    return {**figures, **take_steps(shop, state, batch, version=done, total=total)}


def expert_iteration(shop: Workshop, state: LoopState, episodes: Sequence[Episode]) -> Mapping[str, float]:
    """The M-step of ReST-EM (arXiv:2312.06585): from the *original* weights, a fresh optimiser, accepted samples."""
    batch, figures = _credited(shop, episodes)
    if batch is None:
        return {**figures, "updates": 0.0}
    shop.policy.restart_from(shop.reference)
    return {**figures, **take_steps(shop, state, batch, version=0, total=_steps(shop))}


def _steps(shop: Workshop) -> int:
    """Optimiser steps of a round with enough to learn from."""
    return shop.algorithm.updates_per_round * shop.algorithm.minibatches


def _credited(
    shop: Workshop, episodes: Sequence[Episode], dense: Sequence[Sequence[float]] | None = None
) -> tuple[Batch | None, Metrics]:
    algorithm, temperature = shop.algorithm, shop.config.sampling.temperature
    items = [(e.completion.prompt_tokens, e.completion.tokens) for e in episodes]
    reference = shop.reference.logprobs(items, temperature=temperature) if algorithm.needs_reference else None
    values = shop.policy.values(items) if algorithm.needs_values else None
    learner = shop.policy.logprobs(items, temperature=temperature) if algorithm.importance_cap > 0 else None
    return build_batch(
        episodes,
        algorithm,
        max_tokens=shop.config.sampling.max_tokens,
        reference=reference,
        values=values,
        logp_learner=learner,
        dense=dense,
    )


def take_steps(shop: Workshop, state: LoopState, batch: Batch, *, version: int, total: int) -> Metrics:
    """All optimiser steps of the round after ``state``. The schedule is ``total`` steps long and counts ``version`` as
    taken before; ``state.lr_scale`` multiplies it.

    The order of rows in each pass is a function of (seed, round, pass) alone. Metrics are means over the steps, weighted
    by their tokens; ``ratio_max`` and ``grad_norm`` are the largest.
    """
    c, algorithm, policy = shop.config, shop.algorithm, shop.policy
    loss = policy_loss(algorithm)
    steps: list[Metrics] = []
    for sweep in range(algorithm.updates_per_round):
        order = None
        if algorithm.minibatches > 1:
            order = rng.generator(c.seed, "order", state.round + 1, sweep).permutation(len(batch)).tolist()
        for part in minibatches(batch, algorithm.minibatches, order):
            lr = state.lr_scale * _rate(c.optim, version + len(steps), total)
            metrics = policy.forward_backward(part, loss)
            steps.append({**metrics, **policy.optim_step(lr)})
    tokens = sum(s["tokens"] for s in steps)
    merged = {
        name: max(s[name] for s in steps)
        if name in ("ratio_max", "grad_norm", "lr")
        else sum(s[name] * s["tokens"] for s in steps) / tokens
        for name in steps[0]
        if name not in ("tokens", "kl", "entropy")
    }
    return {**merged, "updates": float(len(steps)), "trained_tokens": tokens}


def _rate(optim: OptimConfig, step: int, total: int) -> float:
    return learning_rate(
        step, peak=optim.lr, warmup=optim.warmup_steps, total=total, shape=optim.schedule, floor=optim.lr_floor
    )
