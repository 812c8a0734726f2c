"""Countdown: reach a target by using every given number exactly once. The policy searches and checks in writing.

    prompt      3 5 7=26:
    completion  3+5=8,8*7=56;5*7=35,35-3=32;3*7=21,21+5=26

Attempts are separated by ``;`` and the last one is the answer. A step takes two of the numbers that are left and puts
back their result, a whole number of at least 0 (division must come out even).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, final

import numpy as np

from triloop.envs.charset import ABSTAIN
from triloop.envs.world import TextWorld, pick
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt

__all__ = ["Countdown", "Op", "solutions", "solve"]

Op = Literal["+", "-", "*", "/"]
_OPS: tuple[Op, ...] = ("+", "-", "*", "/")
_PROBLEM = re.compile(r"((?:[1-9][0-9]{0,2} ){2,5}[1-9][0-9]{0,2})=([1-9][0-9]{0,3}):")
_STEP = re.compile(r"(0|[1-9][0-9]{0,5})([-+*/])(0|[1-9][0-9]{0,5})=(0|[1-9][0-9]{0,9})")
_TOP = 999
"""Generated problems and teachers keep intermediate results at or below this."""


def _apply(a: int, op: str, b: int) -> int | None:
    """``a op b`` when it is a whole number of at least 0, else None."""
    if op == "+":
        return a + b
    if op == "*":
        return a * b
    if op == "-":
        return a - b if a >= b else None
    return a // b if b and a % b == 0 else None


def solutions(numbers: Sequence[int], target: int) -> Iterator[str]:
    """Every answer as written steps, ``3*7=21,21+5=26``, in a fixed order. Each uses all numbers once."""
    if len(numbers) == 1:
        if numbers[0] == target:
            yield ""
        return
    for step, rest in _moves(tuple(numbers)):
        if len(rest) == 1:
            if rest[0] == target:
                yield step
        else:
            for tail in solutions(rest, target):
                yield f"{step},{tail}"


def solve(numbers: Sequence[int], target: int) -> str | None:
    """One answer as written steps, or None when there is none."""
    return next(solutions(numbers, target), None)


def _moves(numbers: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each possible step, as written and as the numbers it leaves. The larger operand stands first."""
    for i in range(len(numbers)):
        for j in range(i + 1, len(numbers)):
            a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
            others = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            for op in _OPS:
                result = _apply(a, op, b)
                if result is not None and result <= _TOP:
                    yield f"{a}{op}{b}={result}", (*others, result)


