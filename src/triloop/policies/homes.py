"""Which cache row each row of the engine reads: rows with one history share one, until they draw different tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from triloop.kernels import native

__all__ = ["Copies", "Homes", "Regrouped"]

Copies = tuple[Tensor, Tensor]
"""Cache rows to copy into, and from: two tensors of one length."""


@dataclass(frozen=True, slots=True)
class Regrouped:
    """What a step has to do, until the next one."""

    parted: Copies
    """Rows whose readers drew different tokens."""
    moved: Copies
    """Rows that fill gaps; to be copied after those that part."""
    tokens: Int[Tensor, " count"]
    """What each cache row appends, and where; position 0 for a gap."""
    positions: Int[Tensor, " count"]


class Homes:
    """The cache row of each engine row, -1 for one that is free."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.of = torch.full((rows,), -1, dtype=torch.long)
        room, self._sizes = torch.empty(8, rows, dtype=torch.long), torch.empty(3, dtype=torch.long)
        self._found = room[:4].unbind()
        self._into = [native.pointer(x) for x in (*self._found, self._sizes, room[4:])]

    def free(self) -> Int[Tensor, " free"]:
        """Cache rows that nobody reads, lowest first: the rows in use stay close together."""
        used = torch.zeros(self.rows, dtype=torch.bool)
        used[self.of[self.of >= 0]] = True
        return torch.nonzero(~used)[:, 0]

    def give(self, rows: Sequence[int], groups: Int[Tensor, " rows"], count: int) -> Int[Tensor, " count"]:
        """Home for ``count`` fresh histories, shared by the engine rows ``rows`` as ``groups`` says; the cache rows."""
        self.of[list(rows)] = -1
        homes = self.free()[:count]
        self.of[list(rows)] = homes[groups]
        return homes

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Forget every engine row but these."""
        self.of = self.of[rows]

    def regroup(self, tokens: Int[Tensor, " engine"], positions: Int[Tensor, " engine"]) -> Regrouped:
        """Every engine row appends a token; position 0 frees it.

        Where readers of a cache row append different tokens, the first of them keeps it, and each other token gets the
        lowest free row. Gaps are closed when more than a quarter of the rows up to the highest one are not in use.
        """
        if native.available():
            return self._compiled(tokens, positions)
        return self._plain(tokens.tolist(), positions.tolist())

    def _compiled(self, tokens: Tensor, positions: Tensor) -> Regrouped:
        given = map(native.pointer, (self.of, tokens, positions))
        native.function("regroup", "pppppppppii")(*given, *self._into, len(self.of), self.rows)
        parts, copies, count = self._sizes.tolist()
        token, position, into, source = self._found
        parted, moved = (into[:parts], source[:parts]), (into[parts:copies], source[parts:copies])
        return Regrouped(parted, moved, token[:count], position[:count])

    def _plain(self, tokens: list[int], positions: list[int]) -> Regrouped:
        homes = [h if p else -1 for h, p in zip(self.of.tolist(), positions, strict=True)]
        used = [False] * self.rows
        for home in homes:
            if home >= 0:
                used[home] = True
        parted = _part(homes, tokens, used)
        moved = _close_gaps(homes, used)
        count = max(homes) + 1
        token, position = [0] * count, [0] * count
        for home, t, p in zip(homes, tokens, positions, strict=True):
            if home >= 0:
                token[home], position[home] = t, p
        self.of = torch.tensor(homes)
        return Regrouped(_tensors(parted), _tensors(moved), torch.tensor(token), torch.tensor(position))


def _part(homes: list[int], tokens: list[int], used: list[bool]) -> list[tuple[int, int]]:
    """Change ``homes`` and ``used`` in place; (into, from) of the copies."""
    copies, branches, vacant = [], dict[tuple[int, int], int](), 0
    kept = set[int]()
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
            copies.append((vacant, home))
            branch = vacant
        branches[home, tokens[row]] = homes[row] = branch
    return copies


def _close_gaps(homes: list[int], used: list[bool]) -> list[tuple[int, int]]:
    count, height = sum(used), len(used) - used[::-1].index(True)
    if height - count <= height // 4:
        return []
    gaps = [row for row in range(count) if not used[row]]
    number = dict(zip((row for row in range(count, height) if used[row]), gaps, strict=True))
    homes[:] = [number.get(home, home) for home in homes]
    return [(into, source) for source, into in number.items()]


def _tensors(copies: list[tuple[int, int]]) -> Copies:
    pairs = torch.tensor(copies, dtype=torch.long).reshape(-1, 2)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
