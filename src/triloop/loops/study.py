"""Optimiser steps on collected examples: demonstrations, ratings, marked passages, pairs, alone or in the same batches."""

from __future__ import annotations

from collections.abc import Sequence

from triloop import rng
from triloop.errors import DataError
from triloop.learn.examples import Example, consumer
from triloop.learn.mixture import Mixture, build_judged, drift, judged_loss, mismatched_rows, scoring_rows
from triloop.learn.schedule import learning_rate
from triloop.loops.stages import Step, StepsConfig
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Policy

__all__ = ["fit", "study"]


def study(
    shop: Workshop,
    examples: Sequence[Example],
    mixture: Mixture,
    how: StepsConfig,
    state: LoopState,
    step: Step,
    *,
    reference: Policy | None = None,
) -> dict[str, float]:
    """One round of a stage that learns from ``examples``: ``fit``, at the place of the stage's schedule.

    Of many short stages one may find nothing to learn from, such as groups that are all equally good: it takes no steps.
    """
    if not examples and not how.fresh:
        return {"updates": 0.0, "examples": 0.0}
    if how.fresh and step.index == 0:
        shop.policy.restart_from(shop.policy)  # a fresh optimiser
    total = how.steps * step.count if how.fresh else 0
    return fit(
        shop.policy,
        examples,
        mixture,
        how,
        seed=shop.config.seed,
        round=state.round + 1,
        reference=reference,
        temperature=shop.config.sampling.temperature,
        schedule=(how.steps * step.index, total),
        lr_scale=state.lr_scale,
    )


def fit(
    policy: Policy,
    examples: Sequence[Example],
    mixture: Mixture,
    how: StepsConfig,
    *,
    seed: int,
    round: int = 0,
    reference: Policy | None = None,
    temperature: float = 1.0,
    schedule: tuple[int, int] | None = None,
    lr_scale: float = 1.0,
) -> dict[str, float]:
    """``how.steps`` steps, each on ``how.batch`` examples, in an order that is a function of (seed, round) alone.

    Of a mixture, every batch holds each kind of example in its share of all. ``schedule`` is (steps taken before, steps in
    all); a total of 0 keeps the rate constant, None is these steps alone. Metrics are means over the steps, weighted by
    their tokens; ``grad_norm`` is the largest. Raises DataError when there is nothing to learn from.
    """
    if not examples:
        wanted = ", ".join(mixture.objectives)
        raise DataError(f"nothing that was collected can be learned from as {wanted}; collect another kind of feedback")
    size = min(how.batch, len(examples))
    order = _order(examples, how.steps * size, seed, round)
    done, total = (0, how.steps) if schedule is None else schedule
    loss, against = judged_loss(mixture), reference if mixture.needs_reference else None
    metrics: list[dict[str, float]] = []
    for k in range(how.steps):
        batch = [examples[i] for i in order[k * size : (k + 1) * size]]
        rows = scoring_rows(batch, mixture)
        judged = build_judged(
            batch,
            mixture,
            reference=None if against is None else against.logprobs(rows, temperature=temperature),
            old=policy.logprobs(rows, temperature=temperature) if mixture.needs_old else None,
            baseline=_baseline(policy, against, batch, temperature) if mixture.needs_baseline else None,
        )
        measured = policy.forward_backward(judged, loss)
        metrics.append({**measured, **policy.optim_step(lr_scale * _rate(how.lr, done + k, total))})
    return {**_merged(metrics), "updates": float(how.steps), "examples": float(len(examples))}


def _merged(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    merged = {"trained_tokens": sum(m["tokens"] for m in metrics)}
    for name in dict.fromkeys(name for m in metrics for name in m if name != "tokens"):
        seen = [(m[name], m["tokens"]) for m in metrics if name in m]
        weight = sum(tokens for _, tokens in seen) or 1.0
        largest = name in ("grad_norm", "lr")
        merged[name] = max(v for v, _ in seen) if largest else sum(v * tokens for v, tokens in seen) / weight
    return merged


def _rate(lr: float, done: int, total: int) -> float:
    """Warmed up over a tenth and falling to a tenth; constant where there is no total."""
    return learning_rate(done, peak=lr, warmup=total // 10, total=total, shape="linear", floor=0.1) if total else lr


def _order(examples: Sequence[Example], n: int, seed: int, round: int) -> list[int]:
    """``n`` positions: passes over all examples, each in another order, the kinds spread evenly over each pass."""
    order: list[int] = []
    sweep = 0
    while len(order) < n:
        draw = rng.generator(seed, "study", round, sweep)
        by_kind: dict[str, list[int]] = {}
        for i in draw.permutation(len(examples)).tolist():
            by_kind.setdefault(consumer(examples[i]), []).append(i)
        placed = [((j + 0.5) / len(mine), i) for mine in by_kind.values() for j, i in enumerate(mine)]
        order += [i for _, i in sorted(placed)]
        sweep += 1
    return order[:n]


def _baseline(policy: Policy, reference: Policy | None, batch: Sequence[Example], temperature: float) -> float:
    """KTO's z0 of this batch, under the policy as it is now."""
    rows = mismatched_rows(batch)
    if not rows or reference is None:
        return 0.0
    return drift(policy.logprobs(rows, temperature=temperature), reference.logprobs(rows, temperature=temperature))
