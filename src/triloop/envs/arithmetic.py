"""Chained arithmetic: keep a running value through additions and subtractions, then say the last one.

    prompt      7+12-5+9=
    completion  19,14,23#23       the running value after each operation, then # and the answer

Only the answer after ``#`` is judged; the running values are the policy's own notes.
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

__all__ = ["Arithmetic"]

_PROBLEM = re.compile(r"[0-9]{1,4}(?:[+-][0-9]{1,4})+")
_TERM = re.compile(r"[+-]?[0-9]+")
_TOP = 99
"""Running values stay in 0 .. 99, so that a small model can learn every single step."""
_SLIPS = (-1, 1, -2, 2, -10, 10)
"""How far a careless teacher is off: the errors of a forgotten unit or a forgotten carry."""


@final
class Arithmetic(TextWorld):
    """Level = number of operations. The default mixture (3 and 4, operands 1 .. 20) has over a million problems."""

    name = "arithmetic"

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8),
        mixture: tuple[int, ...] = (3, 4),
        largest: int = 20,
    ) -> None:
        """``largest`` is the largest operand, 1 .. 99. ConfigError for a mixture outside ``levels``."""
        if not levels or min(levels) < 1 or not mixture or not set(mixture) <= set(levels):
            raise ConfigError(f"arithmetic: mixture {mixture} must be a choice from levels {levels}, each at least 1")
        if not 1 <= largest <= _TOP:
            raise ConfigError(f"arithmetic: largest is {largest}; expected an operand in 1 .. {_TOP}")
        self.levels, self.mixture, self.largest = levels, mixture, largest
        self.draws = 2 * max(levels) + 1
        self.max_tokens = 3 * max(levels) + 4

    def draw(self, u: Sequence[float], level: int) -> str | None:
        value = pick(u[0], 1, self.largest)
        text = str(value)
        for step in range(level):
            minus = value == _TOP or (value > 0 and u[2 * step + 1] < 0.5)
            operand = pick(u[2 * step + 2], 1, min(self.largest, value if minus else _TOP - value))
            value += -operand if minus else operand
            text += f"{'-' if minus else '+'}{operand}"
        return text + "="

    def canonical(self, text: str) -> str:
        return text

    def parse(self, text: str) -> Prompt:
        if not text.endswith("=") or _PROBLEM.fullmatch(text[:-1]) is None:
            raise DataError(f"arithmetic: {text[:80]!r} is not a problem; expected a chain such as '7+12-5='")
        terms = [int(t) for t in _TERM.findall(text)]
        values = _running(terms)
        return Prompt(
            id=f"{self.name}:{text[:-1]}",
            text=text,
            env=self.name,
            answer=str(values[-1]),
            level=len(terms) - 1,
            meta={"values": values},
        )

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        notes, mark, answer = text.partition("#")
        if "#" in answer:
            return self.feedback(-1, f"{text.count('#')} answers where one is allowed")
        if answer == ABSTAIN or text == ABSTAIN:
            return self.feedback(0, "abstained")
        if not mark:
            return self.feedback(-1, "no answer: '#' is missing" if text else "empty")
        if answer == prompt.answer:
            return self.feedback(1, "right")
        return self.feedback(-1, f"answer {answer[:24]!r} is not {prompt.answer}{_slip(prompt, notes)}")

    def demonstration(
        self,
        prompt: Prompt,
        rng: np.random.Generator,
        noise: float,
        *,
        hasty: float = 0.0,
        guess: float = 0.85,
        forget: float = 0.0,
    ) -> str:
        """A careful teacher writes every running value, each with probability ``noise`` off by a slip that carries on.

        With probability ``hasty`` the teacher does not work it out at all but blurts an answer, which is off with
        probability ``guess``; with probability ``forget`` a careful one leaves out the answer. A base trained on such
        teachers knows the careful way and mostly does not take it.
        """
        values = list(prompt.meta["values"])
        u = rng.random(2 * len(values) + 4).tolist()
        if u[-1] < hasty:
            answer = values[-1]
            return f"#{answer if u[-2] >= guess else answer + _slip_of(u[-3], [answer])}"
        for k in range(len(values)):
            if u[2 * k] < noise:
                slip = _slip_of(u[2 * k + 1], values[k:])
                values[k:] = [v + slip for v in values[k:]]
        return ",".join(map(str, values)) + ("" if u[-4] < forget else f"#{values[-1]}")

    def right_answer(self, prompt: Prompt) -> str:
        return ",".join(map(str, prompt.meta["values"])) + f"#{prompt.answer}"

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        right, answer = self.right_answer(prompt), str(prompt.answer)
        spoiled = right.removesuffix(answer) + str(int(answer) + 1)
        return [
            "",
            prompt.text,
            answer,
            spoiled,
            f"{right} ",
            f"{right}#{answer}",
            f"{spoiled}#{answer}",
            "#0" + answer,
        ]


def _running(terms: Sequence[int]) -> list[int]:
    """The value after each operation: one fewer than there are terms."""
    values, total = [], terms[0]
    for term in terms[1:]:
        total += term
        values.append(total)
    return values


def _slip_of(u: float, rest: Sequence[int]) -> int:
    """The slip that ``u`` chooses among those that keep these values in range; 0 when none does."""
    slips = [s for s in _SLIPS if min(rest) + s >= 0 and max(rest) + s <= _TOP]
    return slips[pick(u, 0, len(slips) - 1)] if slips else 0


def _slip(prompt: Prompt, notes: str) -> str:
    """Where the written running values first leave the true ones, as the tail of a reason."""
    if not notes:
        return ""
    for k, (got, want) in enumerate(zip(notes.split(","), map(str, prompt.meta["values"]), strict=False), start=1):
        if got != want:
            return f"; running value {k} is {got[:24]!r}, should be {want}"
    return ""
