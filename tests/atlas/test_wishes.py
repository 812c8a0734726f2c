"""Rows S158, A49 and S078: what a policy is after."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from triloop.atlas.frame import Context, Row
from triloop.atlas.wishes import WISHES, both, direction, final_answer, paid, problems, pseudo_pairs, wished
from triloop.envs.attributes import Attributes
from triloop.records import Completion


@pytest.mark.parametrize("row", WISHES, ids=lambda r: r.id)
def test_rows_run(row: Row, tmp_path: Path) -> None:
    found = row.run(Context(folder=tmp_path, seeds=(0,), base=row.base, share=0.05))
    assert len(found.baseline) == len(found.treatment) == len(row.contrasts)
    assert all(len(side) == 1 and math.isfinite(side[0]) for side in (*found.baseline, *found.treatment))


def test_coverage_and_brevity_pull_apart() -> None:
    env = Attributes()
    p = env.parse("tell fox red den :")
    assert both(env, p, "the fox is red , den .") == (1.0, pytest.approx(1 - 2 * 7 / 20))
    assert both(env, p, "red") == (0.0, pytest.approx(0.9))
    assert both(env, p, " ") == (-1.0, -1.0)


def test_a_wish_stands_in_the_prompt() -> None:
    p = Attributes().parse("tell fox red :")
    assert wished(p, None) == p
    assert wished(p, 0).text == "coverage 9 concise 0 ; tell fox red :"
    assert wished(p, 45).text == "coverage 6 concise 6 ; tell fox red :"
    assert wished(p, 90).id != wished(p, 0).id
    assert math.hypot(*direction(22)) == pytest.approx(1)


def test_every_task_pays_its_right_answer_most() -> None:
    env = Attributes()
    for task in ("ask", "compare", "rate"):
        for x in problems(env, task, 8, 0, 0):
            assert x.said is not None
            assert paid(env, x, x.said) == 1.0
            assert paid(env, x, "fox") == paid(env, x, "") == -1.0
    mark = next(x for x in problems(env, "rate", 40, 0, 0) if x.said == "6")
    assert paid(env, mark, "3") == pytest.approx(1 - 2 * 3 / 9)
    (answer,) = problems(env, "tell", 1, 0, 0)
    assert paid(env, answer, env.right_answer(answer.plain)) == pytest.approx(1.0)


def _said(text: str, token: int) -> Completion:
    return Completion(
        id=text,
        prompt_id="p",
        round=0,
        index=0,
        prompt_tokens=(1,),
        tokens=(token,),
        logps=(0.0,) * 1,
        mask=(True,) * 1,
        text=text,
        finish="stop",
        policy_version=0,
    )


def test_pairs_by_a_label() -> None:
    group = [_said("3#3", 1), _said("4#4", 2), _said("3,3#3", 3), _said("nothing", 4)]
    assert [final_answer(c.text) for c in group] == ["3", "4", "3", None]
    assert [(x.first, x.second) for x in pseudo_pairs("3", group)] == [((1,), (2,)), ((3,), (4,))]
    assert len(pseudo_pairs("3", group, most=1)) == 1
    assert pseudo_pairs(None, group) == pseudo_pairs("7", group) == []
