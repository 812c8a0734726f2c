"""The curriculum at the frontier of ability (atlas A15)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triloop.loops.config import CurriculumConfig
from triloop.loops.curriculum import choose_levels, frontier_weights, updated_rates
from triloop.records import Completion, Episode, Feedback, Prompt

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
    drawn = choose_levels(FRONTIER, None, (1, 2, 3), rates, 1000, key=1)
    assert sum(drawn.values()) == 1000
    assert drawn[2] > 600 and min(drawn[1], drawn[3]) > 60
    assert drawn == choose_levels(FRONTIER, None, (1, 2, 3), rates, 1000, key=1)
    assert drawn != choose_levels(FRONTIER, None, (1, 2, 3), rates, 1000, key=2)


def test_an_unknown_level_is_looked_at() -> None:
    assert choose_levels(FRONTIER, None, (1, 2), {"1": 1.0}, 100, key=0)[2] > 80


@pytest.mark.parametrize(
    ("config", "fixed", "levels"),
    [(CurriculumConfig(), None, (1, 2)), (FRONTIER, 2, (1, 2)), (FRONTIER, None, (0,))],
    ids=["mixture", "a level was asked for", "one level"],
)
def test_otherwise_the_task_decides(config: CurriculumConfig, fixed: int | None, levels: tuple[int, ...]) -> None:
    assert choose_levels(config, fixed, levels, {}, 8, key=0) == {fixed: 8}


def test_running_rates_by_hand() -> None:
    seen = [episode(1, 1.0), episode(1, -1.0), episode(2, 1.0), episode(3, None)]
    rates = updated_rates({"1": 0.1, "4": 0.7}, seen, memory=0.9)
    assert rates == pytest.approx({"1": 0.9 * 0.1 + 0.1 * 0.5, "2": 1.0, "4": 0.7})
