"""Whole rounds: sample, judge, learn, watch, store. Rewards by lot."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import final

from triloop.bench import column_task as task
from triloop.bench.case import Case
from triloop.bench.columns import settings, workshop
from triloop.bench.limits import MOST_ROWS, Floor, Limits, floor
from triloop.bench.model import make_policy
from triloop.bench.train import passes
from triloop.bench.work import Samples, decoding, learning, prefill
from triloop.errors import WorkError
from triloop.learn.algorithms import resolve
from triloop.loops.improve import improve
from triloop.loops.learning import policy_gradient
from triloop.loops.outcome import outcome_round
from triloop.loops.progress import Silent
from triloop.loops.state import LoopState
from triloop.records import Verdict

__all__ = ["Loop"]

_PARTS = ("rollout", "judge", "learn", "watch")


class _Clock(Silent):
    """Notes when each round is done, and what its parts took."""

    def __init__(self) -> None:
        self.rounds: list[tuple[float, Mapping[str, float]]] = []

    def round(self, metrics: Mapping[str, float], verdicts: Sequence[Verdict]) -> None:
        self.rounds.append((perf_counter(), metrics))


@final
class Loop:
    """One round a run. ``store`` is what a round takes besides the parts that the loop times itself: its rows, and its
    share of a checkpoint (one in ten rounds)."""

    def __init__(self, case: Case) -> None:
        threads = case.threads
        config = settings(
            f"random {case.size}",
            threads=threads,
            precision=case.precision,
            length=case.length,
            prompts=case.batch // task.GROUP,
        )
        algorithm = resolve(config.algorithm)
        self.packed = bool(case.ternary)
        self.head = int(case.ternary_head == "int8")
        self.policy = make_policy(
            case, optim=config.optim, micro_tokens=config.micro_tokens, entropy=algorithm.needs_entropy
        )
        sampling = dataclasses.replace(config.sampling, banned_tokens=self.policy.tokenizer.eos_ids, slots=case.batch)
        self.every = config.checkpoint_every
        # Checkpoints are written when a call ends, where they can be timed by themselves.
        config = dataclasses.replace(config, sampling=sampling, checkpoint_every=1_000_000)
        self._folder = tempfile.TemporaryDirectory(prefix="triloop-bench-")
        self._clock = _Clock()
        self.shop = workshop(config, self.policy, Path(self._folder.name) / "run", lottery=True, progress=self._clock)
        self._state = LoopState()
        self.length, self.batch = case.length, case.batch
        self.rows, self.pass_tokens = case.batch, min(MOST_ROWS, case.batch * case.length)
        self.samples = Samples(prompts=(5,) * (case.batch // task.GROUP), group=task.GROUP, length=case.length)

    def work(self, runs: int) -> list[dict[str, float]]:
        """Seconds of so many rounds, by part."""
        last = self._state.round + runs
        self._clock.rounds.clear()
        start = perf_counter()
        shop = dataclasses.replace(self.shop, config=dataclasses.replace(self.shop.config, rounds=last))
        self._state = improve(shop, self._state, outcome_round(policy_gradient))
        end = perf_counter()
        if self._state.round != last or len(self._clock.rounds) != runs:
            raise WorkError(f"the loop stopped: {self._state.stopped or 'nobody says why'}; the figures mean nothing")
        times = [start, *(t for t, _ in self._clock.rounds)]
        checkpoint = (end - times[-1]) / self.every
        found = []
        for before, (after, metrics) in zip(times, self._clock.rounds, strict=False):
            parts = {name: metrics[f"{name}_seconds"] for name in _PARTS}
            found.append({**parts, "store": max(0.0, after - before - sum(parts.values())) + checkpoint})
        self._look(last)
        return found

    def floor(self, limits: Limits) -> Floor:
        """Of the rollout and of the optimiser step."""
        c, s, size = self.policy.decoder.config, self.samples, self.policy.precision.itemsize
        work = prefill(c, s, size, self.packed, self.head) + decoding(c, s, size, self.packed, self.head)
        rollout = floor(work, limits.decode, limits.bandwidth)
        update = learning(c, s, size, passes(self.policy, s), self.policy.kept_tokens)
        return rollout + floor(update, limits.learn, limits.bandwidth)

    def close(self) -> None:
        """Remove the run."""
        self.shop.run.close()
        self._folder.cleanup()

    def _look(self, round: int) -> None:
        """What the round stored is what was asked for; its prompts are what the floor is counted for."""
        stored = self.shop.run.completions(round)
        if len(stored) != self.batch or any(len(c.tokens) != self.length for c in stored):
            raise WorkError(f"round {round} stored {len(stored)} completions, not {self.batch} of {self.length} tokens")
        self.samples = dataclasses.replace(
            self.samples, prompts=tuple(len(c.prompt_tokens) for c in stored if c.index == 0)
        )
