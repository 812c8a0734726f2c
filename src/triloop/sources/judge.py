"""Who judges: a protocol of one method for each way of judging, and an environment's own verifier behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from triloop.records import Feedback, Prompt

if TYPE_CHECKING:
    from triloop.envs.base import Env, Split

__all__ = ["Critic", "EnvJudge", "Judge", "JudgedBy", "PairJudge", "Reviser"]


class Judge(Protocol):
    """Judges completions: one feedback per (prompt, text), in order. A failure is a feedback, not an exception."""

    @property
    def name(self) -> str:
        """Who judges, as the feedback's ``source`` says it."""
        ...

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, text), in order."""
        ...


class PairJudge(Protocol):
    """Says which of two completions of a prompt is better: ``pair`` feedback, +1 the first, -1 the second, 0 a tie."""

    @property
    def name(self) -> str:
        """Who judges, as the feedback's ``source`` says it."""
        ...

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, first, second), in order. A failure is a feedback, not an exception."""
        ...


class Critic(Protocol):
    """Says in words what is wrong with a completion: ``text`` feedback."""

    @property
    def name(self) -> str:
        """Who judges, as the feedback's ``source`` says it."""
        ...

    def critique(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One critique per (prompt, text), in order. A failure is a feedback, not an exception."""
        ...


class Reviser(Protocol):
    """Writes a better completion with a critique in hand: ``edit`` feedback (revised > original)."""

    @property
    def name(self) -> str:
        """Who revised, as the feedback's ``source`` says it."""
        ...

    def revise(self, prompts: Sequence[Prompt], texts: Sequence[str], critiques: Sequence[str]) -> list[Feedback]:
        """One revision per (prompt, text, critique), in order. A failure is a feedback, not an exception."""
        ...


class EnvJudge:
    """What the environment pays: its own ``judge``."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self.name = f"env:{env.name}"

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, text), in order."""
        return self._env.judge(prompts, texts)


class JudgedBy:
    """An environment whose only judge, gold included, is another one: one's own problems with one's own verifier."""

    honest = True

    def __init__(self, env: Env, judge: Judge) -> None:
        self._env, self._judge = env, judge
        self.name, self.max_tokens, self.stop, self.levels = env.name, env.max_tokens, env.stop, env.levels

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """As the environment draws them."""
        return self._env.prompts(split, n, seed=seed, start=start, level=level)

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """As the judge says."""
        return self._judge.judge(prompts, texts)

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """As the judge says: nobody knows better."""
        return self._judge.judge(prompts, texts)

    def right_answer(self, prompt: Prompt) -> str | None:
        """As the environment knows it."""
        return self._env.right_answer(prompt)

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """As the environment makes them up."""
        return self._env.wrong_answers(prompt)
