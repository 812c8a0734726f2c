"""What a task is: prompts, and a verifier that judges what a policy made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol

from triloop import rng
from triloop.records import Feedback, Prompt

__all__ = ["Env", "Split", "World", "split_of"]

Split = Literal["train", "eval", "canary"]


class Env(Protocol):
    """A task that carries its own verifier.

    ``prompts`` is a pure function of its arguments: prompt ``i`` of a split depends on ``(split, seed, i, level)`` alone,
    and no problem is in two splits. ``judge`` is what the learner is paid by; ``gold`` is the judgement we really want
    and is read only by evaluation and guards. In an honest task they are the same function.
    """

    name: str
    max_tokens: int
    """Longest completion in tokens that the task needs."""
    stop: tuple[str, ...]
    """Stop sequences besides the end-of-sequence token."""
    levels: tuple[int, ...]
    """Difficulties that can be asked for, easiest first; ``(0,)`` when there is only one."""

    @property
    def honest(self) -> bool:
        """Whether ``judge`` *is* ``gold``, so that nobody need ask both. In doubt False: asking twice is only slow."""
        ...

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """Prompts ``start .. start+n-1`` of a split; ``level`` None is the task's own default mixture."""
        ...

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """One judgement per (prompt, completion text), in order. Never raises for any text."""
        ...

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """The judgement we really want; equal to ``judge`` in an honest task."""
        ...

    def right_answer(self, prompt: Prompt) -> str | None:
        """A completion that must be accepted, or None when none is known."""
        ...

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """Completions that must not be accepted: a perturbed answer, an empty one, an echo of the prompt."""
        ...


class World(ABC):
    """An exact-verifier task: ``verify`` judges one text, and gold is the same judgement."""

    name: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    levels: tuple[int, ...] = (0,)

    @property
    def honest(self) -> bool:
        """True unless a subclass has a ``gold`` of its own; one that forgets to say so is not taken at its word."""
        return type(self).gold is World.gold

    @abstractmethod
    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]: ...

    @abstractmethod
    def verify(self, prompt: Prompt, text: str) -> Feedback:
        """+1 right, 0 abstained, -1 wrong; the reason says why."""

    @abstractmethod
    def right_answer(self, prompt: Prompt) -> str | None: ...

    @abstractmethod
    def wrong_answers(self, prompt: Prompt) -> list[str]: ...

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        return [self.verify(p, t) for p, t in zip(prompts, texts, strict=True)]

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        return self.judge(prompts, texts)


def split_of(problem: str) -> Split:
    """Which split a problem belongs to: a hash of the problem itself, so no seed can move it from one to another.

    One in eight is held out for evaluation and one in sixteen for the guards' canary.
    """
    bucket = rng.key("split", problem) % 16
    return "eval" if bucket < 2 else "canary" if bucket == 2 else "train"
