"""Rows with one history share a cache row, wherever a cache wants its rows."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from triloop.policies.homes import Homes, Regrouped


def regroup(homes: Homes, tokens: list[int], positions: list[int]) -> tuple[list[int], ...]:
    found: Regrouped = homes.regroup(torch.tensor(tokens), torch.tensor(positions))
    return found.sources.tolist(), found.tokens.tolist(), found.positions.tolist()


def test_rows_that_stay_worked_by_hand() -> None:
    homes = Homes(6, stable=True)
    assert homes.give([0, 1, 2, 3], np.array([0, 0, 0, 1]), 2).tolist() == [0, 1]
    found = regroup(homes, [7, 8, 7, 7, 0, 0], [2, 2, 2, 5, 0, 0])
    assert found == ([0, 1, 0], [7, 7, 8], [2, 5, 2]), "8 parts from 7 and gets the lowest free row"
    assert homes.of.tolist() == [0, 2, 0, 1, -1, -1]
    found = regroup(homes, [9, 1, 9, 9, 0, 0], [0, 3, 0, 0, 0, 0])
    assert found == ([2], [1], [3]), "two of three rows stand empty: the last one moves down"
    assert homes.of.tolist() == [-1, 0, -1, -1, -1, -1]


def test_rows_that_move_worked_by_hand() -> None:
    homes = Homes(6, stable=False)
    assert homes.give([0, 1, 2, 3], np.array([0, 0, 0, 1]), 2).tolist() == [0, 1]
    found = regroup(homes, [7, 8, 7, 7, 0, 0], [2, 2, 2, 5, 0, 0])
    assert found == ([0, 0, 1], [7, 8, 7], [2, 2, 5]), "7 and 8 stand side by side"
    assert homes.of.tolist() == [0, 1, 0, 2, -1, -1]
    found = regroup(homes, [9, 1, 9, 9, 0, 0], [0, 3, 0, 6, 0, 0])
    assert found == ([1, 2], [1, 9], [3, 6]), "no gaps"
    assert homes.of.tolist() == [-1, 0, -1, 1, -1, -1]
    assert homes.give([0, 2], np.array([0, 0]), 1).tolist() == [2], "the lowest row that nobody reads"


@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_every_row_reads_its_own_history(seed: int, stable: bool) -> None:
    draw = random.Random(seed)
    rows = draw.choice([1, 3, 40, 129])
    homes, engine = Homes(rows, stable=stable), list(range(rows))
    groups = [draw.randrange(max(1, rows // 8)) for _ in engine]
    groups = [sorted(set(groups)).index(g) for g in groups]
    homes.give(engine, np.array(groups), max(groups) + 1)
    cache: dict[int, tuple[int, ...]] = {g: (g,) for g in groups}
    histories = [(g,) for g in groups]
    alive = [True] * rows
    for step in range(1, 30):
        if not any(alive):
            break
        tokens = [draw.choice([4, 4, 4, 5, 6]) for _ in engine]
        sources, drawn, positions = regroup(homes, tokens, [step if a else 0 for a in alive])
        changed = {row for row, source in enumerate(sources) if row != source and positions[row]}
        assert not stable or not changed & set(sources), "no row is both copied from and copied into"
        cache = {r: (*cache[s], t) for r, (s, t, p) in enumerate(zip(sources, drawn, positions, strict=True)) if p}
        for row in engine:
            if alive[row]:
                histories[row] = (*histories[row], tokens[row])
                assert cache[homes.of[row]] == histories[row]
            else:
                assert homes.of[row] == -1
        assert len(set(cache.values())) == len(cache), "one history, one row"
        assert len(sources) <= -(-4 * len(cache) // 3) + 1 if stable else len(sources) == len(cache)
        alive = [a and draw.random() > 0.1 for a in alive]
