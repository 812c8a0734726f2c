"""The curriculum at the frontier of ability (atlas A15)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.test_generations import config
from triloop import rng
from triloop.loops.config import CurriculumConfig, EnvConfig
from triloop.loops.curriculum import (
    choose_levels,
    frontier_weights,
    level_weights,
    updated_rates,
    updated_trends,
)
from triloop.loops.run import start
from triloop.loops.stages import CycleConfig
from triloop.loops.state import load_state
from triloop.records import Completion, Episode, Feedback, Prompt
from triloop.store.run import Run

FRONTIER = CurriculumConfig(kind="frontier", floor=0.1)


def episode(level: int, reward: float | None) -> Episode:
    prompt = Prompt(id=f"p{level}", text="?", level=level)
    completion = Completion(
        id="1/p/0", prompt_id=prompt.id, round=1, index=0, prompt_tokens=(1,), tokens=(), logps=(), mask=(), text="",
        finish="stop", policy_version=0,
    )  # fmt: skip
    return Episode(prompt=prompt, completion=completion, feedback=(Feedback(value=reward),), reward=reward)


def test_weights_by_hand() -> None:
    """p(1-p) is 0.09, 0.25 and 0.16; a fifth is given away as floors, the rest in proportion."""
    weights = frontier_weights({1: 0.9, 2: 0.5, 3: 0.2}, floor=0.2 / 3)
    expected = {1: 0.2 / 3 + 0.8 * 0.09 / 0.5, 2: 0.2 / 3 + 0.8 * 0.25 / 0.5, 3: 0.2 / 3 + 0.8 * 0.16 / 0.5}
    assert weights == pytest.approx(expected, abs=1e-5)


def test_nothing_to_learn_anywhere_is_uniform() -> None:
    assert frontier_weights({1: 0.0, 2: 1.0}, floor=0.1) == pytest.approx({1: 0.5, 2: 0.5})


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.integers(0, 20), st.floats(0, 1), min_size=1), st.floats(0, 0.5))
def test_weights_are_probabilities(rates: dict[int, float], floor: float) -> None:
    weights = frontier_weights(rates, floor)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert min(weights.values()) >= min(floor, 1 / len(rates)) - 1e-12


def test_levels_are_drawn_where_half_succeeds() -> None:
    rates = {"1": 0.99, "2": 0.5, "3": 0.01}
    drawn = choose_levels(FRONTIER, None, (1, 2, 3), (rates, {}), 1000, key=1)
    assert sum(drawn.values()) == 1000
    assert drawn[2] > 600 and min(drawn[1], drawn[3]) > 60
    assert drawn == choose_levels(FRONTIER, None, (1, 2, 3), (rates, {}), 1000, key=1)
    assert drawn != choose_levels(FRONTIER, None, (1, 2, 3), (rates, {}), 1000, key=2)


def test_an_unknown_level_is_looked_at() -> None:
    assert choose_levels(FRONTIER, None, (1, 2), ({"1": 1.0}, {}), 100, key=0)[2] > 80


@pytest.mark.parametrize(
    ("config", "fixed", "levels"),
    [(CurriculumConfig(), None, (1, 2)), (FRONTIER, 2, (1, 2)), (FRONTIER, None, (0,))],
    ids=["mixture", "a level was asked for", "one level"],
)
def test_otherwise_the_task_decides(config: CurriculumConfig, fixed: int | None, levels: tuple[int, ...]) -> None:
    assert choose_levels(config, fixed, levels, ({}, {}), 8, key=0) == {fixed: 8}


def test_running_rates_by_hand() -> None:
    seen = [episode(1, 1.0), episode(1, -1.0), episode(2, 1.0), episode(3, None)]
    rates = updated_rates({"1": 0.1, "4": 0.7}, seen, memory=0.9)
    assert rates == pytest.approx({"1": 0.9 * 0.1 + 0.1 * 0.5, "2": 1.0, "4": 0.7})


def test_progress_by_hand() -> None:
    """Level 1 moved by 0.2, level 2 by -0.1, level 3 was not seen: floors of 0.1, and the rest by e^2, e^1 and e^0."""
    config = CurriculumConfig(kind="progress", floor=0.1)
    weights = level_weights(config, (1, 2, 3), {}, {"1": (0.5, 0.3), "2": (0.0, 0.1)})
    total = math.e**2 + math.e + 1
    assert weights == pytest.approx(
        {1: 0.1 + 0.7 * math.e**2 / total, 2: 0.1 + 0.7 * math.e / total, 3: 0.1 + 0.7 / total}
    )
    drawn = choose_levels(config, None, (1, 2, 3), ({}, {"1": (0.5, 0.3), "2": (0.0, 0.1)}), 1000, key=1)
    assert sum(drawn.values()) == 1000 and drawn[1] > drawn[2] > drawn[3] > 100
    # floors that would exceed the whole are equal shares
    assert level_weights(CurriculumConfig(kind="progress", floor=0.5), (1, 2, 3), {}, {}) == pytest.approx(
        dict.fromkeys((1, 2, 3), 1 / 3)
    )


def test_running_trends_by_hand() -> None:
    """The fast mean moves half of the way, the slow one 15 in a hundred; a first reward starts both."""
    seen = [episode(1, 1.0), episode(1, -1.0), episode(2, 0.5), episode(3, None)]
    trends = updated_trends({"1": (0.4, 0.2), "4": (0.7, 0.6)}, seen)
    assert set(trends) == {"1", "2", "4"}
    assert trends["1"] == pytest.approx((0.2, 0.17)) and trends["2"] == (0.5, 0.5) and trends["4"] == (0.7, 0.6)


def test_a_run_practises_several_tasks_where_progress_is(run_dir: Path) -> None:
    """The shares of every round are what the trends of the rounds before say, and a resumed run knows them."""
    cycle = CycleConfig(stages=("improve",), judge="task")
    two = config(
        cycle, policy="base:arithmetic", env=EnvConfig(name="arithmetic+sort"), rounds=3, prompts_per_round=16,
        curriculum=CurriculumConfig(kind="progress", floor=0.2),
    )  # fmt: skip
    summary = start(two, run_dir)
    assert set(summary["eval_after"]["breakdown"]) >= {"arithmetic", "sort"}
    with Run.open(run_dir, write=False) as run:
        metrics, last = run.metrics(), run.latest_checkpoint()
        assert last is not None
        state = load_state(last.path)
        rounds = [run.episodes(r) for r in (1, 2, 3)]
    trends: dict[str, tuple[float, float]] = {}
    for seen, m in zip(rounds, metrics, strict=True):
        trends = updated_trends(trends, seen)
        assert m["share_level_0"] + m.get("share_level_1", 0.0) == pytest.approx(1.0)
    assert {k: tuple(v) for k, v in state.trends.items()} == trends and set(trends) == {"0", "1"}
    drawn = choose_levels(two.curriculum, None, (0, 1), ({}, updated_trends(updated_trends({}, rounds[0]), rounds[1])), 16,
                          key=rng.key(0, "levels", 2, 0))  # fmt: skip
    assert drawn.get(0, 0) == round(metrics[2]["share_level_0"] * 16)
