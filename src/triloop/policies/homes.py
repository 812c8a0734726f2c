"""Which cache row each row of the engine reads: rows with one history share one, until they draw different tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Homes", "Regrouped"]


@dataclass(frozen=True, slots=True)
class Regrouped:
    """What each cache row does next: it becomes what row ``sources`` was, and appends ``tokens`` at ``positions``.
    Position 0 is a gap."""

    sources: Int[Tensor, " count"]
    tokens: Int[Tensor, " count"]
    positions: Int[Tensor, " count"]


@final
class Homes:
    """The cache row of each engine row, -1 for one that is free.

    Rows that move cost nothing where a cache is made of pages: they stand without gaps, with those that began alike side by
    side. ``stable``: moving a row copies it, and rows stay where they are as long as gaps are few.
    """

    def __init__(self, rows: int, *, stable: bool) -> None:
        self.rows, self.stable = rows, stable
        self.of: NDArray[np.int64] = np.full(rows, -1)

    def give(self, rows: Sequence[int], groups: Int[np.ndarray, " rows"], count: int) -> NDArray[np.int64]:
        """Home for ``count`` fresh histories, shared by the engine rows ``rows`` as ``groups`` says; the cache rows, the
        lowest that nobody reads."""
        self.of[rows] = -1
        used = np.zeros(self.rows, np.bool_)
        used[self.of[self.of >= 0]] = True
        homes = np.flatnonzero(~used)[:count]
        self.of[rows] = homes[groups]
        return homes

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget every engine row but these."""
        self.of = self.of[rows.numpy()]

    def regroup(self, tokens: Int[Tensor, " engine"], positions: Int[Tensor, " engine"]) -> Regrouped:
        """Every engine row appends a token; position 0 frees it. Readers of a cache row that draw different tokens part."""
        draws, at = tokens.numpy(), positions.numpy()
        self.of = np.where(at > 0, self.of, -1)
        if self.stable:
            return self._stay(draws.tolist(), at.tolist())
        live = np.flatnonzero(self.of >= 0)
        branches, first, which = np.unique(self.of[live] << 32 | draws[live], return_index=True, return_inverse=True)
        self.of[live] = which
        found = branches >> 32, branches & 0xFFFFFFFF, at[live[first]]
        return Regrouped(*map(torch.from_numpy, found))

    def _stay(self, tokens: list[int], positions: list[int]) -> Regrouped:
        """Where readers part, the first of them keeps the row, and each other token gets the lowest free one. Gaps are
        closed when more than a quarter of the rows up to the highest one are not in use."""
        homes: list[int] = self.of.tolist()
        used = [False] * self.rows
        for home in homes:
            if home >= 0:
                used[home] = True
        sources = list(range(self.rows))
        _part(homes, tokens, used, sources)
        _close_gaps(homes, used, sources)
        count = max(homes) + 1
        token, position = [0] * count, [0] * count
        for home, t, p in zip(homes, tokens, positions, strict=True):
            if home >= 0:
                token[home], position[home] = t, p
        self.of = np.array(homes)
        return Regrouped(*map(torch.tensor, (sources[:count], token, position)))


def _part(homes: list[int], tokens: list[int], used: list[bool], sources: list[int]) -> None:
    """Change the lists in place."""
    branches, kept, vacant = dict[tuple[int, int], int](), set[int](), 0
    for row, home in enumerate(homes):
        if home < 0:
            continue
        branch = branches.get((home, tokens[row]))
        if branch is None and home not in kept:
            kept.add(home)
            branch = home
        elif branch is None:
            vacant = used.index(False, vacant)
            used[vacant] = True
            sources[vacant] = home
            branch = vacant
        branches[home, tokens[row]] = homes[row] = branch


def _close_gaps(homes: list[int], used: list[bool], sources: list[int]) -> None:
    count, height = sum(used), len(used) - used[::-1].index(True)
    if height - count <= height // 4:
        return
    gaps = [row for row in range(count) if not used[row]]
    number = dict(zip((row for row in range(count, height) if used[row]), gaps, strict=True))
    homes[:] = [number.get(home, home) for home in homes]
    for source, into in number.items():
        sources[into] = sources[source]
