"""One step off-policy: a round is sampled by the weights before the last update, while that update is being made.

    weights   W0 ---- update 1 ---> W1 ---- update 2 ---> W2
    samples   of 1    of 2, by W0         of 3, by W1           the first round has nothing to wait for: it is on policy

What is sampled is a function of those weights, the state and the seed. It comes out the same whether it is sampled in a
second thread meanwhile or afterwards in the first one, and again after a crash: a checkpoint holds the weights before.
The learner weighs such samples by what their sampler said of them (``Algorithm.takes_old_samples``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import final

from triloop.loops.improve import over
from triloop.loops.rollout import Rollout, rollout
from triloop.loops.state import LoopState, Workshop
from triloop.policies.protocol import Policy

__all__ = ["Ahead"]


@final
class Ahead:
    """The weights before the last update, and the round that they are sampling. A ``Part`` of a workshop."""

    def __init__(self, policy: Policy, *, overlaps: bool) -> None:
        """``overlaps``: sample in a thread of its own. It changes when, not what: for two threads to gain anything there
        must be cores for both."""
        self._behind = policy.frozen()
        self._lags = False
        self._hand = ThreadPoolExecutor(1, "triloop-ahead") if overlaps else None
        self._coming: Future[Rollout] | None = None

    def rolled(self, shop: Workshop, state: LoopState) -> Rollout:
        """The round after ``state``, which may be there already. Raises what went wrong while it was sampled."""
        coming, self._coming = self._coming, None
        return self._roll(shop, state) if coming is None else coming.result()

    @contextmanager
    def meanwhile(self, shop: Workshop, state: LoopState) -> Iterator[None]:
        """While in here the weights of ``shop`` may change: those of before sample the round after ``state``."""
        self._behind.follow(shop.policy)
        self._lags = True
        if self._hand is not None and not over(shop.config, state):
            self._coming = self._hand.submit(self._roll, shop, state)
        try:
            yield
        finally:
            if self._coming is not None:
                wait([self._coming])

    def _roll(self, shop: Workshop, state: LoopState) -> Rollout:
        return rollout(dataclasses.replace(shop, policy=self._behind) if self._lags else shop, state)

    def save_state(self, folder: Path) -> None:
        """The weights before; nothing when the next round is on policy."""
        if self._lags:
            self._behind.save_state(folder)

    def load_state(self, folder: Path) -> None:
        """What was sampled by other weights is forgotten."""
        self._coming = None
        self._lags = (folder / "learner.pt").exists()
        if self._lags:
            self._behind.load_state(folder)
