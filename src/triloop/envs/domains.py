"""Several tasks as one: each is a level of its own, so that a curriculum can say how much of each to practise.

Named by joining their names, ``arithmetic+sort``. A prompt keeps the name of its task and is judged by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol, final

import numpy as np

from triloop.envs.base import Env, Split
from triloop.envs.reading import Row
from triloop.envs.scoring import RowEnv
from triloop.envs.world import TextWorld
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt

__all__ = ["Domains", "Teacher", "teacher"]


class Teacher(Protocol):
    """Who can show how a task is done."""

    def demonstration(self, prompt: Prompt, rng: np.random.Generator, noise: float) -> str:
        """A completion as a teacher writes it, who errs with probability ``noise`` at each step."""
        ...


def teacher(env: Env) -> Teacher | None:
    """The task's own teacher; None for a task without one, and for several of which one has none."""
    if isinstance(env, Domains):
        return env if all(teacher(task) is not None for task in env.tasks) else None
    return env if isinstance(env, TextWorld) else None


@final
class Domains:
    """Level k is task k, in its own default mixture; without a level the tasks take turns.

    A judgement's breakdown has the task's name as one more part, 1 where the sample passes, so that evaluations show how
    each task fares. ConfigError for fewer than two tasks, for one that is named twice, and for tasks that stop differently.
    """

    def __init__(self, tasks: Sequence[RowEnv]) -> None:
        names = [task.name for task in tasks]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"tasks to join are {', '.join(names) or 'none'}; expected two or more different ones")
        if len({tuple(task.stop) for task in tasks}) > 1:
            raise ConfigError(f"{'+'.join(names)}: these tasks end their completions differently; join others")
        self.tasks = tuple(tasks)
        self.name = "+".join(names)
        self.max_tokens = max(task.max_tokens for task in tasks)
        self.stop = tuple(tasks[0].stop)
        self.levels = tuple(range(len(tasks)))
        self._by_name = dict(zip(names, self.tasks, strict=True))

    @property
    def honest(self) -> bool:
        """Whether every task is."""
        return all(task.honest for task in self.tasks)

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """As ``Env.prompts``; prompt i of all is prompt i // k of task i mod k."""
        if level is not None and level not in self.levels:
            raise ConfigError(f"{self.name}: level {level} does not exist; choose one of {list(self.levels)}")
        if level is not None:
            return [replace(p, level=level) for p in self.tasks[level].prompts(split, n, seed=seed, start=start)]
        k = len(self.tasks)
        wanted = [[i // k for i in range(start, start + n) if i % k == task] for task in self.levels]
        drawn: dict[tuple[int, int], Prompt] = {}
        for task, places in enumerate(wanted):
            got = self.prompts(split, len(places), seed=seed, start=places[0], level=task) if places else []
            drawn |= {(task, place): p for place, p in zip(places, got, strict=False)}
        order = ((i % k, i // k) for i in range(start, start + n))
        return [drawn[at] for at in order if at in drawn]

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """By the task of each prompt."""
        return self._each(prompts, texts, lambda task: task.judge)

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """By the task of each prompt."""
        return self._each(prompts, texts, lambda task: task.gold)

    def right_answer(self, prompt: Prompt) -> str | None:
        """As the task knows it."""
        return self._of(prompt).right_answer(prompt)

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """As the task makes them up."""
        return self._of(prompt).wrong_answers(prompt)

    def demonstration(self, prompt: Prompt, rng: np.random.Generator, noise: float) -> str:
        """As the task's teacher writes it."""
        task = self._of(prompt)
        if not isinstance(task, TextWorld):
            raise ConfigError(f"{task.name} has no teacher; join tasks that have one")
        return task.demonstration(prompt, rng, noise)

    def read(self, row: Row) -> Prompt:
        """By the first task that understands the row."""
        for level, task in enumerate(self.tasks):
            try:
                return replace(task.read(row), level=level)
            except DataError:
                continue
        raise DataError(f"{row.where}: this is a problem of none of {', '.join(self._by_name)}")

    def _of(self, prompt: Prompt) -> RowEnv:
        return self._by_name[prompt.env]

    def _each(
        self,
        prompts: Sequence[Prompt],
        texts: Sequence[str],
        how: Callable[[RowEnv], Callable[[Sequence[Prompt], Sequence[str]], list[Feedback]]],
    ) -> list[Feedback]:
        """In order; neighbours of one task are judged in one call."""
        out: list[Feedback] = []
        rows = zip(prompts, texts, strict=True)
        for name, group in groupby(rows, key=lambda row: row[0].env):
            mine = list(group)
            told = how(self._by_name[name])([p for p, _ in mine], [t for _, t in mine])
            out += [replace(f, breakdown={**f.breakdown, name: float((f.value or 0.0) > 0)}) for f in told]
        return out
