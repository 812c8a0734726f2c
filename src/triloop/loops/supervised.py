"""Supervised warm-up: likelihood of demonstrations, nothing else. What base checkpoints come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from triloop.learn.batch import supervised_batch
from triloop.learn.choices import OptimConfig
from triloop.learn.schedule import learning_rate
from triloop.learn.update import supervised_loss
from triloop.policies.protocol import Policy

__all__ = ["Demonstration", "supervised"]

Demonstration = tuple[Sequence[int], Sequence[int]]
"""(prompt tokens, completion tokens with the end-of-sequence token)."""


P = TypeVar("P", bound=Policy)


def supervised(
    policy: P,
    batch: Callable[[int], Sequence[Demonstration]],
    steps: int,
    optim: OptimConfig,
    *,
    seen: Callable[[int, float], None] = lambda step, loss: None,
) -> P:
    """Take ``steps`` optimiser steps; ``batch(step)`` gives the demonstrations of each, ``seen`` hears its loss.

    Mean negative log-likelihood per completion token in nats (prompts are read, not learned). The policy's own optimiser
    settings are used; ``optim`` gives rate and schedule.
    """
    for step in range(steps):
        prompts, tokens = zip(*batch(step), strict=True)
        metrics = policy.forward_backward(supervised_batch(prompts, tokens), supervised_loss)
        policy.optim_step(
            learning_rate(
                step, peak=optim.lr, warmup=optim.warmup_steps, total=steps, shape=optim.schedule, floor=optim.lr_floor
            )
        )
        seen(step + 1, metrics["loss"])
    return policy
