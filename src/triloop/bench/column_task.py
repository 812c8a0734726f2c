"""The task of the comparison: sums and differences of two numbers, worked column by column. Standard library only.

    prompt      47+85=
    completion  7+5=12,4+8+1=13#132     units first, then the answer after #

A completion is right when the text after its last ``#`` is the answer. The stream of problems is that of the published
baseline script (one ``random.Random(seed)``: the sign, then two numbers), so that both sides and that script see the same.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

__all__ = [
    "GROUP",
    "MAX_NEW",
    "PROMPTS",
    "TRAIN_COUNT",
    "TRAIN_SEED",
    "Lottery",
    "Problem",
    "fingerprint",
    "flat_share",
    "is_right",
    "problems",
    "rounds",
]

MAX_NEW = 32
GROUP, PROMPTS = 8, 32
TRAIN_SEED, TRAIN_COUNT = 11, 20_000


class Problem(NamedTuple):
    """One sum or difference; differences are never negative."""

    left: int
    sign: str
    right: int

    @property
    def prompt(self) -> str:
        return f"{self.left}{self.sign}{self.right}="

    @property
    def answer(self) -> str:
        return str(self.left + self.right if self.sign == "+" else self.left - self.right)

    @property
    def worked(self) -> str:
        """The completion that the checkpoints were taught."""
        return ",".join(_columns(self)) + f"#{self.answer}"


def _columns(problem: Problem) -> Iterator[str]:
    """One step per column; a borrow is taken from the upper digit before the column is written."""
    carry = 0
    upper, lower = (reversed(str(n)) for n in (problem.left, problem.right))
    for a, b in ((int(x), int(y)) for x, y in zip_longest(upper, lower, fillvalue="0")):
        if problem.sign == "+":
            total = a + b + carry
            yield f"{a}+{b}{'+1' * carry}={total}"
            carry = total // 10
        else:
            top = a - carry
            carry = int(top < b)
            top += 10 * carry
            yield f"{top}-{b}={top - b}"


def problems(count: int, seed: int, largest: int = 99) -> list[Problem]:
    """``count`` problems with numbers 0 .. ``largest``."""
    stream = random.Random(seed)
    found = []
    for _ in range(count):
        sign = stream.choice("+-")
        left, right = stream.randint(0, largest), stream.randint(0, largest)
        if sign == "-" and left < right:
            left, right = right, left
        found.append(Problem(left, sign, right))
    return found


def rounds(stream: Iterable[Problem]) -> Iterator[list[Problem]]:
    """The problems of each round: ``PROMPTS`` in the stream's order; one that the round has already is passed over."""
    found: dict[str, Problem] = {}
    for problem in stream:
        found.setdefault(problem.prompt, problem)
        if len(found) == PROMPTS:
            yield list(found.values())
            found = {}


def fingerprint(prompts: Iterable[str]) -> int:
    """Equal for equal prompts in equal order: how two sides show that they were asked the same."""
    return zlib.crc32("\n".join(prompts).encode())


def is_right(text: str, answer: str) -> bool:
    """Whether the completion ends in the answer."""
    return "#" in text and text.rsplit("#", 1)[1] == answer


class Lottery:
    """Rewards that have nothing to do with the text: half of every group wins, which half is drawn.

    Every group has spread, so that neither side can leave a group out of its update.
    """

    def __init__(self, seed: int = 0) -> None:
        self._stream = random.Random(seed)

    def draw(self, count: int) -> list[bool]:
        """Wins of ``count`` completions, group by group."""
        tickets: list[bool] = []
        for _ in range(count // GROUP):
            group = [True] * (GROUP // 2) + [False] * (GROUP - GROUP // 2)
            self._stream.shuffle(group)
            tickets += group
        return tickets


def flat_share(rewards: Sequence[float]) -> float:
    """Share of groups whose rewards are all alike: their policy gradient is exactly zero."""
    groups = [rewards[i : i + GROUP] for i in range(0, len(rewards), GROUP)]
    return sum(min(g) == max(g) for g in groups) / len(groups)
