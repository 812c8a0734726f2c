"""Rows with one history share a cache row; the compiled bookkeeping is the plain one."""

from __future__ import annotations

import random

import pytest
import torch

from triloop.kernels import native
from triloop.policies.homes import Homes, Regrouped


def plain(homes: Homes, tokens: list[int], positions: list[int]) -> Regrouped:
    return homes._plain(tokens, positions)


def test_worked_by_hand() -> None:
    homes = Homes(6)
    assert homes.give([0, 1, 2, 3], torch.tensor([0, 0, 0, 1]), 2).tolist() == [0, 1]
    found = plain(homes, [7, 8, 7, 7, 0, 0], [2, 2, 2, 5, 0, 0])
    assert [x.tolist() for x in found.parted] == [[2], [0]], "8 parts from 7 and gets the lowest free row"
    assert homes.of.tolist() == [0, 2, 0, 1, -1, -1]
    assert (found.tokens.tolist(), found.positions.tolist()) == ([7, 7, 8], [2, 5, 2])
    found = plain(homes, [9, 1, 9, 9, 0, 0], [0, 3, 0, 0, 0, 0])
    assert [x.tolist() for x in found.moved] == [[0], [2]], "two of three rows stand empty: the last one moves down"
    assert homes.of.tolist() == [-1, 0, -1, -1, -1, -1]
    assert (found.tokens.tolist(), found.positions.tolist()) == ([1], [3])


@pytest.mark.skipif(not native.available(), reason="the compiled kernels are not built")
@pytest.mark.parametrize("seed", range(8))
def test_compiled_equals_plain(seed: int) -> None:
    draw = random.Random(seed)
    rows = draw.choice([1, 3, 40, 129])
    one, other = Homes(rows), Homes(rows)
    engine = list(range(rows))
    groups = [draw.randrange(max(1, rows // 8)) for _ in engine]
    groups = [sorted(set(groups)).index(g) for g in groups]
    for homes in (one, other):
        homes.give(engine, torch.tensor(groups), max(groups) + 1)
    alive = [True] * rows
    for step in range(1, 30):
        if not any(alive):
            break
        tokens = [draw.choice([4, 4, 4, 5, 6]) for _ in engine]
        positions = [step if a else 0 for a in alive]
        a = one._compiled(torch.tensor(tokens), torch.tensor(positions))
        b = plain(other, tokens, positions)
        assert torch.equal(one.of, other.of)
        for x, y in zip(
            (*a.parted, *a.moved, a.tokens, a.positions), (*b.parted, *b.moved, b.tokens, b.positions), strict=True
        ):
            assert torch.equal(x, y)
        alive = [a and draw.random() > 0.1 for a in alive]
