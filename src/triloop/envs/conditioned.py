"""A task whose prompts ask for a certain feedback: the words stand before the request, and the judge never sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from triloop.envs.base import Env, Split
from triloop.records import Feedback, Prompt, Turn

__all__ = ["Conditioned", "with_condition"]


def with_condition(prompt: Prompt, template: str, control: str) -> Prompt:
    """The prompt with wished-for feedback before its request, or before its last turn. It has an id of its own."""
    id = f"{prompt.id}|{control}"
    if not prompt.turns:
        return replace(prompt, id=id, text=template.format(control=control, request=prompt.text))
    *before, last = prompt.turns
    turn = Turn(role=last.role, text=template.format(control=control, request=last.text))
    return replace(prompt, id=id, turns=(*before, turn))


class Conditioned:
    """``env``, asking for ``control`` in every prompt. Judgements are those of the plain problem."""

    def __init__(self, env: Env, template: str, control: str) -> None:
        self._env, self._template, self._control = env, template, control
        self.name, self.max_tokens, self.stop, self.levels = env.name, env.max_tokens, env.stop, env.levels
        self._plain: dict[str, Prompt] = {}

    @property
    def honest(self) -> bool:
        """As the task is."""
        return self._env.honest

    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        """As the task draws them, with the condition."""
        drawn = self._env.prompts(split, n, seed=seed, start=start, level=level)
        asked = [with_condition(p, self._template, self._control) for p in drawn]
        self._plain.update({a.id: p for a, p in zip(asked, drawn, strict=True)})
        return asked

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """As the task judges the plain problems."""
        return self._env.judge(self._as_drawn(prompts), texts)

    def gold(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """As the task judges the plain problems."""
        return self._env.gold(self._as_drawn(prompts), texts)

    def right_answer(self, prompt: Prompt) -> str | None:
        """As the task knows it."""
        return self._env.right_answer(self._plain.get(prompt.id, prompt))

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        """As the task makes them up."""
        return self._env.wrong_answers(self._plain.get(prompt.id, prompt))

    def _as_drawn(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return [self._plain.get(p.id, p) for p in prompts]
