"""Several tasks as one."""

from __future__ import annotations

import numpy as np
import pytest

from triloop.envs.arithmetic import Arithmetic
from triloop.envs.attributes import Attributes
from triloop.envs.domains import Domains, teacher
from triloop.envs.gym import Gym
from triloop.envs.reading import Row
from triloop.envs.sort import Sort
from triloop.envs.table import make
from triloop.errors import ConfigError, DataError

BOTH = Domains([Arithmetic(), Sort()])


def test_names_joined_are_one_task() -> None:
    made = make("arithmetic+sort")
    assert (made.name, made.levels, made.max_tokens) == ("arithmetic+sort", (0, 1), BOTH.max_tokens)
    assert made.max_tokens == max(Arithmetic().max_tokens, Sort().max_tokens)
    with pytest.raises(ConfigError, match="two or more different ones"):
        make("sort+sort")
    with pytest.raises(ConfigError, match="several tasks take no options; got mixture"):
        make("arithmetic+sort", mixture=[2])
    with pytest.raises(ConfigError, match="unknown environment 'srot'"):
        make("arithmetic+srot")


def test_tasks_take_turns_and_a_level_is_a_task() -> None:
    drawn = BOTH.prompts("train", 5, seed=3)
    assert [p.env for p in drawn] == ["arithmetic", "sort", "arithmetic", "sort", "arithmetic"]
    assert [p.level for p in drawn] == [0, 1, 0, 1, 0]
    assert [p.id for p in drawn[1::2]] == [p.id for p in Sort().prompts("train", 2, seed=3)]
    # prompt i is a function of i alone
    assert BOTH.prompts("train", 3, seed=3, start=2) == drawn[2:]
    assert (
        BOTH.prompts("train", 2, seed=3, start=1, level=1)
        == [p for p in BOTH.prompts("train", 6, seed=3) if p.env == "sort"][1:]
    )
    assert BOTH.prompts("eval", 0, seed=3) == []
    with pytest.raises(ConfigError, match="level 2 does not exist"):
        BOTH.prompts("train", 1, seed=0, level=2)


def test_each_is_judged_by_its_own_task() -> None:
    drawn = BOTH.prompts("train", 4, seed=0)
    right = [BOTH.right_answer(p) or "" for p in drawn]
    told = BOTH.gold(drawn, [right[0], right[1], "?", "wrong"])
    assert [f.value for f in told] == [1, 1, 0, -1]
    assert [f.source for f in told] == ["env:arithmetic", "env:sort"] * 2
    assert [f.breakdown for f in told] == [{"arithmetic": 1.0}, {"sort": 1.0}, {"arithmetic": 0.0}, {"sort": 0.0}]
    assert BOTH.honest and all(w != right[0] for w in BOTH.wrong_answers(drawn[0]))


def test_a_teacher_where_every_task_has_one() -> None:
    assert teacher(BOTH) is BOTH and teacher(Sort()) is not None
    assert teacher(Gym("chain_sum")) is None and teacher(Domains([Sort(), Gym("chain_sum")])) is None
    for p in BOTH.prompts("train", 4, seed=1):
        text = BOTH.demonstration(p, np.random.default_rng(0), 0.0)
        assert BOTH.gold([p], [text])[0].value == 1


def test_a_row_is_read_by_the_task_that_understands_it() -> None:
    assert BOTH.read(Row(where="f:1", data={"prompt": "s 4b17="})).level == 1
    assert BOTH.read(Row(where="f:1", data={"prompt": "7+12-5="})).level == 0
    with pytest.raises(DataError, match="f:2: this is a problem of none of arithmetic, sort"):
        BOTH.read(Row(where="f:2", data={"prompt": "tell fox red den :"}))


def test_tasks_that_end_differently_are_not_joined() -> None:
    class Stops(Attributes):  # type: ignore[misc]  # final, and only here
        name, stop = "stops", (";",)

    with pytest.raises(ConfigError, match="end their completions differently"):
        Domains([Sort(), Stops()])
