"""Judging in the attribute world as a task of its own: is this answer good, or which of two is better? Exactly verified.

prompt      judge tell fox red den : please note the fox is red . ; overall ?
completion  yes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import numpy as np

from triloop.envs import attributes_skills as skills
from triloop.envs.attributes import Attributes
from triloop.envs.attributes_language import ATTRIBUTES
from triloop.envs.world import TextWorld
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt

__all__ = ["AttributeJudging"]

_PRINCIPLE = "overall"


@final
class AttributeJudging(TextWorld):
    """Level = number of requested facts, as in the attribute world. Each answer to be judged fails in every attribute by a
    chance of its own, up to a half."""

    def __init__(
        self,
        task: Literal["ask", "compare"] = "ask",
        *,
        levels: tuple[int, ...] = (1, 2, 3, 4),
        mixture: tuple[int, ...] = (2, 3),
    ) -> None:
        """``ask``: yes or no of one answer; ``compare``: A, B or none of two."""
        if task not in ("ask", "compare"):
            raise ConfigError(f"task is {task!r}; expected ask or compare")
        self._world = Attributes(levels=levels, mixture=mixture)
        self.name, self._task = f"attributes-{task}", task
        self.levels, self.mixture = self._world.levels, self._world.mixture
        self.draws = self._world.draws + 1
        self.max_tokens = skills.SKILLS[task].max_tokens

    @property
    def answers(self) -> tuple[str, ...]:
        """The words that may be right."""
        return skills.SKILLS[self._task].answers

    def draw(self, u: Sequence[float], level: int) -> str | None:
        request = self._world.draw(u[:-1], level)
        if request is None:
            return None
        g, asked = np.random.default_rng(int(u[-1] * 2**53)), self._world.parse(request)
        rates = ({a: 0.5 * float(g.random()) for a in ATTRIBUTES} for _ in range(2))
        first, second = (self._world.demonstration(asked, g, rates=r) for r in rates)
        if self._task == "ask":
            return skills.ask(asked, first, _PRINCIPLE)[0]
        return skills.compare(asked, first, second, _PRINCIPLE)[0]

    def canonical(self, text: str) -> str:
        return self._world.canonical(self._parts(text)[0])

    def parse(self, text: str) -> Prompt:
        request, texts = self._parts(text)
        plain = self._world.parse(request)
        asked, answer = (
            skills.ask(plain, texts[0], _PRINCIPLE)
            if self._task == "ask"
            else skills.compare(plain, texts[0], texts[1], _PRINCIPLE)
        )
        return Prompt(
            id=f"{self.name}:{'-'.join(asked.split())}", text=asked, env=self.name, answer=answer, level=plain.level
        )

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        said = text.strip()
        if said == prompt.answer:
            return self.feedback(1, "right")
        return self.feedback(-1, f"it is {prompt.answer}" if said in self.answers else "no verdict")

    def demonstration(self, prompt: Prompt, rng: np.random.Generator, noise: float) -> str:
        """The right verdict; with probability ``noise`` another."""
        others = [a for a in self.answers if a != prompt.answer]
        return others[int(rng.integers(len(others)))] if rng.random() < noise else str(prompt.answer)

    def right_answer(self, prompt: Prompt) -> str:
        return str(prompt.answer)

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        return ["", prompt.text, *(a for a in self.answers if a != prompt.answer)]

    def _parts(self, text: str) -> tuple[str, list[str]]:
        """The request and the answers to be judged. DataError for what is no such question."""
        head, _, rest = " ".join(text.split()).partition(" ")
        request, colon, shown = rest.partition(" : ")
        body, end, after = shown.rpartition(f" ; {_PRINCIPLE} ?")
        texts = body.removeprefix("A ").split(" ; B ") if self._task == "compare" else [body]
        wanted = {"ask": ("judge", 1), "compare": ("compare", 2)}[self._task]
        if not (colon and end and not after and (head, len(texts)) == wanted and all(t.strip() for t in texts)):
            raise DataError(
                f"{self.name}: {text[:80]!r} is no such question; expected {skills.SKILLS[self._task].template!r}"
            )
        return f"{request} :", texts
