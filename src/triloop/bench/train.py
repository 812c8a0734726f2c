"""Learning alone: credit, forward, backward, clip, AdamW."""

from __future__ import annotations

import math
import random
from time import perf_counter
from typing import final

from triloop.bench import column_task as task
from triloop.bench.case import PROMPT, Case
from triloop.bench.limits import MOST_ROWS, Floor, Limits, floor
from triloop.bench.model import make_policy, random_prompts
from triloop.bench.work import Samples, learning
from triloop.errors import WorkError
from triloop.learn.algorithms import resolve
from triloop.learn.build import build_batch
from triloop.learn.update import policy_loss
from triloop.policies.native import NativePolicy
from triloop.records import Completion, Episode, Prompt

__all__ = ["Train", "passes"]


@final
class Train:
    """One optimiser step of GRPO a run, on random tokens that are rewarded by lot: every group has spread."""

    def __init__(self, case: Case) -> None:
        self.algorithm = resolve("grpo")
        self.policy = make_policy(case, entropy=self.algorithm.needs_entropy)
        self.samples = Samples(prompts=(PROMPT,) * (case.batch // case.group), group=case.group, length=case.length)
        self.episodes = _episodes(self.policy, self.samples)
        self.rows, self.pass_tokens = 0, min(MOST_ROWS, self.samples.tokens)

    def work(self, runs: int) -> list[dict[str, float]]:
        """Seconds of so many steps, by part."""
        return [self._step() for _ in range(runs)]

    def floor(self, limits: Limits) -> Floor:
        """Three times the forward pass."""
        c, size = self.policy.decoder.config, self.policy.precision.itemsize
        return floor(learning(c, self.samples, size, passes(self.policy, self.samples)), limits.learn, limits.bandwidth)

    def close(self) -> None:
        """Nothing is left behind."""

    def _step(self) -> dict[str, float]:
        t0 = perf_counter()
        batch, figures = build_batch(self.episodes, self.algorithm, max_tokens=self.samples.length)
        if batch is None or figures["trained_share"] != 1.0:
            raise WorkError("a completion was left out of the update; the figures mean nothing")
        t1 = perf_counter()
        metrics = self.policy.forward_backward(batch, policy_loss(self.algorithm))
        t2 = perf_counter()
        metrics |= self.policy.optim_step(1e-5)
        t3 = perf_counter()
        if (
            metrics["tokens"] != self.samples.tokens
            or not math.isfinite(metrics["loss"])
            or not metrics["grad_norm"] > 0
        ):
            raise WorkError(f"the step is not one on {self.samples.tokens} tokens: {metrics}")
        return {"credit": t1 - t0, "forward_backward": t2 - t1, "optimiser": t3 - t2}


def passes(policy: NativePolicy, samples: Samples) -> int:
    """Micro-batches of an optimiser step."""
    tokens = samples.tokens + sum(samples.prompts)  # a prompt once for its group
    return -(-tokens // policy.learner.micro_tokens)


def _episodes(policy: NativePolicy, samples: Samples) -> list[Episode]:
    """A round as the loop would hand it over."""
    draw, vocab = random.Random(0), policy.decoder.config.vocab_size
    wins = task.Lottery().draw(samples.count)
    prompts: list[Prompt] = random_prompts(len(samples.prompts))
    found = []
    for i in range(samples.count):
        prompt = prompts[i // samples.group]
        tokens = tuple(draw.randrange(4, vocab) for _ in range(samples.length))
        completion = Completion(
            id=f"1/{i}",
            prompt_id=prompt.id,
            round=1,
            index=i % samples.group,
            prompt_tokens=policy.encode(prompt),
            tokens=tokens,
            logps=(-math.log(vocab),) * len(tokens),
            mask=(True,) * len(tokens),
            text="",
            finish="length",
            policy_version=0,
        )
        found.append(Episode(prompt=prompt, completion=completion, feedback=(), reward=1.0 if wins[i] else -1.0))
    return found
