"""The scripts of benchmarks/ that draw conclusions: slopes, pages, pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.dom import minidom

import pytest

from reading import ROOT


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    import scaling as module  # type: ignore[import-not-found]

    found: ModuleType = module
    return found


def _result(scaling: Any) -> dict[str, Any]:
    """Time proportional to the work on our side, and twice that on the other."""
    done = {}
    for cell in scaling.cells():
        seconds = 1e-9 * cell.parameters * cell.batch * cell.length
        sides = {
            n: {"seconds": k * seconds, "peak_memory_bytes": 2**20} for n, k in (("triloop", 1), ("transformers", 2))
        }
        about = {"size": cell.size, "batch": cell.batch, "length": cell.length, "vocab": cell.vocab}
        done[cell.key] = {**about, "parameters": cell.parameters, **sides, "other_cores": 0.0}
    largest = done.popitem()[1]
    facts = {
        "machine": {"processor": "x"},
        "date": "d",
        "code": "c",
        "threads": 1,
        "precision": "fp32",
        "versions": "v",
    }
    return {**facts, "cells": done, "skipped": [largest], "slopes": scaling.slopes(done)}


def test_proportional_time_has_slope_one(scaling: Any) -> None:
    found = _result(scaling)["slopes"]
    for axis in ("size", "batch", "length"):
        for side in ("triloop", "transformers"):
            assert found[axis][side]["all"] == pytest.approx(1.0)
            assert found[axis][side]["last"] == pytest.approx(1.0)


def test_files(scaling: Any, tmp_path: Path) -> None:
    result = _result(scaling)
    scaling.write(tmp_path, result)
    assert json.loads((tmp_path / "scaling.json").read_text()) == result
    page = (tmp_path / "scaling.md").read_text()
    assert "Left out for lack of time: new tokens 2048." in page
    assert "| 2 |" in page.replace("            2 |", " 2 |")
    drawn = minidom.parse(str(tmp_path / "scaling.svg"))
    assert len(drawn.getElementsByTagName("g")) == 4
    assert len(drawn.getElementsByTagName("path")) == 8


def test_cells_run_from_small_to_large(scaling: Any) -> None:
    cells = scaling.cells()
    assert [c.flops for c in cells] == sorted(c.flops for c in cells)
    ranges = {axis: [getattr(c, axis) for c in cells] for axis in ("batch", "length", "vocab")}
    assert {axis: (min(v), max(v)) for axis, v in ranges.items()} == {
        "batch": (8, 1024),
        "length": (32, 2048),
        "vocab": (64, 50257),
    }
    assert {c.size for c in cells} == {"0.2m", "1m", "5m", "30m", "100m"}


def test_earlier_cells_count_on_the_same_machine_only(scaling: Any, tmp_path: Path) -> None:
    result = _result(scaling)
    scaling.write(tmp_path, result)
    assert scaling._kept(tmp_path, result) == result["cells"]
    assert scaling._kept(tmp_path, {**result, "threads": 2}) == {}
    assert scaling._kept(tmp_path / "nothing", result) == {}


# -------------------------------------------------------------------- time to a reward


@pytest.fixture
def reward(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    import time_to_reward as module  # type: ignore[import-not-found]

    found: ModuleType = module
    return found


def _course(side: str, seed: int, rate: float, rewards: list[float], seconds: float) -> dict[str, Any]:
    return {
        "side": side,
        "seed": seed,
        "rate": rate,
        "reward": rewards,
        "seconds": [seconds] * len(rewards),
        "lr_scale": 1.0,
        "other_cores": [0.0],
        "ended": "",
        "asked": [seed] * len(rewards),
    }


def test_the_first_round_whose_last_five_are_good_enough(reward: Any) -> None:
    steep = [0.0] * 5 + [1.0] * 5
    assert reward.reached(steep, 0.6) == 8, "the mean of rounds 4 to 8"
    assert reward.reached([1.0] * 4, 0.6) is None, "four rounds are no five"
    assert reward.reached([0.5] * 50, 0.6) is None
    assert reward.time_to(_course("trl", 0, 1e-4, steep, 2.0), 0.6) == 16.0


def test_the_best_rate_is_the_soonest_or_else_the_furthest(reward: Any) -> None:
    slow = _course("trl", 0, 1e-4, [0.0] * 10 + [1.0] * 10, 1.0)
    soon = _course("trl", 0, 2e-4, [0.0] * 5 + [1.0] * 15, 1.0)
    never, nearly = (_course("trl", 0, r, [x] * 20, 1.0) for r, x in ((3e-4, 0.1), (4e-4, 0.5)))
    assert reward.best_rate([slow, soon, never, nearly], 0.6) == 2e-4
    assert reward.best_rate([never, nearly], 0.6) == 4e-4


def test_curves_agree_where_intervals_over_seeds_overlap(reward: Any) -> None:
    mean, low, high = reward.interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (2.0, pytest.approx(4.303 / 3**0.5)) and mean - low == pytest.approx(high - mean)

    def three(at: float) -> list[dict[str, Any]]:
        return [_course("x", n, 1e-4, [at + 0.01 * n] * 30, 1.0) for n in range(3)]

    assert [b["agree"] for b in reward.curves(three(0.3), three(0.32))] == [True, True]
    (first, last) = reward.curves(three(0.3), three(0.4))
    assert not first["agree"] and (first["first"], first["last"], last["first"], last["last"]) == (1, 25, 26, 30)
    assert first["difference"][0] == pytest.approx(-0.1), "paired by seed, it has no spread at all"


def test_a_time_is_not_made_up(reward: Any, tmp_path: Path) -> None:
    """TRL's that never came there counts as its whole run, and the outcome says `at least`."""
    options = reward.parse(["--out", str(tmp_path / "t.json"), "--seeds", "0", "1", "--rates", "1e-4", "2e-4"])
    runs = {
        (side, seed, rate): _course(side, seed, rate, rewards, seconds)
        for side, seconds in (("triloop", 0.5), ("trl", 2.0))
        for seed in (0, 1)
        for rate, rewards in ((1e-4, [0.1] * 40), (2e-4, [0.1] * 30 + [0.9] * 10))
    }
    runs["trl", 1, 2e-4] = _course("trl", 1, 2e-4, [0.2] * 40, 2.0)
    done = {reward.Course(side=s, seed=n, rate=r).key: run for (s, n, r), run in runs.items()}
    found = reward.conclude(done, options)
    assert found["triloop"]["rate"] == found["trl"]["rate"] == 2e-4
    assert found["trl"]["rounds"] == [34, None] and found["ratio_is_at_least"] and found["same_prompts"]
    assert found["ratio_each"] == [4.0, pytest.approx(80 / 17)]
    assert any("at least" in s for s in reward.words(found))
    facts = {"machine": {"cores": 1}, "rounds": 40}
    reward.write(options.out, facts, done, found)
    assert reward.kept(options.out, facts) == json.loads(json.dumps(done))
    assert reward.kept(options.out, {**facts, "rounds": 41}) == {}
    assert "at least" in options.out.with_suffix(".md").read_text()


def test_a_round_never_asks_the_same_twice() -> None:
    from triloop.bench import column_task as task

    every = task.problems(200, 1)
    stream = [every[0], *every]
    first, *_ = task.rounds(stream)
    assert len({p.prompt for p in first}) == len(first) == task.PROMPTS and first[0] == every[0]
    assert task.fingerprint(["a", "b"]) != task.fingerprint(["b", "a"])


def test_both_sides_are_asked_the_same(tmp_path: Path) -> None:
    """What the other side is given round by round is what the loop draws."""
    from triloop.bench import column_task as task
    from triloop.bench.columns import Columns

    every = task.problems(task.TRAIN_COUNT, task.TRAIN_SEED)
    theirs = task.rounds([*every[6000:], *every[:6000]])
    env, at = Columns(), 6000
    for _ in range(40):
        taken: dict[str, None] = {}
        while len(taken) < task.PROMPTS:
            fresh = env.prompts("train", task.PROMPTS - len(taken), seed=0, start=at)
            at += len(fresh)
            taken |= dict.fromkeys(p.text for p in fresh)
        assert list(taken) == [p.prompt for p in next(theirs)]
