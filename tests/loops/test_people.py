"""Simulated users as a run's settings make them."""

from __future__ import annotations

import pytest

from triloop.envs.attributes import Attributes
from triloop.envs.sort import Sort
from triloop.errors import ConfigError
from triloop.feedback.kinds import Text, read
from triloop.loops.asked import UsersConfig
from triloop.loops.people import users

SURE = UsersConfig(pleased=0.6, speaks=1.0, love=0.0, explains=1.0, noise=0.0)


def test_users_of_the_attribute_world_say_what_they_missed() -> None:
    world = Attributes()
    fox = world.parse("tell fox red den :")
    judge = users(SURE, world, 0, round=1, scaled=True)
    good, bad = judge.judge([fox] * 2, [world.right_answer(fox), "please note the fox is red ."])
    assert (good.value, bad.value) == (0.5, 0.5), "a missing fact of two costs 0.35: still 0.65"
    strict = users(UsersConfig(pleased=0.9, noise=0.0, explains=1.0), world, 0, round=1)
    (told,) = strict.critique([fox], ["please note the fox is red ."])
    assert read(told) == Text("missing den", -1)


def test_users_of_any_task_go_by_its_gold() -> None:
    task = Sort()
    (problem,) = task.prompts("train", 1, seed=0)
    judge = users(SURE, task, 0, round=1)
    assert [f.value for f in judge.judge([problem] * 2, [str(problem.answer), "wrong"])] == [1.0, -1.0]


def test_every_setting_of_users_changes_what_they_say() -> None:
    world = Attributes()
    asked = world.prompts("train", 200, seed=1)
    texts = [world.right_answer(p) if i % 2 else f"wow the {p.meta['subject']} ." for i, p in enumerate(asked)]

    def moods(**changes: float) -> list[str]:
        judge = users(UsersConfig(**{"noise": 0.0, **changes}), world, 0, round=1)
        return [r.mood for r in judge.react(asked, texts)]

    plain = moods()
    for changes in (
        {"pleased": -1.0}, {"speaks": 0.2}, {"love": 0.9}, {"charm": 0.9}, {"explains": 0.1}, {"noise": 0.5}
    ):  # fmt: skip
        assert moods(**changes) != plain, changes
    assert "love" not in set(moods(love=0.0)) and "love" in set(moods(love=0.0, charm=0.9))
    for name, value in (("noise", 1.5), ("pleased", -2.0), ("charm", -0.1)):
        with pytest.raises(ConfigError, match=f"cycle.users.{name} is"):
            UsersConfig(**{name: value})