@final
class Countdown(TextWorld):
    """Level = how many numbers, 3 or 4. With three numbers of 1 .. 20 and targets of 1 .. 100: over 15,000 problems."""

    name = "countdown"

    def __init__(
        self,
        *,
        levels: tuple[int, ...] = (3, 4),
        mixture: tuple[int, ...] = (3,),
        largest: int = 20,
        targets: tuple[int, int] = (1, 100),
        attempts: int = 6,
    ) -> None:
        """Numbers 1 .. ``largest``, targets within ``targets``; a teacher writes at most ``attempts`` attempts."""
        if not levels or not set(levels) <= {3, 4} or not mixture or not set(mixture) <= set(levels):
            raise ConfigError(f"countdown: levels {levels} must be 3 or 4, and mixture {mixture} a choice from them")
        if not 4 <= largest <= _TOP or not 1 <= targets[0] < targets[1] <= _TOP or attempts < 1:
            raise ConfigError(
                f"countdown: got largest {largest}, targets {targets}, attempts {attempts}; expected a largest number "
                f"of 4 .. {_TOP}, targets (low, high) within 1 .. {_TOP}, and at least one attempt"
            )
        self.levels, self.mixture, self.largest = levels, mixture, largest
        self.targets, self.attempts = targets, attempts
        self.draws = 3 * max(levels)
        self.max_tokens = 96 if max(mixture) == 3 else 144

    def draw(self, u: Sequence[float], level: int) -> str | None:
        numbers = tuple(pick(x, 1, self.largest) for x in u[:level])
        left, rest = numbers, u[level:]
        for k in range(level - 1):
            pair = pick(rest[2 * k], 0, len(left) * (len(left) - 1) // 2 - 1)
            moved = _random_step(left, pair, rest[2 * k + 1])
            left = moved[1]
        if not self.targets[0] <= left[0] <= self.targets[1] or left[0] in numbers:
            return None
        return f"{' '.join(map(str, numbers))}={left[0]}:"

    def canonical(self, text: str) -> str:
        numbers, target = text[:-1].split("=")
        return f"{sorted(map(int, numbers.split()))}={target}"

    def parse(self, text: str) -> Prompt:
        match = _PROBLEM.fullmatch(text)
        if match is None:
            raise DataError(f"countdown: {text[:80]!r} is not a problem; expected numbers and target, '3 5 7=26:'")
        numbers = [int(x) for x in match[1].split()]
        return Prompt(
            id=f"{self.name}:{text[:-1]}",
            text=text,
            env=self.name,
            level=len(numbers),
            meta={"numbers": numbers, "target": int(match[2])},
        )

    def verify(self, prompt: Prompt, text: str) -> Feedback:
        last = text.rpartition(";")[2]
        if last == ABSTAIN:
            return self.feedback(0, "abstained")
        fault = _fault(last, list(prompt.meta["numbers"]), prompt.meta["target"])
        return self.feedback(-1, fault) if fault else self.feedback(1, "right")

    def demonstration(
        self, prompt: Prompt, rng: np.random.Generator, noise: float, *, guide: float = 0.1, aim: float = 0.5
    ) -> str:
        """A search: attempts until one succeeds; with probability ``noise`` the teacher gives up after a failure.

        The first step of an attempt is, with probability ``guide``, one that can lead to the target; else it is random.
        The last step goes, with probability ``aim``, to the result nearest to the target. At most ``attempts`` are
        written, and no more than ``max_tokens`` holds, so that a search may also end in failure.
        """
        numbers, target = tuple(prompt.meta["numbers"]), prompt.meta["target"]
        known = list(solutions(numbers, target))
        written: list[str] = []
        u = rng.random(self.attempts * (2 * len(numbers) + 2)).tolist()
        width = 2 * len(numbers) + 2
        for k in range(self.attempts):
            draw = u[k * width : (k + 1) * width]
            attempt, result = _attempt(numbers, target, known if draw[0] < guide else [], aim, draw[2:])
            if written and len(";".join(written)) + len(attempt) + 2 > self.max_tokens:
                break
            written.append(attempt)
            if result == target or draw[1] < noise:
                break
        return ";".join(written)

    def right_answer(self, prompt: Prompt) -> str | None:
        return solve(prompt.meta["numbers"], prompt.meta["target"])

    def wrong_answers(self, prompt: Prompt) -> list[str]:
        numbers, target = prompt.meta["numbers"], prompt.meta["target"]
        wrong = ["", prompt.text, str(target), f"{target}+0={target}", f"{numbers[0]}+{numbers[1]}={target}"]
        right = self.right_answer(prompt)
        if right is None:
            return wrong
        head, _, result = right.rpartition("=")
        return [
            *wrong,
            f"{head}={int(result) + 1}",
            f"{right} ",
            f"{right};",
            right.partition(",")[0],
            f"{right},{right}",
        ]


def _random_step(left: tuple[int, ...], pair: int, u: float) -> tuple[str, tuple[int, ...]]:
    """The step that combines the ``pair``-th pair of the numbers left with an operation that ``u`` chooses."""
    pairs = [(i, j) for i in range(len(left)) for j in range(i + 1, len(left))]
    i, j = pairs[pair]
    options = list(_moves((left[i], left[j])))
    step, made = options[pick(u, 0, len(options) - 1)]
    return step, (*left[:i], *left[i + 1 : j], *left[j + 1 :], *made)


def _attempt(
    numbers: tuple[int, ...], target: int, known: Sequence[str], aim: float, u: Sequence[float]
) -> tuple[str, int]:
    """One attempt as written and what it comes to. ``known`` answers lend their first step."""
    steps: list[str] = []
    left = numbers
    if known:
        first = known[pick(u[0], 0, len(known) - 1)].partition(",")[0]
        left = next(rest for step, rest in _moves(left) if step == first)
        steps.append(first)
    while len(left) > 1:
        k = 2 * len(steps)
        if len(left) == 2 and u[k + 1] < aim:
            step, left = min(_moves(left), key=lambda move: abs(move[1][0] - target))
        else:
            pair = pick(u[k], 0, len(left) * (len(left) - 1) // 2 - 1)
            # The same number decides whether to aim and, when not aiming, where to go: stretch it back to [0, 1).
            where = (u[k + 1] - aim) / (1 - aim) if len(left) == 2 else u[k + 1]
            step, left = _random_step(left, pair, where)
        steps.append(step)
    return ",".join(steps), left[0]


def _fault(attempt: str, left: list[int], target: int) -> str:
    """What is wrong with the last attempt, or the empty string."""
    if not attempt:
        return "empty"
    result = -1
    for number, step in enumerate(attempt.split(","), start=1):
        match = _STEP.fullmatch(step)
        if match is None:
            return f"step {number} {step[:24]!r} is not of the form 3*7=21"
        a, op, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        for operand in (a, b):
            if operand not in left:
                return f"step {number} uses {operand}, which is not left"
            left.remove(operand)
        want = _apply(a, op, b)
        if want is None:
            return f"step {number}: {a}{op}{b} is not a whole number of at least 0"
        if result != want:
            return f"step {number}: {a}{op}{b} is {want}, not {result}"
        left.append(result)
    if len(left) > 1:
        return f"{len(left)} numbers are left where one is expected"
    return "" if result == target else f"reaches {result}, not {target}"
