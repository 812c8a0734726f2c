"""Sampling alone."""

from __future__ import annotations

import math
from time import perf_counter
from typing import final

from triloop.bench.case import PROMPT, Case
from triloop.bench.limits import Floor, Limits, floor
from triloop.bench.model import make_policy, random_prompts
from triloop.bench.work import Samples, decoding, prefill
from triloop.errors import WorkError
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Completion

__all__ = ["Rollout"]


@final
class Rollout:
    """One call of the policy's ``sample`` a run; the seed is another each time."""

    def __init__(self, case: Case) -> None:
        self.policy, self.packed = make_policy(case, entropy=False), bool(case.ternary)
        self.head = int(case.ternary_head == "int8")  # bytes of its weights, 0 for those of the precision
        self.samples = Samples(prompts=(PROMPT,) * (case.batch // case.group), group=case.group, length=case.length)
        self.sampling = Sampling(max_tokens=case.length, slots=case.batch, banned_tokens=self.policy.tokenizer.eos_ids)
        self.prompts = random_prompts(len(self.samples.prompts))
        self.rows, self.pass_tokens = case.batch, 0
        self._runs = 0

    def work(self, runs: int) -> list[dict[str, float]]:
        """Seconds of so many runs, by part."""
        found = []
        for _ in range(runs):
            self._runs += 1
            t0 = perf_counter()
            done = self.policy.sample(
                self.prompts, self.samples.group, self.sampling, Tag(seed=self._runs, round=self._runs)
            )
            found.append({"rollout": perf_counter() - t0})
            self._check(done)
        return found

    def floor(self, limits: Limits) -> Floor:
        """Prompts, then a step for each token."""
        c, size = self.policy.decoder.config, self.policy.precision.itemsize
        kind = (size, self.packed, self.head)
        whole = prefill(c, self.samples, *kind) + decoding(c, self.samples, *kind)
        return floor(whole, limits.decode, limits.bandwidth)

    def close(self) -> None:
        """Nothing is left behind."""

    def _check(self, done: list[Completion]) -> None:
        tokens = sum(len(c.tokens) for c in done)
        if tokens != self.samples.tokens:
            raise WorkError(
                f"{tokens} tokens were generated instead of {self.samples.tokens}; the figures mean nothing"
            )
        if not all(math.isfinite(sum(c.logps)) and max(c.logps) <= 0 for c in done):
            raise WorkError("a log-probability is above 0 or not finite; the figures mean nothing")
