"""What the small text worlds share: how problems are drawn, split, named and written back from their text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar, final

import numpy as np

from triloop import rng
from triloop.envs.base import Split, World, split_of
from triloop.envs.reading import Row, text_field
from triloop.errors import ConfigError, DataError
from triloop.records import Feedback, Prompt

__all__ = ["TextWorld", "pick", "redraw"]

T = TypeVar("T")
_MAX_TRIES = 2000
"""A split holds at least one problem in sixteen, so this many misses mean that a level is too small, not bad luck."""


def pick(u: float, low: int, high: int) -> int:
    """The integer in ``low .. high`` (both included) that a uniform number ``u`` in [0, 1) stands for."""
    return low + int(u * (high - low + 1))


def redraw(
    name: str,
    keys: Sequence[int],
    split: Split,
    width: int,
    draw: Callable[[Sequence[float]], T | None],
    canonical: Callable[[T], str],
) -> list[T]:
    """One problem for each key: drawn again, from the key's own stream, until its hash falls into the split.

    ``draw`` turns ``width`` numbers in [0, 1) into a problem or None. ConfigError when a split seems to hold none.
    """
    streams = np.array(keys, dtype=np.uint64)
    found: dict[int, T] = {}
    pending = list(range(len(keys)))
    for attempt in range(_MAX_TRIES):
        if not pending:
            return [found[k] for k in range(len(keys))]
        for k, u in zip(pending, rng.uniforms(streams[pending], attempt * width, width).tolist(), strict=True):
            problem = draw(u)
            if problem is not None and split_of(f"{name}:{canonical(problem)}") == split:
                found[k] = problem
        pending = [k for k in pending if k not in found]
    raise ConfigError(
        f"{name}: no problem of this level falls into split {split!r}; widen the world or change the level"
    )


class TextWorld(World):
    """A world whose problem is one line of characters from which the verifier can read back all it needs.

    A subclass says how uniform numbers become a problem (``draw``), which problems are the same (``canonical``), how a
    line is read (``parse``), how an answer is judged (``verify``) and how a teacher writes one (``demonstration``).
    """

    draws: int
    """How many uniform numbers one call of ``draw`` may read."""
    mixture: tuple[int, ...]
    """Levels that are drawn, equally often, when none is asked for."""

    @abstractmethod
    def draw(self, u: Sequence[float], level: int) -> str | None:
        """The text of one problem of this level from ``draws`` numbers in [0, 1); None when they give none."""

    @abstractmethod
    def canonical(self, text: str) -> str:
        """The problem behind a prompt's text: two texts with one canonical form are the same problem."""

    @abstractmethod
    def parse(self, text: str) -> Prompt:
        """The prompt that this text is. DataError when it is not a problem of this world."""

    @abstractmethod
    def demonstration(self, prompt: Prompt, rng: np.random.Generator, noise: float) -> str:
        """A completion as a teacher writes it, who errs with probability ``noise`` at each step."""

    @final
    def prompts(self, split: Split, n: int, *, seed: int, start: int = 0, level: int | None = None) -> list[Prompt]:
        if level is not None and level not in self.levels:
            raise ConfigError(f"{self.name}: level {level} does not exist; choose one of {list(self.levels)}")
        keys = [rng.key(seed, "env", self.name, split, level or 0, i) for i in range(start, start + n)]

        def draw(u: Sequence[float]) -> str | None:
            chosen = self.mixture[pick(u[0], 0, len(self.mixture) - 1)] if level is None else level
            return self.draw(u[1:], chosen)

        return [self.parse(text) for text in redraw(self.name, keys, split, self.draws + 1, draw, self.canonical)]

    @final
    def read(self, row: Row) -> Prompt:
        """The prompt of a recorded row, parsed from its ``prompt`` (or ``question``)."""
        try:
            return self.parse(text_field(row, "prompt", "question"))
        except DataError as error:
            message = str(error)
            raise DataError(message if message.startswith(row.where) else f"{row.where}: {message}") from error

    @final
    def feedback(self, value: int, reason: str) -> Feedback:
        """A judgement of this world."""
        return Feedback(value=value, reason=reason, source=f"env:{self.name}")
