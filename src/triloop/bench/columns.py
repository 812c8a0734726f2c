"""Whole rounds on the column task: the loop that ``triloop run`` runs, with its store and its guards.

Held-out evaluations and the canary are off, since the trainer that this is compared with has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import torch

from triloop.bench import column_task as task
from triloop.envs.base import Split, World
from triloop.guards.stack import GuardConfig, build
from triloop.learn.algorithms import resolve
from triloop.learn.choices import AlgorithmConfig, OptimConfig
from triloop.loops.build import describe_machine
from triloop.loops.config import RunConfig, to_mapping
from triloop.loops.learning import policy_gradient
from triloop.loops.outcome import outcome_round
from triloop.loops.progress import Progress
from triloop.loops.state import Workshop
from triloop.policies.protocol import Policy
from triloop.policies.sampling import Sampling
from triloop.records import Feedback, Prompt
from triloop.sources.judge import EnvJudge, Judge
from triloop.store.run import Run

__all__ = ["Columns", "LotteryJudge", "settings", "workshop"]


@final
class Columns(World):
    """Column-wise sums and differences as an environment."""

    name = "columns"
    max_tokens = task.MAX_NEW

    def __init__(self) -> None:
        self._problems = task.problems(task.TRAIN_COUNT, task.TRAIN_SEED)

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """Always the same stream."""
        every = self._problems
        found = (every[i % len(every)] for i in range(start, start + n))
        return [Prompt(id=p.prompt, text=p.prompt, answer=p.answer, meta={"worked": p.worked}) for p in found]

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        """Right when the text after its last ``#`` is the answer."""
        right = task.is_right(text, prompt.answer or "")
        return Feedback(value=1 if right else -1, reason="right" if right else "wrong", source="env:columns")

    def right_answer(self, prompt: Prompt) -> str:
        """The worked solution."""
        return str(prompt.meta["worked"])

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """Nothing, the prompt, a longer number."""
        return ["", prompt.text, f"#{prompt.answer}0"]


@final
class LotteryJudge:
    """Rewards by lot: every group has spread, no group can be left out."""

    name = "lottery"

    def __init__(self) -> None:
        self._lottery = task.Lottery()

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """Half of each group wins."""
        return [Feedback(value=1 if win else -1, source=self.name) for win in self._lottery.draw(len(texts))]


def settings(policy: str, *, threads: int, precision: str, length: int = task.MAX_NEW,
             prompts: int = task.PROMPTS, banned: tuple[int, ...] = ()) -> RunConfig:  # fmt: skip
    """The settings of the comparison; everything not named here is Triloop's default."""
    return RunConfig(
        recipe="versus",
        policy=policy,
        algorithm=AlgorithmConfig(name="dapo", clip_high=0.2, dynamic_sampling=False),
        optim=OptimConfig(lr=1e-5, betas=(0.9, 0.999), warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0),
        sampling=Sampling(max_tokens=length, banned_tokens=banned),
        guards=GuardConfig(pair_stops=False),
        rounds=100_000,
        prompts_per_round=prompts,
        group_size=task.GROUP,
        eval_every=0,
        canary_every=0,
        threads=threads,
        precision=precision,  # type: ignore[arg-type]
    )


def workshop(
    config: RunConfig,
    policy: Policy,
    folder: Path,
    *,
    lottery: bool,
    progress: Progress,
    interrupted: Callable[[], bool] = lambda: False,
) -> Workshop:
    """The parts of a run, as ``triloop.loops.build`` puts them together, on this task; the run begins in ``folder``."""
    env = Columns()
    judge: Judge = LotteryJudge() if lottery else EnvJudge(env)
    environment = describe_machine(torch.get_num_threads(), policy.precision, policy.device)
    return Workshop(
        config=config,
        policy=policy,
        reference=policy.frozen(),
        env=env,
        judge=judge,
        algorithm=resolve(config.algorithm),
        guards=build(config.guards),
        run=Run.create(folder, to_mapping(config), environment),
        progress=progress,
        interrupted=interrupted,
        play=outcome_round(policy_gradient),
    )
