"""Sorting: write the characters of the prompt in order, digits before letters.

prompt      s 4b17=
completion  147b
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import final

import numpy as np

from triloop.envs.charset import ABSTAIN
from triloop.envs.world import TextWorld, pick
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt

__all__ = ["Sort"]

_PROBLEM = re.compile(r"s ([0-9a-z]+)=")
_SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyz"


@final
class Sort(TextWorld):
    """Level = number of characters. Two prompts with the same characters are one problem, whatever their order."""

    name = "sort"

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
        mixture: tuple[int, ...] = (5, 6, 7, 8),
        symbols: str = _SYMBOLS,
    ) -> None:
        """``symbols`` are the characters to draw from. ConfigError for a mixture outside ``levels``."""
        if not levels or min(levels) < 2 or not mixture or not set(mixture) <= set(levels):
            raise ConfigError(f"sort: mixture {mixture} must be a choice from levels {levels}, each at least 2")
        if len(set(symbols)) < 4 or not set(symbols) <= set(_SYMBOLS):
            raise ConfigError(f"sort: symbols {symbols!r} must be at least four of {_SYMBOLS!r}")
        self.levels, self.mixture, self.symbols = levels, mixture, symbols
        self.draws = max(levels)
        self.max_tokens = max(levels) + 2

    def draw(self, u: Sequence[float], level: int) -> str | None:
        chosen = "".join(self.symbols[pick(u[k], 0, len(self.symbols) - 1)] for k in range(level))
        # A string of one repeated character has no wrong order, and so no wrong answer to learn from.
        return None if len(set(chosen)) == 1 else f"s {chosen}="

    def canonical(self, text: str) -> str:
        return "".join(sorted(text[2:-1]))

    def parse(self, text: str) -> Prompt:
        match = _PROBLEM.fullmatch(text)
        if match is None or len(set(match[1])) < 2:
            raise DataError(f"sort: {text[:80]!r} is not a problem; expected digits and letters such as 's 4b17='")
        return Prompt(
            id=f"{self.name}:{match[1]}",
            text=text,
            env=self.name,
            answer="".join(sorted(match[1])),
            level=len(match[1]),
        )

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        if text == prompt.answer:
            return self.feedback(1, "right")
        if text == ABSTAIN:
            return self.feedback(0, "abstained")
        return self.feedback(-1, _fault(str(prompt.answer), text))

    def demonstration(self, prompt: Prompt, rng: np.random.Generator, noise: float) -> str:
        """Each neighbouring pair is, with probability ``noise``, written the wrong way round."""
        out = list(str(prompt.answer))
        u = rng.random(len(out)).tolist()
        for k in range(len(out) - 1):
            if u[k] < noise:
                out[k], out[k + 1] = out[k + 1], out[k]
        return "".join(out)

    def right_answer(self, prompt: Prompt) -> str:
        return str(prompt.answer)

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        right = str(prompt.answer)
        return ["", prompt.text, right[::-1], right[:-1], right + right[-1], f"{right} ", right[1:] + right[0]]


def _fault(answer: str, text: str) -> str:
    """What is wrong with a text that is not the answer."""
    if not text:
        return "empty"
    if len(text) != len(answer):
        return f"{len(text)} characters where {len(answer)} were given"
    strange = set(text) - set(answer)
    if strange:
        return f"{min(strange)!r} was not given"
    k = next((k for k in range(len(text) - 1) if text[k] > text[k + 1]), None)
    if k is None:
        return "in order, but a character is written too often or too rarely"
    return f"{text[k]!r} stands before {text[k + 1]!r}"
